"""Any vision model of transformers as an encoder of whole images: a frozen teacher, or a model to evaluate.

Shapes: B samples, C channels, H, W a sample's sides, N tokens of the grid, R prefix tokens, L = R + N, D width.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.tokens import Grid
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.encoders.base import Encoder, EncoderConfig
from mmm.encoders.pixels import join_visible

MOST_PREFIX = 32  # class tokens and registers that a model may have


class TransformersEncoder(Encoder):
    """A vision model of transformers that is loaded with its weights. It is not trained here and cannot be chosen by a config."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        kind_of_model: str = "vit"
        """The `model_type` in config.json."""

        width: int = 768
        """Width of its features."""

        depth: int = 12
        """Number of its hidden states after the first."""

        prefix: int = 1
        """Number of tokens before those of the grid."""

        registers: int = 0
        """Number of the last of these that are registers."""

        side: int = 16
        """Side, in pixels, of the square that one feature represents."""

        @property
        def shape(self) -> Shape:
            return Shape(self.width, self.depth, self.prefix, self.registers, whole=True)

        @property
        def token(self) -> int:
            return self.side

    config: Config

    def __init__(self, config: Config, backbone: nn.Module, *, grid: Grid) -> None:
        """Wraps a model whose properties `describe` found."""
        super().__init__(config, grid=grid, required=RequiredFeatures())
        self.backbone = backbone
        self.resizes = "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters

    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...]) -> Features:
        """Features of all tokens of an image, (B, R + N, D); see `Encoder.encode`.

        Raises:
            ValueError: a mask hides tokens, the model takes no such size, or its blocks have other shapes than its output.
        """
        kind = self.config.kind_of_model
        if len(where) != 1 or where.shape[1] != math.prod(grid):
            raise ValueError(
                f"transformers' {kind} is read for whole images, and takes no masks; load an encoder of mmm's own formats"
            )
        x = join_visible(visible, where, grid, (self.config.side,) * 2)
        options: dict[str, Any] = {"interpolate_pos_encoding": True} if self.resizes and grid != self.home else {}
        try:
            found = self.backbone(pixel_values=x, output_hidden_states=bool(blocks), return_dict=True, **options)
        except (ValueError, RuntimeError) as error:
            if grid == self.home:
                raise
            raise ValueError(f"transformers' {kind} is for a grid of {self.home}, not {grid}: {error}") from error
        last = as_tokens(found.last_hidden_state)
        kept = {number: as_tokens(found.hidden_states[number]) for number in blocks}
        if any(one.shape != last.shape for one in kept.values()):
            raise ValueError(
                f"the blocks {blocks} of transformers' {kind} have other shapes than its output; only its last can be read"
            )
        return Features(last, self.config.prefix, where, kept, self.config.registers)


def as_tokens(out: Tensor) -> Tensor:
    """An output (B, L, D), or a map (B, D, H', W'), as tokens."""
    return out.flatten(2).transpose(1, 2) if out.dim() == 4 else out


@torch.no_grad()
def describe(backbone: nn.Module, settings: Any, *, size: int, channels: int) -> TransformersEncoder.Config:
    """Returns the properties of a model, found by running it on a black image.

    Raises:
        ValueError: it makes no square map of features.
    """
    kind = settings.model_type
    try:
        found: Any = backbone(pixel_values=torch.zeros(1, channels, size, size), output_hidden_states=True, return_dict=True)
        out = found.last_hidden_state
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"transformers' {kind} cannot be run for its features: {error}") from error
    patch, length = getattr(settings, "patch_size", None), as_tokens(out).shape[1]
    prefix = length - (size // patch) ** 2 if isinstance(patch, int) and out.dim() == 3 else 0
    prefix = prefix if 0 <= prefix <= MOST_PREFIX else 0
    side = math.isqrt(length - prefix)
    if side**2 != length - prefix or size % side:
        raise ValueError(f"transformers' {kind} makes {tuple(out.shape)} of an image of {size} pixels, no square map of features")
    registers = min(int(getattr(settings, "num_register_tokens", 0) or 0), prefix)
    states = getattr(found, "hidden_states", None) or ()
    return TransformersEncoder.Config(
        kind_of_model=kind,
        width=as_tokens(out).shape[2],
        depth=max(len(states) - 1, 1),
        prefix=prefix,
        registers=registers,
        side=size // side,
    )
