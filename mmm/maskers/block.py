"""Block-wise masking (Bao et al., "BEiT", ICLR 2022, algorithm 1), vectorised and with exact counts.

Shapes: B samples, R rectangles drawn for each, U = H' W' places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmm.core.checks import Fraction, Share
from mmm.core.rng import permutation, uniform
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, columns, maskers

# of 100,000 masks of 14 x 14 at a ratio of 0.75, 99.69 % are full after 16 rectangles and all after 32; at 0.9, 99.3 % after 32
RECTANGLES = 32
ASPECTS = 1024  # steps from `aspect` to its inverse: a table, because exp differs by a bit from device to device


@maskers.register("block")
class BlockMasker(Masker):
    """Hides rectangles until the count is reached; of clips, the same ones in every frame.

    BEiT's own loop stops at or before the count, with a number of tokens that varies. Here rectangles are drawn for all samples
    at once and tokens are hidden in the order of the first rectangle that covers them, so the last one is cut to the exact
    count, at random places. In the rare case that all together cover too little, single tokens fill up.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        ratio: Fraction = 0.6
        """Fraction of all tokens that are hidden."""

        smallest: Share = 0.08
        """Area of the smallest rectangle, as a fraction of the image (BEiT: 16 of 196 tokens)."""

        largest: Share = 0.4
        """Area of the largest rectangle, as a fraction of the image."""

        aspect: Share = 0.3
        """Rectangles are between `aspect` and 1 / `aspect` times as high as wide."""

        def validate(self) -> None:
            super().validate()
            if self.smallest > self.largest:
                raise ValueError(f"masker.smallest {self.smallest:g} is above masker.largest {self.largest:g}")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        steps = [(2 * step + 1) / ASPECTS - 1 for step in range(ASPECTS)]  # -1 to 1
        self.aspects = [config.aspect**step for step in steps]  # no buffer: a masker need not be moved to its keys' device

    def members(self, grid: Grid) -> Tensor:
        return columns(grid)

    def order(self, keys: Tensor, grid: Grid) -> Tensor:
        height, width = grid[-2:]
        top, bottom, left, right = self._rectangles(keys, height, width)  # (B, R) each
        rows, columns_ = torch.arange(height, device=keys.device), torch.arange(width, device=keys.device)
        in_rows = (rows >= top[..., None]) & (rows < bottom[..., None])  # (B, R, H')
        in_columns = (columns_ >= left[..., None]) & (columns_ < right[..., None])  # (B, R, W')
        covered = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2)  # (B, R, U)
        units, which = height * width, torch.arange(RECTANGLES, device=keys.device)
        first = torch.where(covered, which[:, None], RECTANGLES).amin(1)  # the first rectangle over each place, (B, U)
        # uncovered places come first (visible); then the rectangles, last to first, so that the last one is cut to the count
        rank = (RECTANGLES - first) * units + permutation(keys + 1, units)  # within a rectangle, places are in random order; (B, U)
        order = rank.argsort(dim=1)
        # which hidden places are predicted does not depend on the rectangle that hides them
        visible, _ = self.counts(units)
        shuffled = visible + permutation(keys + 2, units - visible)  # (B, U - visible)
        return torch.cat([order[:, :visible], order.gather(1, shuffled)], dim=1)

    def _rectangles(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, bottom, left and right of R rectangles a sample, in tokens, each int64 (B, R)."""
        area, aspect, y, x = uniform(keys, 4 * RECTANGLES).unflatten(1, (4, RECTANGLES)).unbind(1)
        area = (self.config.smallest + area * (self.config.largest - self.config.smallest)) * height * width
        ratio = torch.tensor(self.aspects, device=keys.device)[(aspect * ASPECTS).long()]  # log-uniform, height over width
        tall = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
        return top.long(), (top + tall).long(), left.long(), (left + wide).long()
