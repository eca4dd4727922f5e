"""The base of maskers: a masker orders the units of a grid, and the order is cut into visible, dropped and predicted tokens.

Shapes: B samples, m masks a sample, N tokens, U units of S tokens each. A unit is a square of tokens, by default one token, in one
frame or in all frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import Fraction, Positive
from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.rng import Stream, integers, permutation, sample_keys, scores, stream
from mmm.core.tokens import Grid, keep_count

maskers: Registry[Masker] = Registry("masker")

CELL = 4  # tokens of a running cell, 2 x 2


@dataclass(frozen=True, kw_only=True)
class MaskerConfig(PartConfig):
    """Base of every masker's `Config`."""

    ratio: Fraction = 0.75
    """Fraction of all tokens that are hidden."""

    ratio_end: Fraction | None = None
    """Fraction of all tokens that are hidden at the end of the run; the ratio changes linearly. None: the ratio is constant."""

    predict: Fraction | None = None
    """Fraction of ALL tokens that are predicted, at most `ratio` (CrossMAE's 0.25). None: all hidden ones."""

    running_cell: bool = False
    """Predict the hidden tokens of a pattern in cells of 2 x 2 tokens that moves with each frame (VideoMAE V2); tokens are removed
    or added at random to reach the count of `predict`. False: any hidden tokens."""

    rounding: Literal["nearest", "truncate"] = "nearest"
    """Rounding of counts: to the nearest whole number, or truncated as in the code of MAE (visible tokens) and CrossMAE (tokens
    that are neither visible nor predicted: of 196 tokens at ratio 0.75 and predict 0.15, 30 are predicted instead of 29)."""

    unit: Positive = 1
    """Side of the squares of tokens that are hidden together (SimMIM: 2, for squares of 32 pixels; Pixio: 4; Hiera: 2)."""

    blank: bool = False
    """Give the encoder a mask token in place of each hidden token (SimMIM, BEiT) instead of dropping it."""

    predict_visible: bool = False
    """Predict the visible tokens instead of the hidden ones (UMT)."""

    masks: Positive = 1
    """Number of masks of each sample (data2vec 2.0: 16). The sample is read, and its target computed, only once."""

    def validate(self) -> None:
        for name in ("ratio", "ratio_end"):
            ratio = getattr(self, name)
            if self.predict is not None and ratio is not None and self.predict > ratio:
                raise ValueError(
                    f"masker.predict {self.predict:g} is above masker.{name} {ratio:g}: only hidden tokens are predicted"
                )
        if self.running_cell and self.predict is None:
            raise ValueError("masker.running_cell chooses a part of the hidden tokens; set masker.predict, the size of that part")
        if self.predict_visible and self.predict is not None:
            raise ValueError(
                f"masker.predict {self.predict:g} is for hidden tokens, but masker.predict_visible predicts visible ones; set one"
            )

    @property
    def leaves_blanks(self) -> bool:
        """True if the encoder sees mask tokens."""
        return self.blank

    @property
    def keeps_grid(self) -> bool:
        """True if exactly one of each 2 x 2 tokens is visible or a mask token, so that these tokens form a grid."""
        return False

    @property
    def has_ratio(self) -> bool:
        """True if `ratio` sets the fraction of hidden tokens."""
        return True

    @property
    def pads(self) -> bool:
        """True if rows of different lengths are padded."""
        return False

    @property
    def echoes_only(self) -> bool:
        """True if no hidden token is predicted."""
        return self.predict_visible

    def refuse(self, *names: str) -> None:
        """Raises ValueError if an option that this masker does not support differs from its default."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(f"masker.name {self.name} has no masker.{name}; leave {value} out")


class Masker(nn.Module):
    """Draws masks with exact counts, as a pure function of the samples' keys. A subclass only implements the order of units.

    Attributes:
        config: the user's choices.
        through_time: whether a unit covers the same place in all frames of a clip.
        needs_scores: whether `forward` needs a score of each token.
    """

    through_time: bool = False
    needs_scores: ClassVar[bool] = False

    def __init__(self, config: MaskerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch.

        Args:
            keys: int64 (B,), of the samples; the mask is on their device.
            grid: (H', W') or (T', H', W').
            step: the current update, for a ratio that changes and for sizes that all samples of an update share.
            steps: the number of updates of the run.
            scores: (B, N), a number of at least 0 for each token, if the masker `needs_scores`.

        Raises:
            ValueError: no token would be visible, or none predicted.
        """
        members = self.members(grid).to(keys.device, non_blocking=True)  # (U, S)
        units, each = members.shape
        seen, predicted = self.counts(units, self.ratio(step, steps))
        keys = self.mask_keys(keys)  # (mB,)
        order = members[self.order(keys, self.unit_grid(grid), seen)].flatten(1)  # (mB, U) -> (mB, U, S) -> (mB, N)
        return self.cut(order, seen * each, predicted * each, keys, grid)

    def cut(self, order: Tensor, seen: int, predicted: int, keys: Tensor, grid: Grid) -> Mask:
        """Cuts an order of tokens, int64 (mB, N), into a mask: visible tokens are first, predicted ones last."""
        visible, hidden = order[:, :seen], order[:, seen:]
        if self.config.predict_visible:
            return Mask(visible, visible, hidden if self.config.blank else None, echo=seen)
        # the predicted tokens are the last: MAE's and CrossMAE's order, so that the dropped ones lie between
        predict = self._running(hidden, predicted, keys, grid) if self.config.running_cell else hidden[:, -predicted:]
        return Mask(visible, predict, hidden if self.config.blank else None)

    def mask_keys(self, keys: Tensor) -> Tensor:
        """A key for each mask, sample-major, (B,) -> (mB,)."""
        if self.config.masks == 1:
            return stream(keys, Stream.MASK)
        return scores(stream(keys, Stream.MASKS), self.config.masks).flatten()

    def ratio(self, step: int, steps: int) -> float:
        """The fraction that is hidden in an update."""
        start, end = self.config.ratio, self.config.ratio_end
        return start if end is None else start + (end - start) * step / steps

    def with_ratio(self, ratio: float) -> Masker:
        """The same masker at another ratio, with all hidden tokens predicted."""
        return type(self)(
            replace(self.config, ratio=ratio, ratio_end=None, predict=None, running_cell=False, predict_visible=False)
        )

    def counts(self, units: int, ratio: float) -> tuple[int, int]:
        """Returns how many of `units` units are visible, and how many are predicted."""
        predict = ratio if self.config.predict is None else self.config.predict
        if self.config.rounding == "truncate":
            seen = int(units * (1 - ratio))
            predicted = units - seen - int(units * (ratio - predict))
        else:
            seen = keep_count(ratio, units)
            predicted = units - seen if predict == ratio else min(units - seen, round(predict * units))
        if not seen or not predicted:
            raise ValueError(
                f"of {units} units, masker.ratio {ratio:g} leaves {seen} visible and {predicted} predicted; "
                "both need at least one: change masker.ratio, masker.predict or the input's size"
            )
        return seen, predicted

    def unit_grid(self, grid: Grid) -> Grid:
        """The grid of units, of a grid of tokens."""
        return (*grid[:-2], grid[-2] // self.config.unit, grid[-1] // self.config.unit)

    def members(self, grid: Grid) -> Tensor:
        """The tokens of each unit, int64 (U, S)."""
        return columns(grid, self.config.unit) if self.through_time else squares(grid, self.config.unit)

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        """Returns a permutation of the units for each mask, int64 (mB, U): visible units first, predicted units last.

        Args:
            keys: int64 (mB,), one for each mask.
            grid: of units.
            seen: the number of visible units.
        """
        raise NotImplementedError

    def _running(self, hidden: Tensor, predicted: int, keys: Tensor, grid: Grid) -> Tensor:
        """Chooses hidden tokens by a running cell (Wang et al., "VideoMAE V2", CVPR 2023, section 3.2), (mB, H) -> (mB, predicted).

        Of the places 0 to 3 of a cell, numbered by rows, place k at time t is chosen where (k + p + t + 1) mod 4 is among the
        highest; the phase p is drawn for each clip. Of tubes, and 4, 8 ... frames of tokens, exactly the count is chosen.
        """
        high, wide = grid[-2:]
        time, row, column = hidden // (high * wide), hidden // wide % high, hidden % wide
        phase = integers(keys + 3, CELL, 1)  # (mB, 1)
        chosen = max(1, round(CELL * predicted / hidden.shape[1]))  # of the four
        out = (2 * (row % 2) + column % 2 + phase + time + 1) % CELL < CELL - chosen
        rank = out * hidden.shape[1] + permutation(keys + 4, hidden.shape[1])
        return hidden.gather(1, rank.argsort(dim=1)[:, :predicted])


def squares(grid: Grid, side: int = 1) -> Tensor:
    """Returns the tokens of each square of `side` x `side` tokens in a frame, int64 (T' h w, side^2).

    Raises:
        ValueError: squares of this side do not fill the grid.
    """
    if any(size % side for size in grid[-2:]):
        raise ValueError(f"masker.unit {side} does not divide the grid {grid}; choose a common divisor of its sides")
    tokens = torch.arange(math.prod(grid)).view(-1, grid[-2] // side, side, grid[-1] // side, side)  # (T', h, a, w, b)
    return tokens.transpose(2, 3).reshape(-1, side * side)  # (T' h w, a b)


def columns(grid: Grid, side: int = 1) -> Tensor:
    """Returns the tokens of each square of the image plane in all frames, int64 (h w, T' side^2)."""
    plane = math.prod(grid[-2:]) // side**2
    return squares(grid, side).unflatten(0, (-1, plane)).transpose(0, 1).flatten(1)  # (T' hw, S) -> (hw, T' S)


def step_key(step: int, number: int = 0) -> Tensor:
    """Returns a key that all samples of an update share, in every micro-batch and process; int64 (1,), on the CPU.

    Args:
        step: the update.
        number: index of the key, if a masker needs several.
    """
    return stream(sample_keys(number, step, 0), Stream.MASK)


def inside(start: Tensor, length: Tensor | int, size: int) -> Tensor:
    """Marks the places of an axis, 0 to size - 1, from start to start + length - 1, (...) -> bool (..., size)."""
    place = torch.arange(size, device=start.device)
    end = start + length
    return (place >= start[..., None]) & (place < end[..., None])
