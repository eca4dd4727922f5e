"""Multi-block masking (Assran et al., "I-JEPA", CVPR 2023, section 3; Bardes et al., "V-JEPA", 2024, section 3.2): blocks are
predicted. In clips, a block is the same in all frames.

The released samplers draw the size of a block once for each worker's batch, never use the last row and column (I-JEPA), and cut the
visible tokens, in raster order, to the smallest count of a batch. Here the sizes are drawn for each update, all counts are exact,
and surplus tokens are dropped at random.

Shapes: mB masks, k target blocks of one mask, C candidates, U = h w units of the image plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from mmm.core.checks import AboveZero, Fraction, NonNegative, Positive, Share, ZeroToOne
from mmm.core.mask import Mask
from mmm.core.rng import permutation, stream, uniform
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, inside, maskers, step_key
from mmm.maskers.echo import echo_visible
from mmm.maskers.random import RandomMasker

CANDIDATES = 8  # sets of blocks drawn for a mask; the first that leaves enough visible tokens is taken
ASPECTS = 64  # steps of the mean over aspects


class PlacedBlocksMasker(Masker):
    """Base of maskers that predict blocks."""

    through_time = True

    def with_ratio(self, ratio: float) -> Masker:
        """Returns a random masker, because the blocks of this one do not follow from a ratio."""
        return RandomMasker(RandomMasker.Config(ratio=ratio, unit=self.config.unit, blank=self.config.blank))


@maskers.register("multi_block")
class MultiBlockMasker(PlacedBlocksMasker):
    """I-JEPA: several target blocks, each predicted separately from the same visible tokens of a large context block.

    All blocks of an update have the same size, drawn from the step; their places are drawn for each sample. Of 8 sets of places,
    the first that leaves enough of the context is taken. If none does, all targets are put at the same place; if the context is
    still too small, tokens outside it are visible too.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        ratio: Fraction = 0.74
        """Fraction of all tokens that are not visible. In the released trainings it was 0.74, because visible tokens were cut to
        the smallest count of a batch; before this cut it was 0.6."""

        targets: Positive = 4
        """Number of predicted blocks; each is a row of `mask.predict`."""

        scale: tuple[Share, Share] = (0.15, 0.2)
        """Smallest and largest area of a target block, as a fraction of the image."""

        aspect: tuple[AboveZero, AboveZero] = (0.75, 1.5)
        """Smallest and largest ratio of a target block's height to its width."""

        context: tuple[Share, Share] = (0.85, 1.0)
        """Smallest and largest area of the context block, as a fraction of the image."""

        def validate(self) -> None:
            super().validate()
            self.refuse("predict", "running_cell", "blank", "predict_visible")
            for name in ("scale", "aspect", "context"):
                low, high = getattr(self, name)
                if low > high:
                    raise ValueError(f"masker.{name} {low:g} {high:g}: the first number is above the second")

    config: Config

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch, with k rows of predicted tokens for each; see `Masker.forward`.

        Raises:
            ValueError: the target blocks can leave too few visible tokens.
        """
        members = self.members(grid).to(keys.device, non_blocking=True)  # (U, S)
        height, width = self.unit_grid(grid)[-2:]
        units, keys, count = height * width, self.mask_keys(keys), self.config.targets
        tall, wide, high, broad = self._sizes(step, height, width)
        seen = self.counts(units, self.ratio(step, steps))[0]
        if seen > units - tall * wide:
            raise ValueError(
                f"a block of {tall} x {wide} leaves {units - tall * wide} of {units} units visible, but masker.ratio "
                f"{self.ratio(step, steps):g} asks for {seen}; raise masker.ratio, or lower masker.scale"
            )
        chance = uniform(keys, 2 * CANDIDATES * (count + 1)).unflatten(1, (2, CANDIDATES, count + 1))  # (mB, 2, C, k + 1)
        top = (chance[:, 0, :, :count] * (height - tall + 1)).long()  # (mB, C, k)
        left = (chance[:, 1, :, :count] * (width - wide + 1)).long()
        top[:, -1], left[:, -1] = top[:, -1, :1], left[:, -1, :1]  # the last candidate leaves most
        covered = _covered(top, left, tall, wide, height, width).any(2)  # (mB, C, U)
        start = (chance[:, 0, :, count] * (height - high + 1)).long(), (chance[:, 1, :, count] * (width - broad + 1)).long()
        context = _covered(*start, high, broad, height, width)
        enough = (context & ~covered).sum(-1) >= seen  # (mB, C)
        enough[:, -1] = True
        chosen = enough.to(torch.int8).argmax(1)  # the first
        rows = torch.arange(len(keys), device=keys.device)
        rank = 2 * units * covered[rows, chosen] + units * ~context[rows, chosen] + permutation(keys + 1, units)  # (mB, U)
        visible = rank.argsort(dim=1)[:, :seen]
        down, right = torch.arange(tall, device=keys.device), torch.arange(wide, device=keys.device)
        inner = (down[:, None] * width + right).flatten()  # (Q,)
        predict = (top[rows, chosen] * width + left[rows, chosen])[..., None] + inner  # (mB, k, Q)
        return Mask(members[visible].flatten(1), members[predict.flatten(0, 1)].flatten(1))

    def _sizes(self, step: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Height and width of this update's target blocks, and of its context block, in units."""
        spans = (self.config.scale, self.config.aspect, self.config.context)
        draws = uniform(step_key(step), len(spans))[0]
        scale, aspect, context = (low + (high - low) * float(draw) for draw, (low, high) in zip(draws, spans, strict=True))
        tall, wide = block_size(int(height * width * scale), aspect, height, width)
        side = math.sqrt(context)  # the context has the grid's own aspect
        return tall, wide, max(1, round(height * side)), max(1, round(width * side))


@maskers.register("block_union")
class BlockUnionMasker(PlacedBlocksMasker):
    """V-JEPA: several masks of each sample; each hides and predicts the union of its blocks.

    The first mask has many small blocks, the second a few large ones. Encoder and decoder run once for each mask. The number of
    predicted tokens is the mean number that the union covers; random tokens are added or removed to reach it. All blocks of an
    update have the same size, drawn from the step.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        blocks: tuple[Positive, ...] = (8, 2)
        """Number of blocks of each mask."""

        scale: tuple[Share, ...] = (0.15, 0.7)
        """Area of a block of each mask, as a fraction of the image."""

        aspect: tuple[AboveZero, AboveZero] = (0.75, 1.5)
        """Smallest and largest ratio of a block's height to its width."""

        echo: NonNegative | None = None
        """Weight of the mean loss of the visible tokens, which are then predicted too (V-JEPA 2.1: 0.5). None: not predicted."""

        echo_by_distance: bool = True
        """Weight visible tokens by 1 / sqrt(d), d the distance to the nearest predicted token, in tokens (V-JEPA 2.1)."""

        echo_rise: tuple[ZeroToOne, ZeroToOne] = (0.0, 0.0)
        """Fractions of the run at which the weight `echo` begins to rise from 0, and at which it reaches its value."""

        @property
        def has_ratio(self) -> bool:
            return False

        def validate(self) -> None:
            super().validate()
            self.refuse("ratio", "ratio_end", "rounding", "predict", "running_cell", "predict_visible")
            if not self.blocks or len(self.blocks) != len(self.scale):
                raise ValueError(f"masker.blocks {self.blocks} and masker.scale {self.scale} must have one number for each mask")
            for name in ("aspect", "echo_rise"):
                low, high = getattr(self, name)
                if low > high:
                    raise ValueError(f"masker.{name} {low:g} {high:g}: the first number is above the second")

    config: Config

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch, the second and any further ones in `also`; see `Masker.forward`."""
        members = self.members(grid).to(keys.device, non_blocking=True)  # (U, S)
        keys, plane = self.mask_keys(keys), self.unit_grid(grid)[-2:]
        numbers = range(len(self.config.blocks))
        drawn = [self._draw(stream(keys, 1 + number), plane, members, step, number) for number in numbers]
        if self.config.echo is not None:
            weight = self.config.echo * rise(step / steps, *self.config.echo_rise)
            drawn = [echo_visible(one, grid, weight, by_distance=self.config.echo_by_distance) for one in drawn]
        first, *rest = drawn
        return replace(first, also=tuple(rest))

    def _draw(self, keys: Tensor, plane: tuple[int, ...], members: Tensor, step: int, number: int) -> Mask:
        """Draws mask `number` of each sample."""
        height, width = plane
        units, count, scale, (low, high) = height * width, self.config.blocks[number], self.config.scale[number], self.config.aspect
        predicted = mean_union(height, width, count, scale, low, high)
        aspect = low + (high - low) * float(uniform(step_key(step, number), 1))
        tall, wide = block_size(int(units * scale), aspect, height, width)
        down, right = uniform(keys, 2 * count).unflatten(1, (2, count)).unbind(1)  # (mB, k)
        top, left = (down * (height - tall + 1)).long(), (right * (width - wide + 1)).long()
        union = _covered(top, left, tall, wide, height, width).any(1)  # (mB, U)
        order = members[(~union * units + permutation(keys + 1, units)).argsort(dim=1)].flatten(1)
        cut = predicted * members.shape[1]
        return Mask(order[:, cut:], order[:, :cut], order[:, :cut] if self.config.blank else None)


def _covered(top: Tensor, left: Tensor, tall: int, wide: int, height: int, width: int) -> Tensor:
    """Marks the units that lie in blocks of one size, (...) -> bool (..., U)."""
    rows, columns = inside(top, tall, height), inside(left, wide, width)
    return (rows[..., :, None] & columns[..., None, :]).flatten(-2)


def rise(progress: float, start: float, end: float) -> float:
    """Returns 0 before the start, 1 after the end, and linear values between."""
    return 1.0 if progress >= end else max(0.0, (progress - start) / (end - start))


def block_size(area: int, aspect: float, height: int, width: int) -> tuple[int, int]:
    """Returns height and width of a block in units: at least 1, at most those of the grid."""
    tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(tall, 1), height), min(max(wide, 1), width)


@cache
def mean_union(height: int, width: int, count: int, scale: float, low: float, high: float) -> int:
    """Returns the mean number of units that `count` blocks at random places cover, over places and aspects, rounded.

    It is at least 1, and less than the number of all units.
    """
    total = 0.0
    for step in range(ASPECTS):
        aspect = low + (high - low) * (2 * step + 1) / (2 * ASPECTS)
        tall, wide = block_size(int(height * width * scale), aspect, height, width)
        total += sum(1 - (1 - one * other) ** count for one in _chances(height, tall) for other in _chances(width, wide))
    return min(max(1, round(total / ASPECTS)), height * width - 1)


def _chances(size: int, length: int) -> list[float]:
    """The probability that an interval of this length covers each place of an axis."""
    places = size - length + 1
    return [(min(place, size - length) - max(place - length + 1, 0) + 1) / places for place in range(size)]
