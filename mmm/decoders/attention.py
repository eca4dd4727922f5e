"""What every decoder is told that attends."""

from __future__ import annotations

from dataclasses import dataclass

from mmm.core.checks import check_positive, check_width
from mmm.core.tokens import Fixed, Resize
from mmm.decoders.fusion import FusedDecoderConfig


@dataclass(frozen=True, kw_only=True)
class AttentionDecoderConfig(FusedDecoderConfig):
    """What every decoder is told that attends: the sizes of its blocks, and its tokens' positions."""

    width: int = 512
    """Width of the decoder."""

    depth: int = 8
    """Number of blocks."""

    heads: int = 16
    """Number of attention heads."""

    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width."""

    norm_epsilon: float = 1e-6
    """Epsilon of the layer norms (MAE: 1e-6; transformers: 1e-12)."""

    positions: Fixed = "sine_cosine"
    """Sines and cosines of each axis (MAE), or of the token's flat index (VideoMAE)."""

    resize_positions: Resize = "interpolate"
    """Positions on another grid than the model was built for; see the encoder's."""

    def __post_init__(self) -> None:
        check_positive(self, "width", "depth", "heads")
        check_width("decoder", self.width, self.heads)
