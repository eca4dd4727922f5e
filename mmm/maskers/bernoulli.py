"""Masking in which each token is hidden with one probability, whatever becomes of the others.

How many are hidden then varies. Samples of one update share that number, so that no token of a batch is padding; which ones are
hidden is each sample's own. The number has the binomial distribution, and given the number all sets are equally likely, so that
the mask of each sample is exactly one of independent draws; only samples of one update are not independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.rng import permutation, uniform
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, maskers, step_key


@maskers.register("bernoulli")
class BernoulliMasker(Masker):
    """Hides each token with the probability `ratio`; a number for each update, of at least one token seen and one hidden."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        def validate(self) -> None:
            super().validate()
            self.refuse("rounding")

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch; see `Masker.forward`."""
        members = self.members(grid).to(keys.device, non_blocking=True)  # (U, S)
        units, each = members.shape
        ratio = self.ratio(step, steps)
        hidden = min(max(1, int((uniform(step_key(step), units) < ratio).sum())), units - 1)
        keys, share = self.mask_keys(keys), 1.0 if self.config.predict is None else self.config.predict / ratio
        order = members[self.order(keys, self.unit_grid(grid), units - hidden)].flatten(1)
        return self.cut(order, (units - hidden) * each, max(1, round(share * hidden)) * each, keys, grid)

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        return permutation(keys, math.prod(grid))
