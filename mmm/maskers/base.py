"""Base of all maskers: they order the units of a grid, and the order is cut into visible, dropped and predicted tokens.

Shapes: B samples, N tokens, U units of S tokens each (a unit is one token, a square of them, or a column through time).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import Fraction
from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.rng import Stream, stream
from mmm.core.tokens import Grid, keep_count

maskers: Registry[Masker] = Registry("masker")


@dataclass(frozen=True, kw_only=True)
class MaskerConfig(PartConfig):
    """Options of every masker."""

    ratio: Fraction = 0.75
    """Fraction of all tokens that are hidden."""

    predict: Fraction | None = None
    """Fraction of ALL tokens that are predicted, at most `ratio` (CrossMAE's 0.25); none: all hidden ones."""

    rounding: Literal["nearest", "truncate"] = "nearest"
    """How counts become whole: the nearest number, or truncated as in the code of MAE (visible tokens) and CrossMAE (tokens that
    are neither visible nor predicted: of 196 tokens at ratio 0.75 and predict 0.15, 30 are predicted instead of 29)."""

    blank: bool = False
    """Show the encoder a mask token in each hidden place (SimMIM, BEiT) instead of dropping it."""

    def validate(self) -> None:
        if self.predict is not None and self.predict > self.ratio:
            raise ValueError(
                f"masker.predict {self.predict:g} is above masker.ratio {self.ratio:g}: only hidden tokens are predicted"
            )


class Masker(nn.Module):
    """Draws masks with exact counts, as a pure function of the samples' keys. A subclass orders units; that is all."""

    def __init__(self, config: MaskerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1) -> Mask:
        """The masks of a batch.

        Args:
            keys: int64 (B,), of the samples; the mask lies on their device.
            grid: (H', W') or (T', H', W').
            step, steps: where the run stands, for maskers with a schedule.

        Raises:
            ValueError: where the ratio leaves no token to see, or none to predict.
        """
        members = self.members(grid).to(keys.device)  # (U, S)
        units, each = members.shape
        seen, predicted = self.counts(units)
        order = members[self.order(stream(keys, Stream.MASK), grid)].flatten(1)  # (B, U) -> (B, U, S) -> (B, N)
        visible, hidden = order[:, : seen * each], order[:, seen * each :]
        # the predicted tokens are the last: MAE's and CrossMAE's order, so that the dropped ones lie between
        return Mask(visible, hidden[:, -predicted * each :], hidden if self.config.blank else None)

    def counts(self, units: int) -> tuple[int, int]:
        """How many units are visible and how many are predicted, of `units`."""
        ratio = self.config.ratio
        predict = ratio if self.config.predict is None else self.config.predict
        if self.config.rounding == "truncate":
            seen = int(units * (1 - ratio))
            predicted = units - seen - int(units * (ratio - predict))
        else:
            seen = keep_count(ratio, units)
            predicted = units - seen if predict == ratio else min(units - seen, round(predict * units))
        if not seen or not predicted:
            raise ValueError(
                f"of {units} units, masker.ratio {self.config.ratio:g} leaves {seen} visible and {predicted} predicted; "
                "both need at least one: change masker.ratio, masker.predict or the input's size"
            )
        return seen, predicted

    def members(self, grid: Grid) -> Tensor:
        """The tokens of each unit, int64 (U, S). Here every token is a unit."""
        return torch.arange(math.prod(grid))[:, None]

    def order(self, keys: Tensor, grid: Grid) -> Tensor:
        """A permutation of the units a sample, int64 (B, U): those to see first, those to hide last."""
        raise NotImplementedError


def columns(grid: Grid) -> Tensor:
    """The tokens of each place of the image plane through all the time, int64 (H' W', T'); of an image, one each."""
    plane = math.prod(grid[-2:])
    return torch.arange(math.prod(grid)).view(-1, plane).T  # (T' H'W') -> (H'W', T')
