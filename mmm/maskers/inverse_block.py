"""Inverse block masking: blocks are visible, and all other tokens are hidden (Baevski et al., "data2vec 2.0", ICML 2023, section
3.3; Darcet et al., "CAPI", 2025, section 3.1).

Shapes: mB masks, U = H' W' places of the image plane, V visible ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmm.core.checks import Fraction, Positive, Rate, Share
from mmm.core.rng import integers, permutation
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, inside, maskers

ASPECTS = 1024  # steps from the smallest to the largest: whole sides from a table are the same on every device


@maskers.register("inverse_block")
class InverseBlockMasker(Masker):
    """Hides all tokens except squares around random places (data2vec 2.0), or except one rectangle (CAPI); in clips, in all frames.

    Squares may overlap and are cut off at the borders; random tokens are removed or added to reach the exact count. A rectangle has
    at least as many tokens as the count, and the last tokens of its last rows are hidden.
    """

    through_time = True

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        ratio: Fraction = 0.8
        """Fraction of all tokens that are hidden."""

        side: Positive | None = 3
        """Side of the squares that are shown, odd (data2vec 2.0: 3). None: one rectangle (CAPI)."""

        adjust: Rate = 0.07
        """Fraction of all places by which the squares' areas together exceed what is shown, for they overlap."""

        aspect: Share = 0.5
        """A rectangle is between `aspect` and 1 / `aspect` times as high as wide, as far as it fits the grid."""

        roll: bool = False
        """Move what is shown along both axes by random distances, around the borders (CAPI)."""

        def validate(self) -> None:
            super().validate()
            if self.side is not None and self.side % 2 == 0:
                raise ValueError(
                    f"masker.side {self.side} is even; a square around a token has an odd side: give an odd number, or none"
                )

    config: Config

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        height, width = grid[-2:]
        units = height * width
        chance = permutation(keys + 1, units)  # (mB, U)
        row, column = torch.arange(height, device=keys.device), torch.arange(width, device=keys.device)
        if self.config.roll:  # what is asked for a place is asked for the one that it was moved from
            shift = integers(keys + 2, torch.tensor([height, width], device=keys.device), 2)  # (mB, 2)
            row, column = (row - shift[:, :1]) % height, (column - shift[:, 1:]) % width  # (mB, H'), (mB, W')
        place = (row[..., :, None] * width + column[..., None, :]).flatten(-2).expand(len(keys), -1)  # (mB, U)
        if self.config.side is None:
            rank = self._rectangle(keys, height, width, seen)  # (mB, U)
            kept = rank.gather(1, place)
            return torch.where(kept < seen, kept, units + chance).argsort(dim=1)
        return (~self._squares(keys, height, width, seen).gather(1, place) * units + chance).argsort(dim=1)

    def _squares(self, keys: Tensor, height: int, width: int, seen: int) -> Tensor:
        """Marks the places in a square, bool (mB, U)."""
        side = self.config.side
        assert side is not None
        units = height * width
        count = max(1, int(units * (seen / units + self.config.adjust) / side**2))
        centre = integers(keys, units, count)  # (mB, count)
        rows = inside(centre // width - side // 2, side, height)  # (mB, count, H')
        columns = inside(centre % width - side // 2, side, width)
        return (rows[..., :, None] & columns[..., None, :]).any(1).flatten(1)

    def _rectangle(self, keys: Tensor, height: int, width: int, seen: int) -> Tensor:
        """The rank of each place in its rectangle, by rows; U for places outside. int64 (mB, U)."""
        sizes = torch.tensor(rectangle_sizes(height, width, seen, self.config.aspect), device=keys.device)  # (1024, 2)
        tall, wide = sizes[integers(keys, ASPECTS, 1)[:, 0]].unbind(1)  # (mB,)
        free = torch.stack([height - tall + 1, width - wide + 1], dim=1)
        top, left = integers(keys + 3, free, 2).unbind(1)
        rows, columns = inside(top, tall, height), inside(left, wide, width)
        down = torch.arange(height, device=keys.device) - top[:, None]  # (mB, H')
        right = torch.arange(width, device=keys.device) - left[:, None]
        rank = down[:, :, None] * wide[:, None, None] + right[:, None, :]
        return torch.where(rows[:, :, None] & columns[:, None, :], rank, height * width).flatten(1)


@cache
def rectangle_sizes(height: int, width: int, area: int, aspect: float) -> list[tuple[int, int]]:
    """Heights and widths of rectangles of at least this area that fit the grid; aspects in even steps of their logarithm."""
    fits = math.log(area / width**2), math.log(height**2 / area)
    low, high = max(math.log(aspect), fits[0]), min(-math.log(aspect), fits[1])
    if low > high:  # none of the aspects that are asked for fits
        low = high = min(max(0.0, fits[0]), fits[1])
    sizes = []
    for step in range(ASPECTS):
        one = math.exp(low + (high - low) * (2 * step + 1) / (2 * ASPECTS))
        tall = min(height, math.ceil(math.sqrt(area * one) - 1e-9))
        wide = min(width, max(math.ceil(math.sqrt(area / one) - 1e-9), math.ceil(area / tall)))
        sizes.append((tall, wide))
    return sizes
