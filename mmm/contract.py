"""The rules for tokenizers, maskers, encoders, decoders and targets, and checks of these rules on a small model.

`mmm check FILE` checks the parts of a user, and the tests check all registered parts. A run with `--use` makes the quick checks.

Shapes: B samples, N tokens, mB rows of visible and blank tokens, kmB rows of predicted ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmm.core.checks import one_line
from mmm.core.mask import Mask
from mmm.core.registry import REGISTRIES, PartConfig
from mmm.core.rng import Stream, sample_keys, stream
from mmm.core.tokens import repeat_rows
from mmm.core.types import Features, Input
from mmm.maskers import Masker, RandomMasker, maskers
from mmm.model import MaskedModel, ModelConfig, Output
from mmm.targets import PixelTarget
from mmm.targets.base import TokenTargets
from mmm.tokenizers import Patches, Tubes

SETS = ("visible", "predict", "blank", "weight")  # of a mask
KINDS = ("tokenizer", "masker", "encoder", "decoder", "target")
SIDE = 4  # of tokens
SIZES: dict[str, tuple[int, ...]] = {"images": (16, 24), "clips": (4, 16, 24)}
SMALL: dict[str, dict[str, Any]] = {
    "tokenizer": {"size": SIDE},
    "encoder": {
        "width": 24,
        "depth": 2,
        "heads": 2,
        "stages": (1, 1, 1),
        "patch": 1,
        "mask_unit": 4,
        "window": 2,
        "model": "test_vit",
    },
    "decoder": {"width": 16, "depth": 2, "heads": 2, "groups": 4},
    "target": {"cell": 4, "clusters": 32, "codes": 32, "prototypes": 32, "hidden": 24, "bottleneck": 16},
}
TOGETHER = {"decoder pair": "pair"}  # parts that need a target of this name


class ContractError(ValueError):
    """A part breaks a rule."""


def require(holds: bool | Tensor, message: str) -> None:
    """Raises ContractError if a condition does not hold."""
    if not bool(holds):
        raise ContractError(message)


# --- small models ---------------------------------------------------------------------------------------------------------------


def small_config(kind: str, name: str) -> PartConfig:
    """Returns the default config of a part, with small values for its size, width, depth and heads, also in the parts inside it."""
    config: Any = REGISTRIES[kind][name].Config()
    inner = {field.name: getattr(config, field.name) for field in fields(config)}
    parts = {field: small_config(one.kind, one.name) for field, one in inner.items() if isinstance(one, PartConfig)}
    return replace(config, **parts, **{field: SMALL[kind][field] for field in inner if field in SMALL.get(kind, {})})


def small_model(size: tuple[int, ...], parts: Mapping[str, PartConfig], *, channels: int = 3) -> MaskedModel:
    """Builds MAE on patches or tubes of 4 pixels, with the given parts in place of its own.

    For an encoder that needs tokens of another side, tokens and samples have that size, and the number of tokens is the same. The
    masker has blank tokens if the decoder or the encoder requires them. Noise is added to trained weights, because a bias of 0 or
    a norm of 1 could hide an error.
    """
    side = SIDE if "tokenizer" in parts else getattr(parts.get("encoder"), "token", None) or SIDE
    size = (*size[:-2], *(axis * side // SIDE for axis in size[-2:]))
    chosen: dict[str, Any] = {
        "tokenizer": Patches.Config(size=side) if len(size) == 2 else Tubes.Config(size=side, frames=2),
        "encoder": small_config("encoder", "vit"),
        "decoder": small_config("decoder", "self_attention"),
        "target": PixelTarget.Config(),
    }
    for kind, config in parts.items():
        if target := TOGETHER.get(f"{kind} {config.name}"):
            chosen["target"] = small_config("target", target)
    chosen |= parts
    shape = chosen["encoder"].shape
    required = chosen["decoder"].required_features(shape)
    chosen.setdefault("masker", RandomMasker.Config(blank=required.hidden or shape.whole))
    if maskers[chosen["masker"].name].needs_scores and "target" not in parts:
        chosen["target"] = small_config("target", "latent")
    mean, std = (tuple(scale * (channel + 3) for channel in range(channels)) for scale in (0.1, 0.05))
    model = MaskedModel.build(ModelConfig(**chosen), Input(size=size, channels=channels, mean=mean, std=std))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return model


def draw(model: MaskedModel, samples: int = 4) -> tuple[Tensor, Mask]:
    """Returns a batch of noise of the size that the model was built for, (B, C, ...), and its mask."""
    assert model.data is not None
    x = torch.randn(samples, model.data.channels, *model.data.size)
    return x, model.draw_masks(x, sample_keys(0, 0, torch.arange(samples)))


# --- masks ----------------------------------------------------------------------------------------------------------------------


def check_keys(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that a mask depends only on the key of its sample, not on torch's generator or on other samples."""
    keys, state = sample_keys(0, 0, torch.arange(len(x))), torch.get_rng_state()
    again = model.draw_masks(x, keys)
    require(torch.equal(torch.get_rng_state(), state), "the masker draws from torch's generator; draw from the keys (mmm.core.rng)")
    require(_same(mask, again), "the same keys give another mask; draw from the keys alone (mmm.core.rng)")
    alone = [model.draw_masks(x[row : row + 1], keys[row : row + 1]) for row in range(len(x))]
    for number, whole in enumerate(mask.families):
        for name in SETS:
            rows = [getattr(one.families[number], name) for one in alone]
            there = [row for row in rows if row is not None and row.shape[1:] == rows[0].shape[1:]]
            value = getattr(whole, name)
            same = not there if value is None else len(there) == len(rows) and torch.equal(torch.cat(there), value)
            require(same, f"mask.{name} of a sample depends on the other samples of its batch")
        require(whole.weight is None or bool(whole.weight.isfinite().all()), "mask.weight, the factors of the loss, is not finite")


def check_device(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that a mask is drawn on the device of the keys."""
    keys = torch.zeros(len(x), dtype=torch.int64, device="meta")
    try:
        grid = model.tokenizer.grid(x)
        scores = {"scores": torch.ones(len(x), math.prod(grid), device="meta")} if model.masker.needs_scores else {}
        there = model.masker(keys, grid, **scores)
    except (RuntimeError, NotImplementedError) as error:
        if "expected device" in str(error):
            raise ContractError(f"the masker mixes tensors of the CPU with keys of another device: {error}") from error
        return  # the masker reads values, but tensors on the device `meta` have none
    require(there.visible.device == keys.device, "mask.visible does not lie on the device of the keys")
    require(there.predict.device == keys.device, "mask.predict does not lie on the device of the keys")


def check_sets(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that visible, blank and predicted tokens are tokens of the grid, that no set has a token twice, and that no token is
    both visible and hidden."""
    tokens = math.prod(model.tokenizer.grid(x))
    mask.checked(len(x), tokens)
    for one in mask.families:
        valid = torch.ones_like(one.where) if one.valid is None else one.valid
        seen, blank = (_counts(*part, tokens) for part in _parts(one.where, valid, one.visible.shape[1]))
        require(seen.max() <= 1, "a token is visible twice")
        require((seen + blank).max() <= 1, "a token is visible and blank, or blank twice")
        hidden, echo = one.predict.split([one.predict.shape[1] - one.echo, one.echo], dim=1)
        shown = repeat_rows(one.visible[:, : one.echo], len(echo))
        require(torch.equal(echo, shown), "mask.echo: the last predicted tokens must be the first visible ones, in their order")
        asked = torch.ones_like(one.predict) if one.valid_predict is None else one.valid_predict
        predicted = _counts(hidden, asked[:, : hidden.shape[1]], tokens)
        if one.weight is None or one.valid_predict is not None:
            require(predicted.max() <= 1, "a token is predicted twice")
        both = predicted.view(len(seen), -1, tokens).sum(1) * seen
        require(
            both.max() == 0, "a visible token is predicted; visible and predicted tokens must be disjoint (except with mask.echo)"
        )


def check_order(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that the order of units is a permutation, and that each token belongs to one unit."""
    masker, grid = model.masker, model.tokenizer.grid(x)
    if type(masker).order is Masker.order:
        return  # the masker has no order
    members = masker.members(grid)
    require(torch.equal(members.flatten().sort().values, torch.arange(math.prod(grid))), "`members` must hold each token once")
    keys, seen = stream(sample_keys(0, 0, torch.arange(len(x))), Stream.MASK), masker.counts(len(members), masker.ratio(0, 1))[0]
    order = masker.order(keys, masker.unit_grid(grid), seen)
    units = torch.arange(len(members)).expand(len(x), -1)
    require(
        order.shape == units.shape and torch.equal(order.sort(1).values, units), "`order` must return a permutation of the units"
    )


def _same(one: Mask, other: Mask) -> bool:
    pairs = zip(one.families, other.families, strict=True)
    values = [(getattr(a, name), getattr(b, name)) for a, b in pairs for name in SETS]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in values)


def _counts(index: Tensor, valid: Tensor, tokens: int) -> Tensor:
    """Counts each token in each row, without padding, (rows, N)."""
    return torch.zeros(len(index), tokens, dtype=torch.int64).scatter_add(1, index, valid.long())


def _parts(index: Tensor, valid: Tensor, first: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Returns the first tokens of each row, and the other tokens, both with `valid`."""
    return (index[:, :first], valid[:, :first]), (index[:, first:], valid[:, first:])


# --- the flow of data -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_hidden(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that hidden pixels change no feature and no prediction, and that visible ones do."""
    model.eval()
    patches, grid = model.tokenizer.split(x), model.tokenizer.grid(x)
    samples, tokens = patches.shape[:2]
    visible = torch.ones_like(mask.visible)  # padding is a copy
    seen = _counts(mask.visible, visible, tokens).view(samples, -1, tokens).sum(1) > 0  # (B, N)
    for what, chosen, changes in (("hidden", ~seen, False), ("visible", seen, True)):
        other = model.tokenizer.join(torch.where(chosen[..., None], torch.randn_like(patches), patches), grid)
        before, after = model.encoder(patches, grid, mask), model.encoder(model.tokenizer.split(other), grid, mask)
        if torch.equal(before.last, after.last) is changes:
            raise ContractError(f"{what} pixels {'do not change' if changes else 'change'} the encoder's features")
        predictions = [model(one, mask=mask).prediction for one in (x, other)]
        if torch.equal(*predictions) is changes:
            raise ContractError(f"{what} pixels {'do not change' if changes else 'change'} the predictions")
    model.train()


@torch.no_grad()
def check_types(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks the types of the results of tokenizer, encoder, decoder and target."""
    patches, grid = model.tokenizer.split(x), model.tokenizer.grid(x)
    features = model.encoder(patches, grid, mask.families[0])
    returned: list[tuple[str, object, type]] = [
        ("tokenizer.split", patches, Tensor),
        ("tokenizer.grid", grid, tuple),
        ("the encoder", features, Features),
        ("target.teach", model.target.teach(x, patches, grid), TokenTargets),
    ]
    if isinstance(features, Features) and model.decoder is not None:
        returned.append(("the decoder", model.decoder(features, mask.families[0], grid), Tensor))
    for what, value, kind in returned:
        require(isinstance(value, kind), f"{what} returns {type(value).__name__}, and not {kind.__name__}")


def check_shapes(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks shapes and types of loss, predictions, features and pictures."""
    output, grid = model(x, mask=mask), model.tokenizer.grid(x)
    rows, queries = mask.predict.shape
    require(output.loss.shape == () and output.loss.dtype == torch.float32, f"the loss must be one fp32 number, not {output.loss}")
    require(output.loss.isfinite(), f"the loss is {output.loss}")
    require(output.prediction.shape == (rows, queries, sum(model.target.widths)), f"its shape is {tuple(output.prediction.shape)}")
    for target in tree_leaves(output.target):
        of_masks = target.dim() == 2 and target.is_floating_point() and len(target) == len(mask.visible)  # a class token's
        require(
            of_masks or target.shape[:2] == (rows, queries),
            f"the target is {tuple(target.shape)} for {rows} x {queries} predicted tokens",
        )
        require(target.dtype in (torch.float32, torch.int64), f"the target is {target.dtype}, neither fp32 nor int64")
        require(not target.requires_grad, "the target carries a gradient")
    features = model.encoder(model.tokenizer.split(x), grid, None)
    expected = (len(x), math.prod(grid), model.encoder.shape.width)
    require(features.tokens.shape == expected, f"features of all tokens are {tuple(features.tokens.shape)}, not {expected}")
    require(features.prefix == model.encoder.shape.prefix, "the number of prefix tokens is not that of the encoder's shape")
    patches = model.tokenizer.split(x)
    require(torch.equal(model.tokenizer.split(model.tokenizer.join(patches, grid)), patches), "`join` does not undo `split`")
    shown = model.target.show(output.prediction, model.tokenizer.split(x), mask)
    require(shown is None or shown.shape == (rows, queries, model.tokenizer.width), "`show` must return the pixels of each token")


def check_gradients(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that each trainable weight gets a finite gradient other than 0, and that others get none."""
    model.zero_grad()
    model(x, mask=mask).loss.backward()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            require(weight.grad is None, f"{name} is not trained and gets a gradient")
            continue
        if weight.grad is None:
            raise ContractError(f"{name} gets no gradient")
        require(weight.grad.isfinite().all(), f"the gradient of {name} is not finite")
        require(weight.grad.any(), f"the gradient of {name} is 0")
    model.zero_grad()


@torch.no_grad()
def check_copies(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that a second forward, a copy, and a model with the saved weights compute the same."""
    model.eval()
    output = model(x, mask=mask)
    require(torch.equal(model(x, mask=mask).prediction, output.prediction), "a second forward gives other predictions")
    require(torch.equal(copy.deepcopy(model)(x, mask=mask).prediction, output.prediction), "a copy gives other predictions")
    other = copy.deepcopy(model)
    for weight in other.parameters():
        weight.fill_(0.5)
    other.load_state_dict(model.state_dict(), strict=True)
    require(torch.equal(other(x, mask=mask).prediction, output.prediction), "a model with its weights gives other predictions")
    model.train()


@torch.no_grad()
def check_precision(model: MaskedModel, x: Tensor, mask: Mask) -> None:
    """Checks that the loss is fp32 and close under autocast to bf16, and fp64 and closer in fp64."""
    model.eval()
    output = model(x, mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, mask=mask)
    require(half.loss.dtype == torch.float32, f"under autocast to bf16 the loss is {half.loss.dtype}, not fp32")
    _require_near(half, output, 2e-2, "bf16")
    double = copy.deepcopy(model).double()(x.double(), mask=mask)
    require(double.prediction.dtype == torch.float64, f"a model in fp64 predicts {double.prediction.dtype}")
    _require_near(double, output, 1e-5, "fp64")
    model.train()


def _require_near(found: Output, expected: Output, rate: float, name: str) -> None:
    close = math.isclose(found.loss.item(), expected.loss.item(), rel_tol=rate)
    require(close, f"in {name} the loss is {found.loss.item():.6g}, in fp32 {expected.loss.item():.6g}")


Check = Callable[[MaskedModel, Tensor, Mask], None]
QUICK: dict[str, Check] = {
    "masks depend on each sample's key alone": check_keys,
    "visible and predicted tokens are disjoint": check_sets,
    "the order of units is a permutation": check_order,
    "hidden pixels change nothing": check_hidden,
}
TYPES = "types of what the parts return"
CHECKS: dict[str, Check] = {TYPES: check_types, **QUICK} | {
    "masks lie on the keys' device": check_device,
    "shapes and types": check_shapes,
    "every weight has a gradient": check_gradients,
    "a copy computes the same": check_copies,
    "bf16 and fp64": check_precision,
}


# --- running the checks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        part: kind and name.
        medium: images or clips.
        check: a name in `CHECKS`.
        fault: description of the fault. None: the check passed.
        skipped: the medium was not checked, because no model of it can be built; `fault` is the reason.
    """

    part: str
    medium: str
    check: str
    fault: str | None
    skipped: bool = False


def check_part(kind: str, name: str) -> list[Finding]:
    """Runs all checks on a small model with one part, on images and on clips. torch's generator is not changed.

    A medium for which no model can be built (patches for clips) is skipped. If there is none for either, both are faults.
    """
    found: list[Finding] = []
    refused: list[Finding] = []
    for medium, size in SIZES.items():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            try:
                model = small_model(size, {kind: small_config(kind, name)})
                x, mask = draw(model)
            except Exception as error:  # a user's part may raise anything
                fault = str(error) if isinstance(error, ValueError) else one_line(error)
                refused.append(Finding(f"{kind} {name}", medium, "a small model is built, and its mask drawn", fault))
                continue
            faults = {check: fault_of(run, model, x, mask) for check, run in CHECKS.items()}
            faults = {TYPES: faults[TYPES]} if faults[TYPES] else faults  # the others would fail for the same reason
            found += [Finding(f"{kind} {name}", medium, check, fault) for check, fault in faults.items()]
    return [*found, *(replace(one, skipped=True) for one in refused)] if found else refused


def fault_of(run: Callable[..., object], *arguments: Any) -> str | None:
    """Returns the fault that a check finds, or None. Any error of a part is a fault."""
    try:
        run(*arguments)
    except ContractError as broken:
        return str(broken)
    except Exception as error:  # a user's part may raise anything
        return one_line(error)
    return None


def check_own_parts(model: MaskedModel) -> None:
    """Runs the quick checks on the model of a run if a user's file registered one of its parts.

    Weights and torch's generator are not changed.

    Raises:
        ContractError: a check failed; the message names the part and the fault.
    """
    parts: list[Any] = [model.tokenizer, model.masker, model.encoder, model.decoder, model.target]
    own = [f"{part.config.kind} {part.config.name}" for part in parts if not type(part).__module__.startswith("mmm.")]
    if not own:
        return
    with torch.random.fork_rng(devices=[]):
        x, mask = draw(model, samples=2)
        for name, run in QUICK.items():
            if fault := fault_of(run, model, x, mask):
                raise ContractError(f"{', '.join(own)}: {name}: {fault}; `mmm check FILE` runs all checks")
