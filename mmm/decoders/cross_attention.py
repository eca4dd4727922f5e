"""CrossMAE's decoder (Fu et al., "Rethinking Patch Dependence for Masked Autoencoders", TMLR 2025, section 3): each predicted token
attends to the visible tokens and not to other predicted tokens, so that any part of the hidden tokens can be predicted separately.
CAPI's predictor (Darcet et al., 2025, section 3.1) is this decoder with rotary positions. In BootMAE's decoder (Dong et al., ECCV
2022, section 3.3), encoded tokens are queries too.

Shapes: mB masks, kmB rows of predicted tokens, M encoded tokens (including prefix tokens), Q predicted tokens, D width of the
encoder, d width of the decoder, h heads, K predicted values per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import Positive
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.decoders.attention import AttentionDecoderConfig, make_positions, place
from mmm.decoders.base import Decoder, decoders
from mmm.decoders.fusion import make_fusion
from mmm.layers.packing import Packing
from mmm.layers.rotary import Rotary, make_rotary
from mmm.layers.transformer import MLP, CrossAttention, SelfAttention, drop_samples, initialise, make_norm


class CrossBlock(nn.Module):
    """x + [self-attention(norm x)], + cross-attention(norm x, source), + mlp(norm x); the source is already normed."""

    def __init__(self, config: CrossAttentionDecoder.Config, source: int, drop_path: float) -> None:
        super().__init__()
        width, heads, epsilon, kind = config.width, config.heads, config.norm_epsilon, config.norm
        own, bias = config.self_attention, config.bias
        self.norm0 = make_norm(kind, width, epsilon) if own else None
        self.self_attn = SelfAttention(width, heads, "all" if bias else "none", bias=bias) if own else None
        self.norm1 = make_norm(kind, width, epsilon)
        self.cross_attn = CrossAttention(width, source, heads, bias=bias)
        self.norm2 = make_norm(kind, width, epsilon)
        self.mlp = MLP(width, round(width * config.mlp_ratio), activation=config.activation, bias=bias)
        from timm.layers import DropPath  # imported here because importing timm takes longer than importing torch

        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        rotary: tuple[Rotary, Rotary] | None = None,
        valid: tuple[Tensor | None, Tensor | None] = (None, None),
        packing: tuple[Packing, Packing] | None = None,
    ) -> Tensor:
        """Applies the block, (B, Q, d), (B, M, D) -> (B, Q, d).

        Args:
            x: the predicted tokens.
            source: the encoded tokens.
            rotary, valid, packing: for the predicted tokens and for the source; see `Attention`.
        """
        own = None if packing is None else packing[0]
        drop = partial(drop_samples, self.drop_path, packing=own)
        if self.norm0 is not None and self.self_attn is not None:
            turned = None if rotary is None else rotary[0]
            x = x + drop(self.self_attn(self.norm0(x), turned, None, valid[0], own))
        x = x + drop(self.cross_attn(self.norm1(x), source, rotary, valid[1], packing))
        return x + drop(self.mlp(self.norm2(x)))


@decoders.register("cross_attention")
class CrossAttentionDecoder(Decoder):
    """Cross-attention from each predicted token to the encoded tokens. The cost is proportional to the number of predicted
    tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AttentionDecoderConfig):
        depth: Positive = 12
        """Number of blocks."""

        self_attention: bool = False
        """Let the predicted tokens also attend to each other. A prediction then depends on which other tokens are predicted."""

        encoded_queries: bool = False
        """Use the encoder's last output, after its norm, as further queries before the predicted tokens (BootMAE). The predicted
        tokens attend to it by `self_attention`, which must be on."""

        register_places: Literal["none", "around"] = "none"
        """Positions of the encoder's registers as keys, with rotary: none, or around the visible tokens (CAPI), as in the
        encoder."""

        def validate(self) -> None:
            super().validate()
            if self.encoded_queries and not self.self_attention:
                raise ValueError("decoder.encoded_queries needs decoder.self_attention, or nothing reads them")
            if self.register_places == "around" and self.rotary == "none":
                raise ValueError("decoder.register_places around needs decoder.rotary")

        def required_features(self, encoder: Shape) -> RequiredFeatures:
            required = super().required_features(encoder)
            return replace(required, last=True) if self.encoded_queries else required

    config: Config
    takes_padding = True

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds the decoder for an encoder of this shape, a home grid and `outputs` values per token, K in all.

        Raises:
            ValueError: registers are to be placed around the tokens, and their number is not a positive multiple of 4, or the input
                is not an image.
        """
        super().__init__()
        self.config, self.home, self.prefix = config, grid, encoder.prefix
        self.around = encoder.registers if config.register_places == "around" else 0
        if config.register_places == "around" and (not self.around or self.around % 4 or len(grid) != 2):
            raise ValueError(
                f"decoder.register_places around needs images and encoder.registers above 0 and divisible by 4, not {self.around}"
            )
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, config.width), std=0.02))
        self.pos_embed = make_positions(config, grid, encoder.prefix)
        self.embed = nn.Linear(encoder.width, config.width) if config.encoded_queries else None
        self.fusion = make_fusion(config, encoder, config.depth, config.norm_epsilon)
        rates = [config.drop_path * number / max(config.depth - 1, 1) for number in range(config.depth)]
        self.blocks = nn.ModuleList(CrossBlock(config, encoder.width, rate) for rate in rates)
        self.norm = make_norm(config.norm, config.width, config.norm_epsilon)
        self.head = nn.Linear(config.width, sum(outputs))
        self.apply(initialise)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Returns predictions for the tokens in `mask.predict`, (kmB, Q, K).

        Raises:
            ValueError: the mask predicts visible tokens.
        """
        (x, valid), rotary = self._queries(features, mask, grid), self._rotary(features, mask, grid)
        for block, source in zip(self.blocks, self._sources(features), strict=True):
            x = block(x, repeat_rows(source, x.shape[0]), rotary, valid)  # (mB, M, D) -> (kmB, M, D)
        return self.head(self.norm(x[:, -mask.predict.shape[1] :]))  # (kmB, Q, K)

    def packed(self, features: Sequence[Features], masks: Sequence[Mask], grids: Sequence[Grid]) -> list[Tensor]:
        """Returns predictions for batches with different grids, whose tokens pass through the blocks as one sequence."""
        if len(masks) == 1:
            return [self(features[0], masks[0], grids[0])]
        groups, padding = zip(*map(self._queries, features, masks, grids), strict=True)
        sources = [
            [repeat_rows(source, len(group)) for source in self._sources(one)] for one, group in zip(features, groups, strict=True)
        ]  # for each group and block, (kmB, M, D)
        packing = Packing.of(groups), Packing.of([one[0] for one in sources])
        valid = tuple(own.pack_valid(some) for some, own in zip(zip(*padding, strict=True), packing, strict=True))
        rotary, turns = None, [one for one in map(self._rotary, features, masks, grids) if one is not None]
        if turns:
            rotary = tuple(Rotary.packed(some, own) for some, own in zip(zip(*turns, strict=True), packing, strict=True))
        x = packing[0].pack(groups)
        for number, block in enumerate(self.blocks):
            x = block(x, packing[1].pack([one[number] for one in sources]), rotary, valid, packing)
        parts = zip(packing[0].unpack(x), masks, strict=True)
        return [self.head(self.norm(part[:, -mask.predict.shape[1] :])) for part, mask in parts]

    def _sources(self, features: Features) -> list[Tensor]:
        """Returns the tokens that each block reads, (mB, M, D)."""
        return [features.last] * len(self.blocks) if self.fusion is None else list(self.fusion(features))

    def _queries(self, features: Features, mask: Mask, grid: Grid) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        """Returns a mask token with its position for each predicted token, after the encoded tokens if these are queries too.

        Returns:
            The queries, (kmB, Q or R + M + Q, d), and the masks of valid queries and of valid encoded tokens, if there is padding.
        """
        if mask.echo:
            raise ValueError(
                "decoder.name cross_attention predicts no visible tokens; use self_attention, or leave masker.echo out"
            )
        x = self.mask_token.expand(*mask.predict.shape, -1)  # (kmB, Q, d)
        table = place(self.pos_embed, self.config, self.home, grid, self.prefix)
        x = x if table is None else x + take(table[:, self.prefix :], mask.predict)
        rows, valid_predict = x.shape[0], mask.valid_predict
        valid = None if features.valid is None else repeat_rows(features.valid, rows)
        if self.embed is not None:
            x = torch.cat([repeat_rows(self.embed(features.last), rows), x], dim=1)  # (kmB, R + M + Q, d)
            if valid is not None and valid_predict is not None:  # a mask has both or neither
                valid_predict = torch.cat([valid, valid_predict], dim=1)
        return x, (valid_predict, valid)

    def _rotary(self, features: Features, mask: Mask, grid: Grid) -> tuple[Rotary, Rotary] | None:
        """Returns the rotations of the queries and of the encoded tokens."""
        kind, channels, dtype = self.config.rotary, self.config.width // self.config.heads, self.mask_token.dtype
        where, asked, prefix = repeat_rows(features.where, len(mask.predict)), mask.predict, 0
        keys = make_rotary(kind, grid, channels, where, prefix=self.prefix, around=self.around, dtype=dtype)
        if self.embed is not None:
            asked, prefix = torch.cat([where, asked], dim=1), self.prefix
        queries = make_rotary(kind, grid, channels, asked, prefix=prefix, dtype=dtype)
        return None if queries is None or keys is None else (queries, keys)
