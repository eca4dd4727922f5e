"""CrossMAE's decoder (Fu et al., "Rethinking Patch Dependence for Masked Autoencoders", TMLR 2025, section 3): each predicted token
reads the visible ones, and none of the others, so any part of the hidden tokens can be predicted by itself.

Shapes: mB masks, kmB rows of predicted tokens, M encoded tokens (prefix among them), Q predicted tokens, D the encoder's width,
d the decoder's, h heads, K values predicted a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mmm.core.checks import Positive
from mmm.core.mask import Mask
from mmm.core.positions import position_table, positions
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, Shape
from mmm.decoders.attention import AttentionDecoderConfig
from mmm.decoders.base import Decoder, decoders
from mmm.decoders.fusion import make_fusion
from mmm.layers.transformer import MLP, CrossAttention, SelfAttention, initialise


class CrossBlock(nn.Module):
    """x + [self-attention(norm x)], + cross-attention(norm x, source), + mlp(norm x); the source comes normed."""

    def __init__(self, width: int, source: int, heads: int, *, mlp_ratio: float, epsilon: float, self_attention: bool) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=epsilon)
        self.norm0 = norm(width) if self_attention else None
        self.self_attn = SelfAttention(width, heads) if self_attention else None
        self.norm1 = norm(width)
        self.cross_attn = CrossAttention(width, source, heads)
        self.norm2 = norm(width)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, Q, d), (B, M, D) -> (B, Q, d)."""
        if self.norm0 is not None and self.self_attn is not None:
            x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), source)
        return x + self.mlp(self.norm2(x))


@decoders.register("cross_attention")
class CrossAttentionDecoder(Decoder):
    """Cross-attention from each predicted token to the encoded ones; a predicted token costs the same whoever else is predicted."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AttentionDecoderConfig):
        depth: Positive = 12
        """Number of blocks."""

        self_attention: bool = False
        """Let the predicted tokens also attend to each other; then a prediction depends on which others are asked for."""

    config: Config

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds it for an encoder of this shape, a home grid and `outputs` values a token, K in all."""
        super().__init__()
        self.config, self.home, self.prefix = config, grid, encoder.prefix
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, config.width), std=0.02))
        self.pos_embed = position_table(grid, config.width, encoder.prefix, config.positions)
        self.fusion = make_fusion(config, encoder, config.depth, config.norm_epsilon)
        self.blocks = nn.ModuleList(
            CrossBlock(
                config.width,
                encoder.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                epsilon=config.norm_epsilon,
                self_attention=config.self_attention,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = nn.Linear(config.width, sum(outputs))
        self.apply(initialise)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, (kmB, Q, K)."""
        config = self.config
        table = positions(self.pos_embed, self.home, grid, self.prefix, config.positions, config.resize_positions)  # (1, R + N, d)
        x = self.mask_token + take(table[:, self.prefix :], mask.predict)  # (kmB, Q, d)
        for block, source in zip(self.blocks, self.fusion(features), strict=True):
            x = block(x, repeat_rows(source, x.shape[0]))  # (mB, M, D) -> (kmB, M, D)
        return self.head(self.norm(x))  # (kmB, Q, K)
