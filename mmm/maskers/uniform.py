"""Uniform masking (Li et al., "UM-MAE", 2022, section 3): one of each 2 x 2 tokens is visible, so that the visible tokens form a
grid again; some of them are replaced by a mask token.

Shapes: mB masks, C cells of 2 x 2 units, U = 4 C units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmm.core.checks import Rate
from mmm.core.mask import Mask
from mmm.core.rng import permutation
from mmm.core.tokens import Grid, keep_count
from mmm.maskers.base import Masker, MaskerConfig, maskers
from mmm.maskers.random import RandomMasker


@maskers.register("uniform")
class UniformMasker(Masker):
    """Hides three of each 2 x 2 tokens of a frame; each of the four places is visible equally often. A part of the visible tokens
    is replaced by mask tokens, which makes the task harder. The replaced tokens are not predicted.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        secondary: Rate = 0.25
        """Fraction of the visible tokens that are replaced by a mask token."""

        def validate(self) -> None:
            super().validate()
            self.refuse("ratio", "ratio_end", "rounding", "predict_visible")

        @property
        def has_ratio(self) -> bool:
            return False

        @property
        def leaves_blanks(self) -> bool:
            return self.blank or self.secondary > 0

        @property
        def keeps_grid(self) -> bool:
            return self.unit == 1  # larger units leave squares of 2 x 2 tokens and more

    config: Config

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch; see `Masker.forward`."""
        mask = super().forward(keys, grid, step=step, steps=steps)
        if not self.config.secondary:
            return mask
        shown, each = mask.visible, self.config.unit**2
        stay = keep_count(self.config.secondary, shown.shape[1] // each) * each
        if not stay:
            raise ValueError(f"masker.secondary {self.config.secondary:g} leaves none of {shown.shape[1]} tokens to see; lower it")
        blank = shown[:, stay:] if mask.blank is None else torch.cat([shown[:, stay:], mask.blank], dim=1)
        return replace(mask, visible=shown[:, :stay], blank=blank)

    def with_ratio(self, ratio: float) -> Masker:
        """Returns a random masker, because this one has a fixed ratio."""
        return RandomMasker(RandomMasker.Config(ratio=ratio, unit=self.config.unit, blank=self.config.blank))

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        """Returns the visible units, in a random order of cells, and then the others.

        Raises:
            ValueError: cells of 2 x 2 units do not fill the grid.
        """
        high, wide = grid[-2:]
        if high % 2 or wide % 2:
            raise ValueError(f"masker.name uniform shows one of each 2 x 2 units, and the grid of units is {grid}; use even sides")
        place = permutation(keys, seen) % 4  # (mB, C): each of the four equally often
        cell = permutation(keys + 1, seen)  # (mB, C)
        across = wide // 2
        shown = (2 * (cell // across) + place // 2) * wide + 2 * (cell % across) + place % 2  # frames lie below each other
        units = 4 * seen
        rank = seen + permutation(keys + 2, units)
        return rank.scatter(1, shown, torch.arange(seen, device=keys.device).expand_as(shown)).argsort(dim=1)
