"""The configuration that decoders with attention share."""

from __future__ import annotations

from dataclasses import dataclass

from mmm.core.checks import AboveZero, NonNegative, Positive, check_width
from mmm.core.positions import Positions, Resize
from mmm.decoders.fusion import FusedDecoderConfig


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

    positions: Positions = "sine_cosine"
    """Sines and cosines of each axis (MAE), of the token's flat index (VideoMAE), or learned ones (Hiera, Pixio)."""

    resize_positions: Resize = "interpolate"
    """Positions on another grid than the model was built for; see the encoder's."""

    def validate(self) -> None:
        check_width("decoder", self.width, self.heads)
