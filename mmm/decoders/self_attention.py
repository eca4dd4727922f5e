"""MAE's decoder (He et al., CVPR 2022, section 3), and VideoMAE's: self-attention over visible and predicted tokens together.

Shapes: mB masks, kmB rows of predicted tokens, R prefix tokens, M encoded tokens, Q predicted tokens, D the encoder's width,
d the decoder's, K values predicted a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmm.core.checks import NonNegative
from mmm.core.mask import Mask
from mmm.core.positions import position_table, positions
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, Shape
from mmm.decoders.attention import AttentionDecoderConfig
from mmm.decoders.base import Decoder, decoders
from mmm.decoders.fusion import make_fusion
from mmm.layers.transformer import EmbedInit, QKVBias, initialise, make_blocks


@decoders.register("self_attention")
class SelfAttentionDecoder(Decoder):
    """Self-attention over the encoded tokens and a mask token for each predicted one.

    Attention has no order, so nothing is unshuffled: each token carries its position. Hidden tokens that are not predicted are
    not decoded.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AttentionDecoderConfig):
        qkv_bias: QKVBias = "all"
        """Biases of queries, keys and values (MAE), of queries and values only (VideoMAE), or none."""

        embed_bias: bool = True
        """Give the layer that takes the encoder's width to the decoder's a bias (MAE), or none (VideoMAE)."""

        embed_init: EmbedInit = "xavier"
        """Start that layer Xavier-uniform (MAE) or as torch does a linear layer (VideoMAE)."""

        head_epsilon: NonNegative | None = None
        """Epsilon of the norm before the head, where it differs (transformers' VideoMAE: 1e-5)."""

    config: Config

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds it for an encoder of this shape, a home grid and `outputs` values a token, K in all."""
        super().__init__()
        self.config, self.home, self.prefix = config, grid, encoder.prefix
        self.fusion = make_fusion(config, encoder, 1, config.norm_epsilon)
        self.embed = nn.Linear(encoder.width, config.width, bias=config.embed_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = position_table(grid, config.width, encoder.prefix, config.positions)
        self.blocks = make_blocks(
            config.width,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            epsilon=config.norm_epsilon,
            qkv_bias=config.qkv_bias,
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon if config.head_epsilon is None else config.head_epsilon)
        self.head = nn.Linear(config.width, sum(outputs))
        self.apply(initialise)
        if config.embed_init == "torch":
            self.embed.reset_parameters()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, (kmB, Q, K)."""
        config = self.config
        table = positions(self.pos_embed, self.home, grid, self.prefix, config.positions, config.resize_positions)  # (1, R + N, d)
        prefix, body = table[:, : self.prefix], table[:, self.prefix :]
        places = torch.cat([prefix.expand(features.where.shape[0], -1, -1), take(body, features.where)], dim=1)
        seen = repeat_rows(self.embed(self.fusion(features)[0]) + places, mask.predict.shape[0])  # (kmB, R + M, d)
        asked = self.mask_token + take(body, mask.predict)  # (kmB, Q, d)
        tokens = torch.cat([seen, asked.to(seen.dtype)], dim=1)  # (kmB, R + M + Q, d)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, seen.shape[1] :]))  # (kmB, Q, K)
