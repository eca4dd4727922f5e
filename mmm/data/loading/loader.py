"""Batches: which samples a process gets at which step, made in worker processes, the same whatever their number.

Nothing here knows images from clips: a set of inputs is whatever has `Samples`' methods. One decoded input may give several
views, each of which is a sample to the model: R of them in training (`data.repeats`), V in evaluation. They follow each other.
Shapes: b inputs, B = b R or b V samples of a micro-batch, C channels, (..., h, w) of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmm.core.rng import Stream, integers, sample_keys, stream
from mmm.data.errors import Problem
from mmm.data.loading.sampler import Order, WeightedOrder
from mmm.data.loading.worker_pool import load
from mmm.data.transforms.device_resize import Cuts, Packed

SUBSTITUTES = 10  # samples that are tried in the place of an unreadable one


class Samples(Protocol):
    """What can be loaded; `mmm.data.datasets.images.Images` documents the methods."""

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str: ...

    def labels(self) -> Tensor | None: ...

    def order(self, seed: int, source: int, /) -> Order | WeightedOrder: ...

    @property
    def resized_later(self) -> bool:
        """Whether training takes `train_cuts`, which the device resizes, and not `train_views`."""
        ...

    def train_views(self, index: Tensor, keys: Tensor, /) -> tuple[Tensor, dict[int, str]]:
        """Inputs (b,) and a key for each view, (b R,), to uint8 (b R, C, ..., h, w), and why inputs could not be read, by row."""
        ...

    def train_cuts(self, index: Tensor, keys: Tensor, /) -> tuple[Cuts, dict[int, str]]:
        """The same to what the views are cut from."""
        ...

    def eval_views(self, index: Tensor, /) -> tuple[Tensor, dict[int, str]]:
        """Inputs (b,) to uint8 (b V, C, ..., h, w), and the same."""
        ...


class LoaderConfig(Protocol):
    """What of the data's configuration concerns the loader."""

    @property
    def workers(self) -> int: ...

    @property
    def repeats(self) -> int: ...

    @property
    def views(self) -> int: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process.

    Attributes:
        pixels: uint8 (B, C, ..., h, w); none until `to` with cuts.
        keys: from which all else that is drawn for a sample comes, int64 (B,).
        index: of the samples in the data, int64 (B,); of the substitute where one was needed.
        epoch: int64 (B,).
        labels: int64 (B,), or None.
        problems: the inputs of this batch that could not be read.
        cuts: what the samples are made of on the device (`data.resize device`); none where workers made them.
        source: which of several sources the samples are of.
    """

    pixels: Tensor
    keys: Tensor
    index: Tensor
    epoch: Tensor
    labels: Tensor | None
    problems: list[Problem]
    cuts: Packed | None = None
    source: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def pin_memory(self) -> Batch:
        """In page-locked memory; torch's loader calls this where there is a GPU."""
        batch = self._each(Tensor.pin_memory)
        return batch if self.cuts is None else replace(batch, cuts=self.cuts.pin_memory())

    def to(self, device: torch.device | str) -> Batch:
        """On a device, without waiting for the copy; cuts are resized there."""
        batch = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return batch if self.cuts is None else replace(batch, pixels=self.cuts.resize(device), cuts=None)

    def _each(self, change: Any) -> Batch:
        names = ("pixels", "keys", "index", "epoch") + (() if self.labels is None else ("labels",))
        return replace(self, **{name: change(getattr(self, name)) for name in names})


Request = tuple[list[int], list[int]]  # epochs and indices; lists, because tensors would take two file handles each in the queue


class _Views(Dataset[Batch]):
    """What the worker processes hold. An error that ends the run is returned: raised here, it would arrive as a traceback."""

    def __init__(self, samples: Samples, seed: int, train: bool, repeats: int, source: int = 0) -> None:
        self.samples, self.seed, self.train, self.repeats, self.source = samples, seed, train, repeats, source
        self.labels = samples.labels()

    def __getitems__(self, request: Request) -> Batch | ValueError:
        epoch, index = (torch.tensor(numbers, dtype=torch.int64) for numbers in request)
        repeat = torch.arange(self.repeats)
        keys = sample_keys(self.seed, epoch[:, None], index[:, None], source=self.source, repeat=repeat)  # (b, R)
        try:
            return self._train(keys, index, epoch) if self.train else self._eval(keys, index, epoch)
        except ValueError as error:
            return error

    def _problems(self, index: Tensor, failed: dict[int, str]) -> list[Problem]:
        places = {row: int(index[row]) for row in failed}
        return [Problem(place, self.samples.name(place), failed[row]) for row, place in places.items()]

    def _train(self, keys: Tensor, index: Tensor, epoch: Tensor) -> Batch:
        """Each unreadable sample is replaced by the next readable of a row that its key names; the key stays."""
        views, failed = self._read(index, keys)
        problems = self._problems(index, failed)
        for attempt in range(SUBSTITUTES):
            if not failed:
                break
            rows = torch.tensor(sorted(failed))
            index[rows] = integers(stream(keys[rows, 0], Stream.SUBSTITUTE), len(self.samples), SUBSTITUTES)[:, attempt]
            others, again = self._read(index[rows], keys[rows])
            _put(views, rows, others)
            failed = {int(rows[row]): reason for row, reason in again.items()}
            problems += self._problems(index, failed)
        if failed:
            last = problems[-1]
            raise ValueError(f"{SUBSTITUTES + 1} samples in a row cannot be read, the last {last.name}: {last.reason}")
        return self._batch(views, keys, index, epoch, problems)

    def _eval(self, keys: Tensor, index: Tensor, epoch: Tensor) -> Batch:
        """Unreadable inputs are left out."""
        pixels, failed = self.samples.eval_views(index)
        pixels = pixels.unflatten(0, (-1, self.repeats))  # (b, V, ...)
        kept = torch.tensor([row for row in range(len(index)) if row not in failed], dtype=torch.int64)
        return self._batch(pixels[kept], keys[kept], index[kept], epoch[kept], self._problems(index, failed))

    def _read(self, index: Tensor, keys: Tensor) -> tuple[Tensor | Cuts, dict[int, str]]:
        """(b, R, C, ..., h, w), or what it is cut from."""
        if self.samples.resized_later:
            return self.samples.train_cuts(index, keys.flatten())
        pixels, failed = self.samples.train_views(index, keys.flatten())
        return pixels.unflatten(0, (-1, self.repeats)), failed

    def _batch(self, views: Tensor | Cuts, keys: Tensor, index: Tensor, epoch: Tensor, problems: list[Problem]) -> Batch:
        """One row a view."""
        index, epoch = (values.repeat_interleave(self.repeats) for values in (index, epoch))
        labels = None if self.labels is None else self.labels[index]
        if isinstance(views, Tensor):
            return Batch(views.flatten(0, 1), keys.flatten(), index, epoch, labels, problems, source=self.source)
        nothing = torch.empty(0, dtype=torch.uint8)
        return Batch(nothing, keys.flatten(), index, epoch, labels, problems, views.pack(), self.source)


def _put(views: Tensor | Cuts, rows: Tensor, others: Tensor | Cuts) -> None:
    """Views of other inputs take the places of some."""
    if isinstance(views, Tensor):
        assert isinstance(others, Tensor)
        views[rows] = others
    else:
        assert isinstance(others, Cuts)
        views.put(rows, others)


def train_batches(
    samples: Samples,
    config: LoaderConfig,
    *,
    seed: int,
    batch_size: int,
    steps: int,
    start_step: int = 0,
    accumulation: int = 1,
    world: int = 1,
    rank: int = 0,
    source: int = 0,
) -> Iterator[Batch]:
    """The micro-batches of one process, from step `start_step` to the end of the run.

    Step s trains on samples s * G .. (s + 1) * G - 1 of the run, G = batch_size * world * accumulation. The process takes the
    contiguous `rank`-th part of them, cut into `accumulation` micro-batches. To start in the middle costs nothing. Sample n is
    view n mod R of input n // R of the order, so that an epoch, which reads each input once, gives R samples of each.

    Args:
        samples: the data.
        config: of the data; only the numbers of workers and of views are read, the rest is the samples' own.
        seed: of the run.
        batch_size: of a micro-batch of a process, samples.
        steps: of the whole run; steps - start_step are given out.
        start_step: the first.
        accumulation: micro-batches a step and process.
        world, rank: number of processes, and which one this is.
        source: which of several sources this is: samples of two draw apart.

    Raises:
        ValueError: where too many samples in a row cannot be read, or the views of an input would be parted.
    """
    order, repeats = samples.order(seed, source), config.repeats
    if batch_size % repeats:
        raise ValueError(f"data.repeats {repeats} does not divide the micro-batch of a process, {batch_size} samples; change one")
    size = batch_size // repeats
    part = size * accumulation

    def requests() -> Iterator[Request]:
        for step in range(start_step, steps):
            for micro in range(accumulation):
                epoch, index = order.at((step * world + rank) * part + micro * size, size)
                yield epoch.tolist(), index.tolist()

    return load(_Views(samples, seed, train=True, repeats=repeats, source=source), requests, config.workers)


def eval_batches(samples: Samples, config: LoaderConfig, *, batch_size: int, world: int = 1, rank: int = 0) -> Iterator[Batch]:
    """Every input once, in order, in batches that are the same on any number of processes: rank r takes the contiguous r-th part
    of them, which may be none, so that the parts one after the other are the whole.

    The keys are the same in every run and at every step (seed 0, epoch 0), so that masks drawn from them are too. What cannot be
    read is left out of its batch, which may be empty, and named in its problems.

    Args:
        samples: the data.
        config: of the data; only the numbers of workers and of views are read.
        batch_size: samples, of which an input gives V; the last batch is smaller.
        world, rank: number of processes, and which one this is.
    """
    size = max(1, batch_size // config.views)
    batches = -(-len(samples) // size)
    first, end = (batches * r // world for r in (rank, rank + 1))

    def requests() -> Iterator[Request]:
        for number in range(first, end):
            index = list(range(number * size, min((number + 1) * size, len(samples))))
            yield [0] * len(index), index

    return load(_Views(samples, 0, train=False, repeats=config.views), requests, config.workers)
