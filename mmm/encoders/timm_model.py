"""Any backbone of timm as an encoder: after its first layer, hidden tokens are replaced by a mask token.

Before the first layer, the pixels of hidden tokens are set to 0, so that they do not reach other tokens through overlapping
patches.

Shapes: mB rows of V visible and H blank tokens, N tokens of the grid, P values a token, R prefix tokens, D' channels behind the
first layer, which has s x s places a token, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmm.core.checks import Rate, nearest
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.encoders.base import Encoder, EncoderConfig, encoders
from mmm.encoders.pixels import join_visible

FIRST = ("patch_embed", "stem")  # names of the first layer, behind which tokens can be replaced
Layout = Literal["NLC", "NHWC", "NCHW"]


@encoders.register("timm")
class TimmEncoder(Encoder):
    """A backbone of timm, chosen by its name there; hidden tokens are replaced by a mask token."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        model: str = "vit_base_patch16_224"
        """Name of the architecture: vit_base_patch16_224, beit_base_patch16_224, convnext_tiny ... It starts from random weights;
        for published weights, use --init."""

        drop_path: Rate = 0.0
        """Rate of stochastic depth in the last block, as timm's model distributes it."""

        @property
        def shape(self) -> Shape:
            return describe(self.model).shape

        @property
        def token(self) -> int:
            return describe(self.model).token

    config: Config

    def __init__(
        self, config: Config, *, token: tuple[int, ...], channels: int, grid: Grid, required: RequiredFeatures, blanks: bool = False
    ) -> None:
        """Builds it.

        Args:
            config: the user's choices.
            token: a token's size, in pixels.
            channels: C.
            grid: the home grid. Another grid can be encoded too where timm's model takes one.
            required: the features that the decoder requires.
            blanks: whether masks will blank tokens, which needs a mask token and a first layer behind which it can be put.

        Raises:
            ValueError: the tokens are not the model's, it takes no such size, or its tokens cannot be replaced.
        """
        super().__init__(config, grid=grid, required=required)
        described = describe(config.model)
        if len(token) != 2:
            raise ValueError(f"encoder.model {config.model} is for images; for clips use encoder.name vit or hiera")
        if set(token) != {described.token}:
            raise ValueError(
                f"tokenizer.size {token[-1]}: encoder.model {config.model} makes one feature of {described.token} pixels' side; "
                f"set tokenizer.size {described.token}"
            )
        self.token, self.layout = token, described.layout
        size = (grid[0] * token[0], grid[1] * token[1])
        try:
            self.backbone = create(config.model, size=size, channels=channels, drop_path=config.drop_path)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(f"encoder.model {config.model} cannot be built for inputs of {size}: {error}") from error
        for name, weight in self.backbone.named_parameters():
            weight.requires_grad_(weight.requires_grad and name not in described.unused)
        if blanks:
            self._prepare_blanks()

    def _prepare_blanks(self) -> None:
        """Makes the mask token, of the width of the first layer.

        Raises:
            ValueError: tokens cannot be replaced.
        """
        name, described = self.config.model, describe(self.config.model)
        if described.first is None:
            raise ValueError(
                f"encoder.model {name} has no {' and no '.join(FIRST)} that makes a map of the image, so no tokens can be replaced "
                "by mask tokens; it can only be evaluated or be a teacher"
            )
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.backbone.modules()):
            raise ValueError(f"encoder.model {name} has batch norms, which mix the samples of a batch; choose one without")
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, described.first_width), std=0.02))
        first: Any = getattr(self.backbone, described.first)
        first.__class__ = _replacing(cast(Any, type(first)))  # the names of its weights stay
        self.first = described.first

    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...]) -> Features:
        """Features of the tokens at `where`, (mB, R + M, D); see `Encoder.encode`.

        Raises:
            ValueError: the mask drops tokens, timm's model takes no such size, or does not return the outputs of its blocks.
        """
        shown, tokens = visible.shape[1], math.prod(grid)
        if where.shape[1] != tokens:
            raise ValueError(
                f"encoder.name timm encodes all {tokens} tokens, and the mask shows {where.shape[1]}; set masker.blank"
            )
        x = join_visible(visible, where[:, :shown], grid, self.token)
        hidden = None
        if shown < tokens:
            if self.mask_token is None:
                raise ValueError("the mask blanks tokens, but the encoder has no mask token; build it with masker.blank")
            hidden = torch.zeros(len(x), tokens, dtype=torch.bool, device=x.device).scatter(1, where[:, shown:], True)
            first: Any = getattr(self.backbone, self.first)
            first.hidden = hidden.unflatten(1, grid), self.mask_token
        try:
            last, kept = self._run(x, blocks)
        except (AssertionError, RuntimeError) as error:
            if torch.compiler.is_compiling() or grid == self.home:
                raise
            raise ValueError(
                f"encoder.model {self.config.model} was built for a grid of {self.home}, not {grid}: {error}"
            ) from error
        finally:
            if hidden is not None:
                first.hidden = None
        prefix = self.shape.prefix
        order = where.expand(len(x), -1)
        kept = {number: torch.cat([one[:, :prefix], take(one[:, prefix:], order)], dim=1) for number, one in kept.items()}
        last = torch.cat([last[:, :prefix], take(last[:, prefix:], order)], dim=1) if hidden is not None else last
        return Features(last, prefix, where, kept, self.shape.registers)

    def _run(self, x: Tensor, blocks: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        """The features of an image, (B, R + N, D), and the outputs of blocks."""
        if not blocks:
            return flatten(self.backbone.forward_features(x), self.layout), {}
        prefix = self.shape.prefix
        refusal = f"encoder.model {self.config.model} does not return the outputs of blocks {blocks}; only its last can be read"
        if 0 in blocks or self.layout != "NLC" or not hasattr(self.backbone, "forward_intermediates"):
            raise ValueError(refusal)
        options: dict[str, Any] = {"return_prefix_tokens": True} if prefix else {}
        try:
            indices = [number - 1 for number in blocks]
            last, found = self.backbone.forward_intermediates(x, indices=indices, output_fmt="NLC", **options)
        except TypeError as error:
            raise ValueError(refusal) from error
        outputs = [torch.cat([one[1], one[0]], dim=1) if prefix else one for one in found]
        return last, dict(zip(sorted(blocks), outputs, strict=True))


@dataclass(frozen=True)
class Description:
    """Properties of a backbone, found by running it on the meta device at its usual size.

    Attributes:
        token: side, in pixels, of the square that one feature represents.
        layout: of its output.
        first: the name of its first layer, where that makes a map of the image.
        first_width: D'.
        unused: the names of parameters on which its features do not depend.
    """

    shape: Shape
    token: int
    layout: Layout
    first: str | None
    first_width: int
    unused: frozenset[str]


@cache
def describe(name: str) -> Description:
    """Returns the properties of a backbone of timm.

    Raises:
        ValueError: there is none of this name, or its output is no map of features.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"encoder.model {name!r} is not a model of timm's{nearest(name, timm.list_models())}")
    first: str | None
    # the first call in a process makes a model: weights that are drawn after it must not depend on that
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = create(name)
        usual: Any = timm.get_pretrained_cfg(name)
        channels, *size = usual.input_size if usual else (3, 224, 224)
        found: dict[str, Tensor] = {}
        for first in FIRST:
            if isinstance(getattr(model, first, None), nn.Module):
                getattr(model, first).register_forward_hook(lambda _, __, out, name=first: found.update({name: out}))
        try:
            out = model.forward_features(torch.zeros(1, channels, *size))
            out.sum().backward()
        except (RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"encoder.model {name} cannot be run for its features: {error}") from error
    prefix = int(getattr(model, "num_prefix_tokens", 0)) if out.dim() == 3 else 0
    layout = _layout(out, model.num_features)
    places = math.isqrt(math.prod(out.shape) // model.num_features - prefix) if layout else 0
    exact = out.numel() == (places**2 + prefix) * model.num_features
    if layout is None or not exact or not places or size[0] != size[1] or size[0] % places:
        raise ValueError(f"encoder.model {name} makes {tuple(out.shape)} of an image of {size}, not a square map of features")
    token = size[0] // places
    first = next((first for first, map_ in found.items() if isinstance(map_, Tensor) and _layout(map_, None)), None)
    wide = 0 if first is None else _channels(found[first])
    registers = int(getattr(model, "num_reg_tokens", 0))
    depth = len(model.blocks) if hasattr(model, "blocks") else len(getattr(model, "feature_info", ())) or 1
    unused = frozenset(weight_name for weight_name, weight in model.named_parameters() if weight.grad is None)
    return Description(Shape(model.num_features, depth, prefix, registers, whole=True), token, layout, first, wide, unused)


def create(name: str, *, size: tuple[int, int] | None = None, channels: int = 3, drop_path: float = 0.0) -> Any:
    """Returns a backbone of timm without a head, built for this size if it depends on the size."""
    import timm

    given: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    rate: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    sized: dict[str, Any] = {} if size is None else {"img_size": size}
    pool: dict[str, Any] = {"global_pool": ""}
    tried: tuple[dict[str, Any], ...] = (pool | {"dynamic_img_size": True} | sized, pool | sized, pool, sized, {})
    before = torch.get_rng_state()
    for options in (rate | one for one in tried):
        torch.set_rng_state(before)  # an attempt that fails may have drawn weights
        try:
            return timm.create_model(name, pretrained=False, **given, **options)
        except TypeError as error:  # timm's models differ in the arguments that they take
            refused = error
        except AssertionError as error:
            refused = error  # type: ignore[assignment]
    raise ValueError(str(refused))


def flatten(out: Tensor, layout: Layout) -> Tensor:
    """A map of features as tokens, (B, R + N, D)."""
    return out if layout == "NLC" else out.flatten(1, 2) if layout == "NHWC" else out.flatten(2).transpose(1, 2)


def _layout(out: Tensor, width: int | None) -> Layout | None:
    """The layout of a square map of features, of `width` channels if it is given. None: it is not such a map."""
    if out.dim() == 3:
        return "NLC" if width in (None, out.shape[2]) else None
    if out.dim() == 4 and out.shape[1] == out.shape[2] and width in (None, out.shape[3]):
        return "NHWC"
    if out.dim() == 4 and out.shape[2] == out.shape[3] and width in (None, out.shape[1]):
        return "NCHW"
    return None


def _channels(out: Tensor) -> int:
    """The channels of a map of features."""
    return out.shape[1] if _layout(out, None) == "NCHW" else out.shape[-1]


@cache
def _replacing(kind: type[nn.Module]) -> type[nn.Module]:
    """A first layer of this kind that puts the mask token in hidden places: `hidden` is their map (B, h, w) and the token."""

    class Replacing(kind):  # type: ignore[misc, valid-type]
        hidden: tuple[Tensor, Tensor] | None = None

        def forward(self, x: Tensor) -> Tensor:
            """(B, C, H, W) -> what the layer itself makes of it."""
            out = super().forward(x)
            if self.hidden is None:
                return out
            where, token = self.hidden
            channels_first = out.dim() == 4 and out.shape[1] == token.shape[2] and out.shape[3] != token.shape[2]
            places = math.prod(out.shape[2:] if channels_first else out.shape[1:-1])
            side = math.isqrt(places // math.prod(where.shape[1:]))
            where = where.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)  # (B, h s, w s)
            if channels_first:
                return torch.where(where[:, None], token[0, 0, :, None, None].to(out.dtype), out)
            return torch.where(where.flatten(1)[..., None] if out.dim() == 3 else where[..., None], token[0].to(out.dtype), out)

    Replacing.__name__ = kind.__name__
    return Replacing
