"""MAE's decoder (He et al., CVPR 2022, section 3): self-attention over visible and predicted tokens together.

Shapes: mB masks, kmB rows of predicted tokens, R prefix tokens, M encoded tokens, Q predicted tokens, D the encoder's width,
d the decoder's, K values predicted a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmm.blocks import initialise, make_blocks
from mmm.checks import check_positive, check_width
from mmm.decoders.base import Decoder, decoders
from mmm.decoders.fusion import FusedDecoderConfig, make_fusion
from mmm.interfaces import Features, Shape
from mmm.mask import Mask
from mmm.tokens import Grid, position_table, positions, repeat_rows, take


@decoders.register("self_attention")
class SelfAttentionDecoder(Decoder):
    """Self-attention over the encoded tokens and a mask token for each predicted one.

    Attention has no order, so nothing is unshuffled: each token carries its position. Hidden tokens that are not predicted are
    not decoded.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FusedDecoderConfig):
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

        def __post_init__(self) -> None:
            check_positive(self, "width", "depth", "heads")
            check_width("decoder", self.width, self.heads)

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: int) -> None:
        """Builds it for an encoder of this shape, a home grid and `outputs` (K) values a token."""
        super().__init__()
        self.config, self.home, self.prefix = config, grid, encoder.prefix
        self.fusion = make_fusion(config, encoder, 1, config.norm_epsilon)
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = position_table(grid, config.width, encoder.prefix, fixed=True)
        self.blocks = make_blocks(config.width, config.depth, config.heads, mlp_ratio=config.mlp_ratio, epsilon=config.norm_epsilon)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = nn.Linear(config.width, outputs)
        self.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, (kmB, Q, K)."""
        table = positions(self.pos_embed, self.home, grid, self.prefix, fixed=True)  # (1, R + N, d)
        prefix, body = table[:, : self.prefix], table[:, self.prefix :]
        places = torch.cat([prefix.expand(len(features.where), -1, -1), take(body, features.where)], dim=1)
        seen = repeat_rows(self.embed(self.fusion(features)[0]) + places, len(mask.predict))  # (kmB, R + M, d)
        asked = self.mask_token + take(body, mask.predict)  # (kmB, Q, d)
        tokens = torch.cat([seen, asked.to(seen.dtype)], dim=1)  # (kmB, R + M + Q, d)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, seen.shape[1] :]))  # (kmB, Q, K)
