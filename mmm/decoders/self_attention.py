"""MAE's decoder (He et al., CVPR 2022, section 3), and VideoMAE's: self-attention over visible and predicted tokens together.

The predictors of I-JEPA (Assran et al., CVPR 2023), V-JEPA 2 (Assran et al., 2025) and V-JEPA 2.1 are this decoder too: each
block of predicted tokens is a row of the mask with the same visible tokens.

Shapes: mB masks, kmB rows of predicted tokens, R prefix tokens, M encoded tokens, Q predicted tokens of which E are visible, D the
encoder's width, d the decoder's, K values predicted a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmm.core.checks import AboveZero, NonNegative
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, Shape
from mmm.decoders.attention import AttentionDecoderConfig, make_positions, place
from mmm.decoders.base import Decoder, decoders
from mmm.decoders.fusion import make_fusion
from mmm.layers.packing import Packing
from mmm.layers.rotary import Rotary, make_rotary
from mmm.layers.transformer import EmbedInit, QKVBias, initialise, make_blocks, make_norm


@decoders.register("self_attention")
class SelfAttentionDecoder(Decoder):
    """Self-attention over the encoded tokens and a mask token for each predicted token.

    Attention does not depend on the order of tokens, so they are not brought into the grid's order; each has its position
    embedding. Hidden tokens that are not predicted are not decoded.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AttentionDecoderConfig):
        qkv_bias: QKVBias = "all"
        """Biases of queries, keys and values (MAE), of queries and values only (VideoMAE), or none."""

        qk_norm: bool = False
        """Normalise queries and keys in each head."""

        layer_scale: AboveZero | None = None
        """Initial value of the learned factors of a block's branches (LayerScale). None: no factors."""

        embed_bias: bool = True
        """Give the linear layer from the encoder's width to the decoder's a bias (MAE) or not (VideoMAE)."""

        embed_init: EmbedInit = "xavier"
        """Initialisation of this layer: Xavier-uniform (MAE), or that of torch (VideoMAE)."""

        head_epsilon: NonNegative | None = None
        """Epsilon of the norm before the head, if it differs from `norm_epsilon` (transformers' VideoMAE: 1e-5)."""

        echo: bool = False
        """Predict visible tokens too, with a separate head (V-JEPA 2.1). The masker must request them (masker.echo)."""

    config: Config
    takes_padding = True

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds it for an encoder of this shape, a home grid and `outputs` values a token, K in all."""
        super().__init__()
        self.config, self.home, self.prefix = config, grid, encoder.prefix
        self.fusion = make_fusion(config, encoder, 1, config.norm_epsilon)
        self.embed = nn.Linear(encoder.width, config.width, bias=config.embed_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = make_positions(config, grid, encoder.prefix)
        self.blocks = make_blocks(
            config.width,
            config.depth,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            epsilon=config.norm_epsilon,
            drop_path=config.drop_path,
            qkv_bias=config.qkv_bias,
            bias=config.bias,
            norm=config.norm,
            activation=config.activation,
            qk_norm=config.qk_norm,
            layer_scale=config.layer_scale,
        )
        last = config.norm_epsilon if config.head_epsilon is None else config.head_epsilon
        self.norm = make_norm(config.norm, config.width, last)
        self.head = nn.Linear(config.width, sum(outputs))
        self.head_echo = nn.Linear(config.width, sum(outputs)) if config.echo else None
        self.apply(initialise)
        if config.embed_init == "torch":
            self.embed.reset_parameters()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, (kmB, Q, K).

        Raises:
            ValueError: the mask requests visible tokens and the decoder has no head for them, or, in training, the reverse.
        """
        tokens, rotary, valid = self._join(features, mask, grid)
        hidden = mask.predict.shape[1] - mask.echo
        # of the last block only the predicted tokens are read, unless visible ones are predicted at their places
        return self._read(self._run(tokens, rotary, valid, last=None if mask.echo else hidden), mask)

    def packed(self, features: Sequence[Features], masks: Sequence[Mask], grids: Sequence[Grid]) -> list[Tensor]:
        """Predictions of batches of different grids, whose tokens go through the blocks as one sequence."""
        if len(masks) == 1:
            return [self(features[0], masks[0], grids[0])]
        groups, rotations, padding = zip(*map(self._join, features, masks, grids), strict=True)
        packing = Packing.of(groups)
        rotary, valid = Rotary.packed(rotations, packing), packing.pack_valid(padding)
        tokens = self._run(packing.pack(groups), rotary, valid, packing=packing)
        return [self._read(group, mask) for group, mask in zip(packing.unpack(tokens), masks, strict=True)]

    def _run(
        self,
        tokens: Tensor,
        rotary: Rotary | None,
        valid: Tensor | None,
        last: int | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Runs the blocks, (B, M, d) -> (B, M, d), or only the last `last` tokens after the last block."""
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, rotary, last if number == len(self.blocks) else None, None, valid, packing)
        return tokens

    def _join(self, features: Features, mask: Mask, grid: Grid) -> tuple[Tensor, Rotary | None, Tensor | None]:
        """Joins encoded tokens and a mask token for each hidden one to predict, (kmB, R + M + Q - E, d).

        Returns:
            The tokens, their rotations or None, and which tokens are not padding, or None if there is no padding.
        """
        if mask.echo and self.head_echo is None:
            raise ValueError(f"the mask asks for {mask.echo} visible tokens; set decoder.echo, or leave masker.echo out")
        if self.training and self.head_echo is not None and not mask.echo:
            raise ValueError("decoder.echo has a head for visible tokens, and the mask asks for none; set masker.echo")
        rows, hidden = len(mask.predict), mask.predict.shape[1] - mask.echo
        asked = mask.predict[:, :hidden]  # (kmB, Q - E)
        seen = self.embed(features.last if self.fusion is None else self.fusion(features)[0])  # (mB, R + M, d)
        queries = self.mask_token.expand(*asked.shape, -1)  # (kmB, Q - E, d)
        table = self.pos_embed if grid == self.home else place(self.pos_embed, self.config, self.home, grid, self.prefix)
        if table is not None:
            prefix, body = table[:, : self.prefix], table[:, self.prefix :]  # (1, R, d), (1, N, d)
            seen = seen + torch.cat([prefix.expand(features.where.shape[0], -1, -1), take(body, features.where)], dim=1)
            queries = queries + take(body, asked)
        rotary = self._rotary(features, asked, grid) if self.config.rotary != "none" else None
        valid = None
        if features.valid is not None and mask.valid_predict is not None:  # both or none
            valid = torch.cat([repeat_rows(features.valid, rows), mask.valid_predict[:, :hidden]], dim=1)  # (kmB, R + M + Q - E)
        return torch.cat([repeat_rows(seen, rows), queries.to(seen.dtype)], dim=1), rotary, valid

    def _read(self, tokens: Tensor, mask: Mask) -> Tensor:
        """Predictions (kmB, Q, K) from the output of the last block, whose last tokens are the hidden ones."""
        hidden, echo = mask.predict.shape[1] - mask.echo, self.head_echo if mask.echo else None
        predicted = self.head(self.norm(tokens[:, tokens.shape[1] - hidden :]))  # (kmB, Q - E, K)
        if echo is None:
            return predicted
        shown = echo(self.norm(tokens[:, self.prefix : self.prefix + mask.echo]))  # (kmB, E, K)
        return torch.cat([predicted, shown], dim=1)

    def _rotary(self, features: Features, asked: Tensor, grid: Grid) -> Rotary | None:
        """The rotations of the encoded tokens and of the hidden ones that are predicted, (kmB, Q - E)."""
        where = torch.cat([repeat_rows(features.where, len(asked)), asked], dim=1)
        channels, dtype = self.config.width // self.config.heads, self.mask_token.dtype
        return make_rotary(self.config.rotary, grid, channels, where, prefix=self.prefix, dtype=dtype)
