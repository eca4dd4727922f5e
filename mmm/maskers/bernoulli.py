"""Masking in which each token is hidden independently with the same probability: M ~ Bernoulli(ratio) for each token.

The number of hidden tokens therefore varies. By default it varies from sample to sample, and rows are padded to a length that
depends only on the grid and the ratio: no shape depends on the drawn numbers, and the host never waits for a device. Attention
ignores padding. The loss is the mean over samples of the mean over the predicted tokens of a sample,
E_M [1 / |M| sum_(i in M) loss_i].

With `lengths update`, all samples of an update have the same number of hidden tokens, so that there is no padding. The number has
the binomial distribution, and all sets of this number are equally likely. The mask of one sample then has the same distribution as
with independent draws, but the samples of one update are not independent of each other.

Shapes: mB masks, U units of S tokens, V the padded number of visible units, Q that of predicted ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.rng import permutation, uniform
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, maskers, step_key

TAIL = 1e-4  # share of rows that may exceed the padded length; their surplus tokens are neither visible nor predicted


@maskers.register("bernoulli")
class BernoulliMasker(Masker):
    """Hides each token with the probability `ratio`; at least one token is visible and at least one is hidden."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        lengths: Literal["sample", "update"] = "sample"
        """Let the number of hidden tokens differ from sample to sample, with padding, or only from update to update, without
        padding."""

        def validate(self) -> None:
            super().validate()
            self.refuse("rounding")
            if self.lengths == "sample":
                self.refuse("predict_visible", "running_cell")

        @property
        def pads(self) -> bool:
            return self.lengths == "sample"

    config: Config

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch; see `Masker.forward`."""
        members = self.members(grid).to(keys.device, non_blocking=True)  # (U, S)
        ratio, keys = self.ratio(step, steps), self.mask_keys(keys)
        share = 1.0 if self.config.predict is None else self.config.predict / ratio  # of the hidden units
        if self.config.lengths == "sample":
            return self._padded(keys, members, ratio, share)
        units, each = members.shape
        hidden = min(max(1, int((uniform(step_key(step), units) < ratio).sum())), units - 1)
        order = members[self.order(keys, self.unit_grid(grid), units - hidden)].flatten(1)
        return self.cut(order, (units - hidden) * each, max(1, round(share * hidden)) * each, keys, grid)

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        return permutation(keys, math.prod(grid))

    def _padded(self, keys: Tensor, members: Tensor, ratio: float, share: float) -> Mask:
        """Returns masks with different numbers of tokens: visible units and then padding; predicted and blank units likewise."""
        units, each = members.shape
        hidden = uniform(keys + 1, units) < ratio  # (mB, U)
        order = (hidden * units + permutation(keys, units)).argsort(dim=1)  # those to see first, in random order
        count = hidden.sum(1, keepdim=True).clamp(1, units - 1)  # (mB, 1)
        longest = most(units, ratio)
        visible, valid = pad(order[:, : most(units, 1 - ratio)], units - count)
        asked, valid_predict = pad(order.flip(1)[:, : math.ceil(share * longest)], (share * count).round().long().clamp(min=1))
        weight = valid_predict / valid_predict.sum(1, keepdim=True) * valid_predict.shape[1]
        blank = None
        if self.config.blank:
            blank, valid_blank = pad(order.flip(1)[:, :longest], count)
            valid = torch.cat([valid, valid_blank], dim=1)
            blank = members[blank].flatten(1)
        valid, valid_predict, weight = (one.repeat_interleave(each, dim=1) for one in (valid, valid_predict, weight))
        return Mask(members[visible].flatten(1), members[asked].flatten(1), blank, weight, valid=valid, valid_predict=valid_predict)


def pad(rows: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces all but the first `count` (mB, 1) of each row (mB, K) by its first; returns the rows, and which are no padding."""
    valid = torch.arange(rows.shape[1], device=rows.device) < count
    return torch.where(valid, rows, rows[:, :1]), valid


@cache
def most(units: int, chance: float) -> int:
    """A number of hits that units, each hit with this chance, exceed in less than `TAIL` of all draws; 1 to `units` - 1."""
    below, number = 0.0, -1
    while below < 1 - TAIL:
        number += 1
        ways = math.lgamma(units + 1) - math.lgamma(number + 1) - math.lgamma(units - number + 1)
        below += math.exp(ways + number * math.log(chance) + (units - number) * math.log1p(-chance))
    return min(max(1, number), units - 1)
