"""A linear prediction from each token's feature (Xie et al., "SimMIM", CVPR 2022; MaskFeat, BEiT), or from its features in several
blocks (Li et al., "Unmasked Teacher", ICCV 2023).

Shapes: mB masks, kmB rows of predicted tokens, M encoded tokens, N tokens of the grid, Q predicted tokens, D width, K values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import NonNegative, Positive
from mmm.core.mask import Mask
from mmm.core.positions import Fixed, fixed_positions
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.decoders.base import Decoder, DecoderConfig, decoders
from mmm.layers.transformer import initialise


@decoders.register("linear")
class LinearDecoder(Decoder):
    """One linear layer, or one for each of several blocks. Needs an encoder feature for each predicted token: a mask that replaces
    hidden tokens by blanks, or that predicts only visible tokens (masker.predict_visible)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DecoderConfig):
        levels: tuple[Positive, ...] | None = None
        """The encoder's blocks, counted from 1, each of which predicts its own target, after one shared norm (UMT: the last six);
        there must be as many blocks as targets. None: the last output predicts all targets."""

        positions: Fixed | Literal["none"] = "none"
        """Positions that are added to the normed outputs of the levels (UMT: flat_sine_cosine)."""

        norm: bool = False
        """Norm the predictions of each level over a token's values (UMT)."""

        norm_epsilon: NonNegative = 1e-6
        """Epsilon of these norms."""

        def validate(self) -> None:
            if self.levels is None and (self.norm or self.positions != "none"):
                raise ValueError("decoder.norm and decoder.positions are for decoder.levels; set those")
            if self.levels == ():
                raise ValueError("decoder.levels is empty; give blocks, or none for the last output")

        def required_features(self, encoder: Shape) -> RequiredFeatures:
            if self.levels is None:
                return RequiredFeatures(last=True, hidden=True)
            if encoder.stages or max(self.levels) > encoder.depth or encoder.depth not in self.levels:
                raise ValueError(
                    f"decoder.levels {self.levels} must be blocks of one width among 1 to {encoder.depth}, the last one among them"
                )
            return RequiredFeatures(last=False, blocks=self.levels, hidden=True)

    config: Config
    takes_padding = True

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds the decoder for an encoder of this shape, any grid, and `outputs` values per token, K in all.

        Raises:
            ValueError: the number of levels is not that of the targets.
        """
        super().__init__()
        self.config, levels = config, config.levels
        if levels is None:
            self.head = nn.Linear(encoder.width, sum(outputs))
        else:
            if len(levels) != len(outputs):
                raise ValueError(f"decoder.levels {levels} are {len(levels)} blocks for {len(outputs)} targets; give one for each")
            self.level_norm = nn.LayerNorm(encoder.width, eps=config.norm_epsilon)
            self.heads = nn.ModuleList(nn.Linear(encoder.width, width) for width in outputs)
            last = (nn.LayerNorm(width, eps=config.norm_epsilon) if config.norm else nn.Identity() for width in outputs)
            self.norms = nn.ModuleList(last)
        self.apply(initialise)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Returns predictions for the tokens in `mask.predict`, (kmB, Q, K)."""
        where = features.where  # (mB, M)
        standing = torch.arange(where.shape[1], device=where.device).expand_as(where)
        nowhere = where.new_full((len(where), math.prod(grid)), -1)
        slots = nowhere.scatter(1, where, standing)  # position on the grid -> index in M
        slots = repeat_rows(slots, len(mask.predict)).gather(1, mask.predict)  # (kmB, Q)
        # checked only on a CPU, because the check would wait for another device, whose own gather rejects -1
        if slots.device.type == "cpu" and not torch.compiler.is_compiling() and slots.min() < 0:
            raise ValueError(
                "mask.predict has a token that the encoder did not get, neither visible nor blank; add it to mask.blank"
            )
        if self.config.levels is None:
            return self.head(take(features.tokens, slots))  # (kmB, Q, K)
        levels = [self.level_norm(take(features.blocks[block][:, features.prefix :], slots)) for block in self.config.levels]
        if self.config.positions != "none":
            table = fixed_positions(grid, levels[0].shape[-1], self.config.positions).to(levels[0])
            levels = [level + take(table[None], mask.predict) for level in levels]
        parts = zip(self.norms, self.heads, levels, strict=True)
        return torch.cat([norm(head(level)) for norm, head, level in parts], dim=-1)
