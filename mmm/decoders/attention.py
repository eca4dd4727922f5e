"""The configuration that decoders with attention share, and their positions.

Shapes: kmB rows of predicted tokens, R prefix tokens, N tokens of the grid, d the decoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mmm.core.checks import AboveZero, NonNegative, Positive, Rate, check_width
from mmm.core.positions import Positions, Resize, position_table, positions
from mmm.core.tokens import Grid
from mmm.decoders.fusion import FusedDecoderConfig
from mmm.layers.rotary import RotaryKind, check_rotary
from mmm.layers.transformer import Activation, Norm


@dataclass(frozen=True, kw_only=True)
class AttentionDecoderConfig(FusedDecoderConfig):
    """Base of the `Config` of decoders with attention: the sizes of their blocks, and the positions of their tokens."""

    width: Positive = 512
    """Width of the decoder."""

    depth: Positive = 8
    """Number of blocks."""

    heads: Positive = 16
    """Number of attention heads."""

    mlp_ratio: AboveZero = 4.0
    """Hidden width of a block's MLP over its width."""

    norm_epsilon: NonNegative = 1e-6
    """Epsilon of the layer norms (MAE: 1e-6; transformers: 1e-12)."""

    positions: Positions | Literal["none"] = "sine_cosine"
    """Sines and cosines of each axis (MAE), of the token's flat index (VideoMAE), learned ones (Hiera, Pixio), or none (V-JEPA 2,
    which has rotary positions)."""

    resize_positions: Resize = "interpolate"
    """Positions on another grid than the model was built for; see the encoder's."""

    rotary: RotaryKind = "none"
    """Rotary positions, in addition to `positions`; see the encoder's (V-JEPA 2: axial, released weights: vjepa2)."""

    drop_path: Rate = 0.0
    """Rate of stochastic depth in the last block, rising linearly from the first."""

    norm: Norm = "layer"
    """Norms over a token's values: layer norms, or without mean and bias (rms)."""

    activation: Activation = "gelu"
    """Between the layers of a block's MLP: GELU, or a gate (swiglu), for which `mlp_ratio` is usually 8/3."""

    bias: bool = True
    """Give the linear layers of blocks a bias. Where a decoder has `qkv_bias`, that decides for queries, keys and values."""

    def validate(self) -> None:
        check_width("decoder", self.width, self.heads)
        check_rotary("decoder", self.rotary, self.width, self.heads)
        if self.positions == "none" and self.rotary == "none":
            raise ValueError("decoder.positions none needs decoder.rotary: without either, all mask tokens are alike")
        if self.positions in ("learned", "none") and self.resize_positions == "recompute":
            raise ValueError("decoder.resize_positions recompute needs fixed positions; with others use interpolate")


def make_positions(config: AttentionDecoderConfig, grid: Grid, prefix: int) -> nn.Parameter | None:
    """The stored table (1, R + N, d), or None."""
    return None if config.positions == "none" else position_table(grid, config.width, prefix, config.positions)


def place(table: nn.Parameter | None, config: AttentionDecoderConfig, home: Grid, grid: Grid, prefix: int) -> Tensor | None:
    """The positions of prefix tokens and of the tokens of a grid, (1, R + N, d), or None."""
    if table is None:
        return None
    kind: Any = config.positions
    return positions(table, home, grid, prefix, kind, config.resize_positions)
