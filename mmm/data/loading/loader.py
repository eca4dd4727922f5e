"""Makes the batches of each step and process, in order, in worker processes. They are the same for any number of workers.

The loader does not distinguish images from clips: a data set is any object with the methods of `Samples`. One decoded input may
yield several views, each of which is a sample for the model: R in training (`data.repeats`), V in evaluation. They are adjacent in
a batch.

Shapes: b inputs, B = b R or b V samples of a micro-batch, C channels, (..., h, w) of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmm.core.rng import Stream, integers, permutation, sample_keys, stream
from mmm.data.config import DataConfig
from mmm.data.errors import Problem
from mmm.data.loading.sizes import TrainSizes
from mmm.data.loading.worker_pool import load
from mmm.data.transforms.crop import flip, lighting, normalise
from mmm.data.transforms.device_resize import DeferredCrops, PackedCrops

SUBSTITUTES = 10  # samples that are tried in place of an unreadable one


class SampleOrder(Protocol):
    """The order in which a run trains on the samples of a data set."""

    def at(self, first: int, count: int, /) -> tuple[Tensor, Tensor]:
        """Returns epochs and indices of samples first .. first + count - 1 of the run, int64 (count,) each."""
        ...


class Order:
    """A permutation of the samples for each epoch, made from (seed, epoch).

    Sample p of a run is position p mod n of epoch p // n. A step therefore has the same samples on any number of processes and
    after any resume. A batch may cross the end of an epoch, and a data set may be smaller than a batch.

    Args:
        n: number of samples in the data set.
        seed: random seed of the run.
        source: number of the data set if a run mixes several; data sets of equal length have different permutations.
        group: number of this group of samples within its source.
    """

    def __init__(self, n: int, seed: int, source: int = 0, group: int = 0) -> None:
        assert n > 0
        self.n, self.seed, self.source, self.group = n, seed, source, group
        self._epochs: dict[int, Tensor] = {}

    def at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """See `SampleOrder.at`."""
        position = torch.arange(first, first + count, dtype=torch.int64)
        epoch, place = position // self.n, position % self.n
        index = torch.empty_like(position)
        for number in range(first // self.n, (first + count - 1) // self.n + 1 if count else 0):
            here = epoch == number
            index[here] = self._epoch(number)[place[here]]
        return epoch, index

    def _epoch(self, number: int) -> Tensor:
        """Returns the permutation of an epoch, (n,). Keeps the last two (1.28 million samples: 55 ms and 10 MB each)."""
        if number not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            key = stream(sample_keys(self.seed, number, self.group, source=self.source), Stream.ORDER)
            self._epochs[number] = permutation(key, self.n)[0]
        return self._epochs[number]


class Samples(Protocol):
    """A data set that can be loaded; `mmm.data.datasets.images.Images` documents the methods."""

    @property
    def config(self) -> DataConfig: ...

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str: ...

    def labels(self) -> Tensor | None: ...

    def order(self, seed: int, source: int, /) -> SampleOrder: ...

    @property
    def defers_resize(self) -> bool:
        """True if training uses `deferred_train_views`, which the device resizes, instead of `train_views`."""
        ...

    def train_views(self, index: Tensor, keys: Tensor, /) -> tuple[Tensor, dict[int, str]]:
        """Reads inputs (b,) with a key for each view, (b R,): uint8 (b R, C, ..., h, w), and reasons for unreadable inputs, by
        row."""
        ...

    def deferred_train_views(self, index: Tensor, keys: Tensor, /) -> tuple[DeferredCrops, dict[int, str]]:
        """Returns what `train_views` returns, before the views are resized."""
        ...

    def eval_views(self, index: Tensor, /) -> tuple[Tensor, dict[int, str]]:
        """Reads inputs (b,): uint8 (b V, C, ..., h, w), and reasons for unreadable inputs, by row."""
        ...


class LoaderConfig(Protocol):
    """The part of the data's configuration that the loader reads."""

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
        pixels: uint8 (B, C, ..., h, w); empty until `to` is called if the crops are deferred.
        keys: the source of all random numbers of a sample, int64 (B,).
        index: indices of the samples in the data set, int64 (B,). A replaced input has the index of its substitute.
        epoch: int64 (B,).
        labels: int64 (B,), or None.
        problems: the inputs of this batch that could not be read.
        deferred: crops that are resized on the device (`data.resize device`); None if workers resized them.
        source: number of the source of the samples.
        targets: the objects of each sample, for data sets with objects; stays on the CPU.
        also: further samples of this batch, one batch for each further size (`data.pack`).
    """

    pixels: Tensor
    keys: Tensor
    index: Tensor
    epoch: Tensor
    labels: Tensor | None
    problems: list[Problem]
    deferred: PackedCrops | None = None
    source: int = 0
    targets: tuple[dict[str, Tensor], ...] = ()
    also: tuple[Batch, ...] = ()

    def __len__(self) -> int:
        return len(self.index) + sum(map(len, self.also))

    @property
    def parts(self) -> tuple[Batch, ...]:
        """One batch for each size of the samples."""
        return (replace(self, also=()), *self.also) if self.also else (self,)

    def pin_memory(self) -> Batch:
        """Copies the batch into page-locked memory; torch's loader calls this if there is a GPU."""
        batch = replace(self._each(Tensor.pin_memory), also=tuple(part.pin_memory() for part in self.also))
        return batch if self.deferred is None else replace(batch, deferred=self.deferred.pin_memory())

    def to(self, device: torch.device | str) -> Batch:
        """Copies the batch to a device without waiting, and resizes deferred crops there."""
        batch = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        batch = replace(batch, also=tuple(part.to(device) for part in self.also))
        return batch if self.deferred is None else replace(batch, pixels=self.deferred.resize(device), deferred=None)

    def _each(self, change: Any) -> Batch:
        names = ("pixels", "keys", "index", "epoch") + (() if self.labels is None else ("labels",))
        return replace(self, **{name: change(getattr(self, name)) for name in names})


# epochs, indices and the update; lists, because tensors would take two file handles each in the queue
Request = tuple[list[int], list[int], int]


class _Views(Dataset[Batch]):
    """Makes batches, in worker processes or in this one."""

    def __init__(self, samples: Samples, seed: int, train: bool, repeats: int, source: int = 0) -> None:
        self.samples, self.seed, self.train, self.repeats, self.source = samples, seed, train, repeats, source
        self.labels = samples.labels()
        self.sizes = TrainSizes(samples, seed, source) if train and samples.config.varies else None

    def __getitems__(self, request: Request) -> Batch | ValueError:
        """Makes a batch in a worker. Returns an error that ends the run instead of raising it, because the parent would get a
        raised error as a traceback."""
        try:
            return self.batch(request)
        except ValueError as error:
            return error

    def batch(self, request: Request) -> Batch:
        """Makes the batch of a request."""
        epoch, index = (torch.tensor(numbers, dtype=torch.int64) for numbers in request[:2])
        repeat = torch.arange(self.repeats)
        keys = sample_keys(self.seed, epoch[:, None], index[:, None], source=self.source, repeat=repeat)  # (b, R)
        if not self.train:
            return self._eval(keys, index, epoch)
        if self.sizes is None:
            return self._train(self.samples, keys, index, epoch)
        groups = self.sizes.groups(request[2], index, keys)
        first, *others = (self._train(samples, keys[rows], index[rows], epoch[rows]) for samples, rows in groups)
        problems = sum((part.problems for part in others), first.problems)
        return replace(first, problems=problems, also=tuple(others))

    def _problems(self, index: Tensor, failed: dict[int, str]) -> list[Problem]:
        places = {row: int(index[row]) for row in failed}
        return [Problem(place, self.samples.name(place), failed[row]) for row, place in places.items()]

    def _train(self, samples: Samples, keys: Tensor, index: Tensor, epoch: Tensor) -> Batch:
        """Replaces each unreadable input by the first readable one of a sequence drawn from its key. The key stays the same."""
        views, failed = self._read(samples, index, keys)
        problems = self._problems(index, failed)
        for attempt in range(SUBSTITUTES):
            if not failed:
                break
            rows = torch.tensor(sorted(failed))
            index[rows] = integers(stream(keys[rows, 0], Stream.SUBSTITUTE), len(self.samples), SUBSTITUTES)[:, attempt]
            others, again = self._read(samples, index[rows], keys[rows])
            _put(views, rows, others)
            failed = {int(rows[row]): reason for row, reason in again.items()}
            problems += self._problems(index, failed)
        if failed:
            last = problems[-1]
            raise ValueError(f"{SUBSTITUTES + 1} samples in a row cannot be read, the last {last.name}: {last.reason}")
        return self._batch(views, keys, index, epoch, problems)

    def _eval(self, keys: Tensor, index: Tensor, epoch: Tensor) -> Batch:
        """Leaves unreadable inputs out."""
        pixels, failed = self.samples.eval_views(index)
        pixels = pixels.unflatten(0, (-1, self.repeats))  # (b, V, ...)
        kept = torch.tensor([row for row in range(len(index)) if row not in failed], dtype=torch.int64)
        return self._batch(pixels[kept], keys[kept], index[kept], epoch[kept], self._problems(index, failed))

    def _read(self, samples: Samples, index: Tensor, keys: Tensor) -> tuple[Tensor | DeferredCrops, dict[int, str]]:
        """Reads views (b, R, C, ..., h, w), or deferred crops; also returns the reasons for unreadable inputs, by row."""
        if samples.defers_resize:
            return samples.deferred_train_views(index, keys.flatten())
        pixels, failed = samples.train_views(index, keys.flatten())
        return pixels.unflatten(0, (-1, self.repeats)), failed

    def _batch(self, views: Tensor | DeferredCrops, keys: Tensor, index: Tensor, epoch: Tensor, problems: list[Problem]) -> Batch:
        """Returns a batch with one row for each view."""
        index, epoch = (values.repeat_interleave(self.repeats) for values in (index, epoch))
        labels = None if self.labels is None else self.labels[index]
        if isinstance(views, Tensor):
            made = getattr(self.samples, "targets", None)  # only data sets with objects have it
            targets = () if made is None else made(index, keys.flatten(), self.train)
            return Batch(views.flatten(0, 1), keys.flatten(), index, epoch, labels, problems, source=self.source, targets=targets)
        nothing = torch.empty(0, dtype=torch.uint8)
        return Batch(nothing, keys.flatten(), index, epoch, labels, problems, views.pack(), self.source)


def _put(views: Tensor | DeferredCrops, rows: Tensor, others: Tensor | DeferredCrops) -> None:
    """Replaces the views of some rows."""
    if isinstance(views, Tensor):
        assert isinstance(others, Tensor)
        views[rows] = others
    else:
        assert isinstance(others, DeferredCrops)
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
    """Yields the micro-batches of one process, from step `start_step` to the end of the run.

    Step s trains on samples s * G .. (s + 1) * G - 1 of the run, G = batch_size * world * accumulation. A process takes the
    contiguous `rank`-th part of them, in `accumulation` micro-batches. All of them have one size, which depends on the step; with
    `data.pack` the size of each sample depends on its key. Starting in the middle of a run takes no extra time. Sample n is view n
    mod R of input n // R of the order, so an epoch reads each input once and trains on R samples of it.

    Args:
        samples: the data set.
        config: config of the data; only the numbers of workers and views are read here.
        seed: random seed of the run.
        batch_size: samples of a micro-batch of one process.
        steps: number of updates of the whole run.
        start_step: the first step.
        accumulation: micro-batches per step and process.
        world, rank: number of processes, and the number of this one.
        source: number of the data set if a run mixes several; their samples draw different random numbers.

    Raises:
        ValueError: too many successive samples cannot be read, or the views of an input would be in two micro-batches.
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
                yield epoch.tolist(), index.tolist(), step

    return _load(_Views(samples, seed, train=True, repeats=repeats, source=source), requests, config.workers)


def eval_batches(samples: Samples, config: LoaderConfig, *, batch_size: int, world: int = 1, rank: int = 0) -> Iterator[Batch]:
    """Yields every input once, in order, in batches that do not depend on the number of processes.

    Rank r takes the contiguous r-th part of the batches, which may be empty. The keys, and the masks drawn from them, are the same
    in every run and at every step (seed 0, epoch 0). An unreadable input is left out of its batch, which may become empty, and is
    named in the batch's problems.

    Args:
        samples: the data set.
        config: config of the data; only the numbers of workers and views are read here.
        batch_size: number of samples, V for each input; the last batch may be smaller.
        world, rank: number of processes, and the number of this one.
    """
    size = max(1, batch_size // config.views)
    batches = -(-len(samples) // size)
    first, end = (batches * r // world for r in (rank, rank + 1))

    def requests() -> Iterator[Request]:
        for number in range(first, end):
            index = list(range(number * size, min((number + 1) * size, len(samples))))
            yield [0] * len(index), index, 0

    return _load(_Views(samples, 0, train=False, repeats=config.views), requests, config.workers)


def _load(views: _Views, requests: Callable[[], Iterator[Request]], workers: int) -> Iterator[Batch]:
    """Yields the batches of the requests, made in worker processes, or in this process if there are none."""
    if workers:
        return load(views, requests, workers)
    batches = map(views.batch, requests())
    return map(Batch.pin_memory, batches) if torch.cuda.is_available() else batches


def prepare(batch: Batch, config: DataConfig, *, train: bool) -> Tensor:
    """Normalises the pixels of a batch on its device, after flips and lighting in training. float32 (B, C, ..., h, w).

    Raises:
        ValueError: samples of different sizes are packed; prepare each of `Batch.parts` instead.
    """
    if batch.also:
        raise ValueError("data.pack is for pretraining; leave it out, so that the samples of an update have one size")
    x = batch.pixels
    if train:
        x = flip(x, batch.keys, config.flip)
        if config.lighting:
            x = lighting(x.float(), batch.keys, config.lighting)
    return normalise(x, config.mean, config.std)
