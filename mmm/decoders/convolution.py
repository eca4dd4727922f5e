"""Grouped convolutions over the grid (Baevski et al., "data2vec 2.0", ICML 2023, section 3.3).

Shapes: mB masks, kmB rows of predicted tokens, R prefix tokens, M encoded tokens, N tokens of the grid, Q predicted tokens, D width
of the encoder, d width of the decoder, K predicted values per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import NonNegative, Positive
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, Shape
from mmm.decoders.base import Decoder, DecoderConfig, decoders
from mmm.layers.transformer import initialise


@decoders.register("convolution")
class ConvolutionDecoder(Decoder):
    """Puts the encoded tokens on the grid, with noise at all other positions, and convolves. There are no position embeddings.

    The noise is drawn again in each step; in evaluation mode there is none. Prefix tokens are not used.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(DecoderConfig):
        width: Positive = 768
        """Width of the decoder (data2vec 2.0: 768; its larger models: 1024)."""

        depth: Positive = 6
        """Number of convolutions (data2vec 2.0: 6; its larger models: 3)."""

        kernel: Positive = 3
        """Side of a kernel in tokens, an odd number; for clips also its length (data2vec 2.0: 3; its larger models: 5)."""

        groups: Positive = 16
        """Number of groups of the convolutions."""

        noise: NonNegative = 0.01
        """Standard deviation of the noise at positions that were not encoded."""

        def validate(self) -> None:
            if self.kernel % 2 == 0:
                raise ValueError(f"decoder.kernel {self.kernel} is even, and has no middle; use an odd one")
            if self.width % self.groups:
                raise ValueError(f"decoder.groups {self.groups} does not divide decoder.width {self.width}")

    config: Config
    takes_padding = True  # padding copies a token, and therefore has that token's features

    def __init__(self, config: Config, *, encoder: Shape, grid: Grid, outputs: tuple[int, ...]) -> None:
        """Builds the decoder for an encoder of this shape, grids with the axes of `grid`, and `outputs` values per token, K in all.

        Raises:
            ValueError: the groups do not divide the encoder's width.
        """
        super().__init__()
        if encoder.width % config.groups:
            raise ValueError(f"decoder.groups {config.groups} does not divide the encoder's width {encoder.width}")
        self.config = config
        kind: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(grid)]
        widths = (encoder.width, *(config.width for _ in range(config.depth)))
        self.convolutions = nn.ModuleList(
            kind(before, after, config.kernel, padding=config.kernel // 2, groups=config.groups)
            for before, after in pairwise(widths)
        )
        self.head = nn.Linear(config.width, sum(outputs))
        self.head.apply(initialise)  # convolutions keep torch's initialisation

    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Returns predictions for the tokens in `mask.predict`, (kmB, Q, K)."""
        tokens, rows = features.tokens, len(features.where)
        empty = tokens.new_zeros(rows, math.prod(grid), tokens.shape[2])
        if self.training and self.config.noise:
            empty = torch.randn_like(empty) * self.config.noise
        x = empty.scatter(1, features.where[..., None].expand_as(tokens), tokens)  # (mB, M, D) -> (mB, N, D)
        for convolution in self.convolutions:
            made = convolution(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)  # (mB, N, d)
            made = F.gelu(F.layer_norm(made, made.shape[-1:]))
            x = x + made if made.shape == x.shape else made
        return self.head(take(x, mask.predict))  # (kmB, Q, K)
