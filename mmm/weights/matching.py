"""Matches stored weights with those of a model. Each name on both sides is used, or reported in an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.positions import flat_sine_cosine

Names = Callable[[str], tuple[str, ...] | None]
"""Maps the name of a weight of the model to the stored names whose concatenated tensors form it. (): files do not contain it; None:
the format does not support it."""

# options of blocks that do not follow from weights, and their values in all formats except that of mmm
BLOCK_CHOICES = {
    "rotary": "none",
    "norm": "layer",
    "activation": "gelu",
    "bias": True,
    "qk_norm": False,
    "layer_scale": None,
    "relative_bias": "none",
    "class_tokens": 1,
    "registers": 0,
    "last_norm_weight": True,
}
LISTED = 8  # number of names that an error lists; the others are counted


def match_state_dict(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Checks that stored tensors fit a model, by name and shape.

    Args:
        found: stored tensors.
        expected: tensors of the right shapes, for instance on the meta device.
        source: path of the stored tensors, for the error.

    Raises:
        ValueError: weights are missing or unexpected, have another shape or type, or are not finite. The message names them.
    """
    both = [name for name in expected if name in found]
    problems = [
        ("lacks {}", [name for name in expected if name not in found]),
        ("has {}, which the model does not have", [name for name in found if name not in expected]),
        ("{}", [_mismatch(name, found[name], expected[name]) for name in both]),
    ]
    said = [text.format(shorten_list(names)) for text, names in problems if any(names)]
    if said:
        raise ValueError(f"{source} does not fit: it {'; '.join(said)}")
    broken = [name for name in both if found[name].is_floating_point() and not found[name].isfinite().all()]
    if broken:
        raise ValueError(f"{source} holds NaN or infinity in {shorten_list(broken)}; use an earlier checkpoint")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], names: Names, source: str) -> None:
    """Copies stored tensors into a model. Parts on the meta device are allocated once everything matches.

    Raises:
        ValueError: see `match_state_dict`; it names the tensors as the file does.
    """
    own = model.state_dict()
    stored = {ours: (ours,) if (theirs := names(ours)) is None else theirs for ours in own}
    shares = {name: own[ours].chunk(len(theirs))[0] for ours, theirs in stored.items() for name in theirs if own[ours].dim()}
    scalars = {name: own[ours] for ours, theirs in stored.items() for name in theirs if not own[ours].dim()}
    match_state_dict(tensors, shares | scalars, source)
    _allocate(model)
    weights = {ours: torch.cat([tensors[name] for name in theirs]) for ours, theirs in stored.items() if len(theirs) > 1}
    weights |= {ours: tensors[theirs[0]] for ours, theirs in stored.items() if len(theirs) == 1}
    model.load_state_dict(model.state_dict() | weights)


def tensors_under(
    model: nn.Module, names: Names, title: str, choices: Mapping[str, Any] = MappingProxyType(BLOCK_CHOICES)
) -> dict[str, Tensor]:
    """Returns the weights of a model under the names of a format, as views.

    Args:
        choices: the fixed values of the format for options that do not follow from weights.

    Raises:
        ValueError: the format does not support some weights or options of a block; the message names them.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        kind = getattr(config, "kind", "")
        for name, usual in choices.items() if kind in ("encoder", "decoder") and hasattr(config, "heads") else ():
            value = getattr(config, name, usual)
            if value != usual:
                raise ValueError(f"{title} cannot hold {kind}.{name} {value}; export --to folder, which mmm.load takes")
    foreign = [ours for ours in model.state_dict() if names(ours) is None]
    if foreign:
        raise ValueError(f"{title} cannot hold {shorten_list(foreign)}")
    found: dict[str, Tensor] = {}
    for ours, value in model.state_dict().items():
        theirs = names(ours) or ()
        found |= dict(zip(theirs, value.chunk(len(theirs)) if len(theirs) > 1 else [value] * len(theirs), strict=True))
    return found


def renamed(name: str, table: Iterable[Sequence[str]]) -> str | None:
    """Returns `name` renamed by the first matching row (old, new); an old name that ends in a dot is a prefix. None: no row
    matches."""
    for old, new in table:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return None


def shorten_list(names: Iterable[str]) -> str:
    """Returns the first few names and the number of the others; empty names are skipped."""
    present = [name for name in names if name]
    more = f" and {len(present) - LISTED} more" if len(present) > LISTED else ""
    return ", ".join(present[:LISTED]) + more


def _mismatch(name: str, value: Tensor, expected: Tensor) -> str:
    """Returns the reason why a tensor does not fit, or an empty string."""
    if value.shape != expected.shape:
        return f"has {name} as {tuple(value.shape)} instead of {tuple(expected.shape)}"
    if value.is_floating_point() != expected.is_floating_point() or value.layout is not torch.strided:
        return f"has something else than dense real numbers under {name}"
    return ""


@torch.no_grad()
def _allocate(model: nn.Module) -> None:
    """Allocates parts that are on the meta device, and computes the positions that files do not contain."""
    for part in model.children():
        if not any(weight.is_meta for weight in part.parameters()):
            continue
        assert {name for name, _ in part.named_buffers()} <= part.state_dict().keys(), "a buffer that no file would fill"
        part.to_empty(device="cpu")
        table: Any = getattr(part, "pos_embed", None)
        if table is not None and getattr(part.config, "positions", None) == "flat_sine_cosine":
            tokens = table.shape[1] - (part.prefix if hasattr(part, "prefix") else part.shape.class_tokens)  # type: ignore[union-attr]
            table.zero_()
            table[0, table.shape[1] - tokens :] = flat_sine_cosine(tokens, table.shape[2]).float()
