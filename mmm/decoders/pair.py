"""Two decoders, one for each target of a pair, which may read different blocks of the encoder (Dong et al., "BootMAE", ECCV 2022).

Shapes: kmB rows of Q predicted tokens, K1 and K2 values a token of the two targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.decoders.base import Decoder, DecoderConfig, decoders
from mmm.decoders.cross_attention import CrossAttentionDecoder
from mmm.decoders.self_attention import SelfAttentionDecoder


@decoders.register("pair")
class PairDecoder(Decoder):
    """A decoder for the first target of target.name pair, and one for the second."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DecoderConfig):
        first: DecoderConfig = SelfAttentionDecoder.Config()
        """The decoder of the first target."""

        second: DecoderConfig = CrossAttentionDecoder.Config()
        """The decoder of the second target."""

        def required_features(self, encoder: Shape) -> RequiredFeatures:
            """Returns all that either requires."""
            first, second = self.first.required_features(encoder), self.second.required_features(encoder)
            blocks = tuple(sorted({*first.blocks, *second.blocks}))
            return RequiredFeatures(first.last or second.last, blocks, first.hidden or second.hidden)

    config: Config

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds both, for the K1 and K2 values of `outputs`.

        Raises:
            ValueError: there are not two targets.
        """
        super().__init__()
        if len(outputs) != 2:
            raise ValueError(f"decoder.name pair needs target.name pair; this target has {len(outputs)} parts")
        self.config = config
        self.first = decoders.build(config.first, encoder=encoder, grid=grid, outputs=outputs[:1])
        self.second = decoders.build(config.second, encoder=encoder, grid=grid, outputs=outputs[1:])
        self.takes_padding = self.first.takes_padding and self.second.takes_padding

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, the first target's values and then the second's, (kmB, Q, K1 + K2)."""
        return torch.cat([self.first(features, mask, grid), self.second(features, mask, grid)], dim=2)
