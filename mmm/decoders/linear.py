"""A linear prediction from each hidden token's own feature (Xie et al., "SimMIM", CVPR 2022; MaskFeat, BEiT).

Shapes: mB masks, kmB rows of predicted tokens, M encoded tokens, N tokens of the grid, Q predicted, D width, K values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.decoders.base import Decoder, DecoderConfig, decoders
from mmm.layers.transformer import initialise


@decoders.register("linear")
class LinearDecoder(Decoder):
    """One linear layer; needs a mask that blanks the hidden tokens, so that the encoder has a feature for each."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DecoderConfig):
        def required_features(self, encoder: Shape) -> RequiredFeatures:
            return RequiredFeatures(last=True, hidden=True)

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds it for an encoder of this shape and `outputs` values a token, K in all; any grid will do."""
        super().__init__()
        self.config = config
        self.head = nn.Linear(encoder.width, sum(outputs))
        self.apply(initialise)

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, (kmB, Q, K)."""
        where = features.where  # (mB, M)
        standing = torch.arange(where.shape[1], device=where.device).expand_as(where)
        nowhere = where.new_full((len(where), math.prod(grid)), -1)
        slots = nowhere.scatter(1, where, standing)  # place on the grid -> place in M
        slots = repeat_rows(slots, len(mask.predict)).gather(1, mask.predict)  # (kmB, Q)
        # elsewhere than on a CPU this look would wait for the device, whose own gather refuses -1
        if slots.device.type == "cpu" and not torch.compiler.is_compiling() and slots.min() < 0:
            raise ValueError("a token is to be predicted that the encoder did not see, not even as a blank; add it to mask.blank")
        return self.head(take(features.tokens, slots))  # (kmB, Q, K)
