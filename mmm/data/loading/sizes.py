"""Sizes of training samples in a run that has several: functions of the update's number or of the samples' keys.

Shapes: b inputs, R samples of each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmm.core.rng import Stream, integers, sample_keys, stream
from mmm.data.config import DataConfig

Size = tuple[int, int]  # h, w


def train_sizes(config: DataConfig) -> tuple[Size, ...]:
    """Returns the sizes, of which each update or sample uses one. With `keep_aspect` they are squares of the largest area."""
    height, width = config.frame_size
    sides = config.sides or (math.sqrt(height * width),)
    if config.keep_aspect or (config.sides and not config.aspects and height == width):
        return tuple((int(side), int(side)) for side in sides)
    if not config.varies:
        return ((height, width),)
    return tuple(size_of(side, aspect, config.size_step) for side in sides for aspect in config.aspects or (width / height,))


def size_of(side: float, aspect: float, step: int) -> Size:
    """Returns the size with an aspect ratio, in multiples of `step`, whose area is close to that of a square but not larger.

    Args:
        side: side of the square in pixels.
        aspect: width over height.
        step: number of pixels that divides both sides.
    """
    area = max(1, math.floor(side * side / step**2))  # in squares of step x step
    rows = min(max(1, round(side / math.sqrt(aspect) / step)), area)
    columns = min(max(1, round(side * math.sqrt(aspect) / step)), area)
    if rows * columns > area:  # the longer side is shortened
        rows, columns = (rows, area // rows) if columns >= rows else (area // columns, columns)
    return rows * step, columns * step


class TrainSizes:
    """Divides the inputs of a batch among data sets of one size each.

    Args:
        samples: a data set whose config names several sizes; it has `at_size` and, for `keep_aspect`, `aspect`.
        seed: random seed of the run.
        source: number of the data set among several of a run.
    """

    def __init__(self, samples: Any, seed: int, source: int) -> None:
        self.samples, self.config, self.seed, self.source = samples, samples.config, seed, source
        self.sizes = train_sizes(self.config)
        self._made: dict[Size, Any] = {}

    def groups(self, step: int, index: Tensor, keys: Tensor) -> list[tuple[Any, Tensor]]:
        """Returns data sets of one size, smaller ones first, and the rows of the inputs that they read.

        Args:
            step: number of the update; all its inputs have one size, unless samples of different sizes are packed.
            index: int64 (b,).
            keys: int64 (b, R); the samples of an input have one size.
        """
        if not self.config.pack:
            key = stream(sample_keys(self.seed, 0, step, source=self.source), Stream.SIZE)
            return [(self._at(self.sizes[int(integers(key, len(self.sizes), 1))]), torch.arange(len(index)))]
        drawn = integers(stream(keys[:, 0], Stream.SIZE), len(self.sizes), 1)[:, 0]
        sizes = [self.sizes[number] for number in drawn.tolist()]
        if self.config.keep_aspect:
            aspects = [self.samples.aspect(number) for number in index.tolist()]
            sizes = [size_of(side, aspect, self.config.size_step) for (side, _), aspect in zip(sizes, aspects, strict=True)]
        rows: dict[Size, list[int]] = {}
        for row, size in enumerate(sizes):
            rows.setdefault(size, []).append(row)
        return [(self._at(size), torch.tensor(rows[size])) for size in sorted(rows, key=lambda size: (math.prod(size), size))]

    def _at(self, size: Size) -> Any:
        """Returns the data set with samples of a size. It is cached, because there are few sizes."""
        if size not in self._made:
            self._made[size] = self.samples.at_size(size)
        return self._made[size]
