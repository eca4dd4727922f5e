"""Measures the size, mean and standard deviation of the inputs of a data set, which its recipe needs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmm.core.rng import Stream, sample_keys, scores, stream
from mmm.data.errors import Unreadable
from mmm.data.loading.scan import map_inputs


class Measurable(Protocol):
    """A data set that can be measured: images or clips."""

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str: ...

    def shape_of(self, index: int, /) -> dict[str, float]: ...

    def eval_views(self, index: Tensor, /) -> tuple[Tensor, dict[int, str]]: ...


@dataclass(frozen=True)
class Statistics:
    """Results of `measure`.

    Attributes:
        inputs: number of inputs in the data set.
        read: number of inputs that were measured.
        unreadable: the names of those that cannot be read, with the reasons.
        mean, std: mean and standard deviation of each channel over all pixels of evaluation samples, from 0 to 1.
        grey: whether the channels of every sample are equal.
        facts: least, median and largest value of each property, for instance height in pixels.
    """

    inputs: int
    read: int
    unreadable: dict[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grey: bool
    facts: dict[str, tuple[float, float, float]]


def measure(samples: Measurable, *, count: int, workers: int | None) -> Statistics:
    """Reads all inputs or a random part of them, and measures their samples.

    Args:
        samples: a data set.
        count: largest number of inputs; a part is chosen by a fixed hash of the index.
        workers: number of worker processes. None: one for each core.

    Raises:
        ValueError: no input can be read.
    """
    chosen = choose(len(samples), count)

    def work(place: int) -> dict[str, Any]:
        index = chosen[place]
        facts = samples.shape_of(index)
        views, failed = samples.eval_views(torch.tensor([index]))  # uint8 (V, C, ..., h, w)
        if failed:
            raise Unreadable(failed[0])
        channels = views.transpose(0, 1).flatten(1).double() / 255  # (C, pixels)
        grey = bool((channels == channels[:1]).all())
        return {"facts": facts, "grey": grey, "pixels": channels.shape[1], "sums": channels.sum(1), "squares": (channels**2).sum(1)}

    def name(place: int) -> str:
        return samples.name(chosen[place])

    findings = list(map_inputs(name, work, len(chosen), workers=workers, title="measure"))
    rows = [finding.facts for finding in findings if finding.reason is None]
    bad = {finding.name: finding.reason for finding in findings if finding.reason is not None}
    if not rows:
        first = next(iter(bad.items()), ("the data set", "it is empty"))
        raise ValueError(f"none of {len(chosen)} inputs can be read; {first[0]}: {first[1]}")
    pixels = sum(row["pixels"] for row in rows)
    mean = sum(row["sums"] for row in rows) / pixels  # (C,)
    variance = sum(row["squares"] for row in rows) / pixels - mean**2
    facts = {name: _spread([row["facts"][name] for row in rows if name in row["facts"]]) for name in rows[0]["facts"]}
    return Statistics(
        inputs=len(samples),
        read=len(rows),
        unreadable=bad,
        mean=tuple(mean.tolist()),
        std=tuple(variance.clamp(min=0).sqrt().tolist()),
        grey=all(row["grey"] for row in rows),
        facts=facts,
    )


def choose(total: int, count: int) -> list[int]:
    """Returns the indices of at most `count` of `total` inputs, in order; the same ones each time."""
    if total <= count:
        return list(range(total))
    order = scores(stream(sample_keys(0, 0, torch.arange(total)), Stream.HOLDOUT), 1)[:, 0].argsort()  # (total,)
    return sorted(order[-count:].tolist())  # `data.holdout` takes the first ones


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)
