"""A data set: one split of a source, or a part of its rows. Base of `Images` and `Clips`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from mmm.core.checks import suggest
from mmm.core.rng import Stream, sample_keys, scores, stream
from mmm.data.config import DataConfig
from mmm.data.errors import Unreadable
from mmm.data.loading.loader import Order, SampleOrder
from mmm.data.loading.sampler import WeightedOrder
from mmm.data.sources.base import EVALUATION, Source, Table
from mmm.data.sources.resolve import find_source
from mmm.data.transforms.augment import rand_augment
from mmm.data.transforms.device_resize import DeferredCrops
from mmm.system.files import digest

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=DataConfig)


class Dataset(Generic[C]):
    """Rows of one split. Subclasses implement how samples are cut from an input.

    Args:
        table: the split.
        config: options of the data.
        rows: the rows of the table that belong to the data set, int64 (N,).
        where: name of the split or its part in messages: "train (held out)".

    Attributes:
        classes: the names of the classes, in the order of the labels, or None.
        fingerprint: 16 hexadecimal digits that change with the data.
    """

    def __init__(self, table: Table, config: C, rows: Tensor, where: str) -> None:
        self.table, self.config, self.rows, self.where = table, config, rows, where
        self.classes = table.classes
        whole = torch.equal(rows, torch.arange(len(table.column)))
        self.fingerprint = table.fingerprint if whole else digest([table.fingerprint, *rows.tolist()])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def title(self) -> str:
        """Name of the data set in messages: "the images of train (held out)"."""
        return f"the {self.config.medium.noun} of {self.where}"

    def labels(self) -> Tensor | None:
        """Returns labels int64 (N,), without decoding; None if the source has none."""
        return None if self.table.labels is None else self.table.labels[self.rows]

    def raw(self, index: int) -> Any:
        """Returns an input as the source stores it: encoded bytes, a path, or pixels."""
        return self.table.column[int(self.rows[index])]

    def name(self, index: int) -> str:
        """Returns the name of an input in messages: a path, or a row of a table."""
        return self.table.column.name(int(self.rows[index]))

    def order(self, seed: int, source: int = 0) -> SampleOrder:
        """Returns the order in which a run trains on the inputs. `source` is the number of this data set if the run mixes
        several."""
        if len(self.config.weights) < 2:  # a single source
            return Order(len(self), seed, source)
        ends = torch.tensor(self.table.parts).cumsum(0)
        joined = torch.bucketize(self.rows, ends, right=True)  # (N,)
        groups = [(joined == number).nonzero().flatten() for number in range(len(ends))]
        return WeightedOrder(groups, self.config.weights, seed, source)

    def at_size(self, size: tuple[int, int]) -> Self:
        """Returns the same inputs with training samples of another size, (h, w) in pixels. `crop_ratio` is relative to its aspect
        ratio."""
        config = self.config
        height, width = config.frame_size
        stretch = size[1] / size[0] * height / width
        ratio = (config.crop_ratio[0] * stretch, config.crop_ratio[1] * stretch)
        part = copy(self)
        part.config = replace(config, image_size=size, crop_ratio=ratio, sides=(), aspects=(), keep_aspect=False, pack=False)
        return part

    def prefetch(self, index: Tensor) -> None:
        """Announces to a remote source which inputs are read next, so that it can request them together."""
        column: Any = self.table.column
        if hasattr(column, "prefetch"):
            column.prefetch(self.rows[index].tolist())

    def augment(self, index: int, frames: Tensor, key: Tensor) -> None:
        """Applies `data.augment`, if it is set, to one training sample in place.

        Args:
            index: index of the input that the sample was cut from.
            frames: uint8 (T, h, w, C).
            key: key of the sample, int64 ().

        Raises:
            ValueError: an operation failed; the message names it and the input.
        """
        if self.config.augment is None:
            return
        try:
            rand_augment(frames, key, self.config.augment, self.config.mean)
        except ValueError as error:
            raise ValueError(f"{self.name(index)}: {error}") from error

    @property
    def defers_resize(self) -> bool:
        """See `Samples.defers_resize`."""
        return False

    def deferred_train_views(self, index: Tensor, keys: Tensor) -> tuple[DeferredCrops, dict[int, str]]:
        """Returns the samples of `train_views` before the device resizes them; used if `defers_resize` is true."""
        raise NotImplementedError

    def each(self, index: Tensor, work: Callable[[int, int], None]) -> dict[int, str]:
        """Calls `work` with the row and the index of each input, and returns the reasons of unreadable ones, by row."""
        failed: dict[int, str] = {}
        self.prefetch(index)
        for row, number in enumerate(index.tolist()):
            try:
                work(row, number)
            except Unreadable as error:
                failed[row] = str(error)
        return failed

    def subset(self, index: Tensor) -> Self:
        """Returns the inputs at these indices, int64 (K,), in this order."""
        return type(self)(self.table, self.config, self.rows[index], self.where)


def select_rows(config: DataConfig, split: str, source: Source | None = None) -> tuple[Table, Tensor, str]:
    """Opens the source and selects rows of one of its splits.

    Args:
        config: options of the data.
        split: `train` and `eval` are defined by DataConfig; any other name is a split of the source.
        source: an open source. None: the one that `data.source` names.

    Returns:
        The table, the rows, int64 (N,), and the name of the split or its part.

    Raises:
        ValueError: the source is missing or empty, or a split or column does not exist.
    """
    config.check()
    if split == "eval" and config.eval_source is not None:
        return _open_eval_source(config, config.eval_source)
    source = source or find_source(config)
    name, part = _choose(source.splits, config, split)
    table = source.table(name)
    if len(table.column) == 0:
        raise ValueError(f"data.source {config.source}: the split {name} is empty")
    rows = _rows(len(table.column), config.holdout, part)
    if part == "held out":
        _announce_held_out(str(config.source), len(rows), len(table.column), config.holdout)
    return table, rows, name if part == "all" else f"{name} ({part})"


def _open_eval_source(config: DataConfig, name: str) -> tuple[Table, Tensor, str]:
    """Opens the samples of `data.eval_source`, with labels that are the numbers of the classes of `data.source`."""
    source = find_source(replace(config, source=name, eval_source=None, weights=()))
    own = [split for split in (source.splits[0], *EVALUATION) if split in EVALUATION and split in source.splits]
    split = config.eval_split or (own or source.splits)[0]
    if split not in source.splits:
        raise ValueError(f"data.eval_split {split}: data.eval_source {name} has no such split{suggest(split, source.splits)}")
    table = source.table(split)
    if table.labels is not None and table.classes is not None:
        classes = find_source(config).table(config.split).classes
        if classes is not None and classes != table.classes:
            place = {known: number for number, known in enumerate(classes)}
            unknown = [
                table.classes[label] for label in table.labels.unique().tolist() if label >= 0 and table.classes[label] not in place
            ]
            if unknown:
                listed = ", ".join(unknown[:5])
                raise ValueError(f"data.eval_source {name} has classes that data.source {config.source} does not have: {listed}")
            numbers = torch.tensor([place.get(known, -1) for known in table.classes])  # (K,)
            table = replace(table, labels=numbers[table.labels].where(table.labels >= 0, -1), classes=classes)
    return table, torch.arange(len(table.column)), f"{split} of {name}"


@cache  # logs once, even if a run opens its data several times
def _announce_held_out(source: str, held: int, total: int, holdout: float) -> None:
    logger.info(
        "data.source %s has no split for evaluation: %d of its %d samples %s held out for it (data.holdout %g)",
        source,
        held,
        total,
        "is" if held == 1 else "are",
        holdout,
    )


def _choose(splits: tuple[str, ...], config: DataConfig, split: str) -> tuple[str, str]:
    """Chooses the split of the source and the part of it: all samples, the held-out samples, or the rest.

    Raises:
        ValueError: there is no such split.
    """
    own = config.eval_split or next((name for name in EVALUATION if name in splits and name != config.split), None)
    flags = {"train": ("data.split", config.split), "eval": ("data.eval_split", own) if own else ("data.split", config.split)}
    flag, name = flags.get(split, ("split", split))
    if name not in splits:
        raise ValueError(f"{flag} {name}: data.source {config.source} has no such split{suggest(name, splits)}")
    if own or config.eval_source or split not in flags:
        return name, "all"
    if split == "eval" and config.holdout == 0:
        raise ValueError(f"data.source {config.source} has no split for evaluation and data.holdout is 0; set it above 0")
    return name, "rest" if split == "train" else "held out"


def _rows(n: int, holdout: float, part: str) -> Tensor:
    """Returns the rows of a part, in order. The held-out rows are those with the smallest hashes, so that their number is
    exact."""
    if part == "all" or holdout == 0:
        return torch.arange(n)
    held = max(1, round(n * holdout))
    if held >= n:
        raise ValueError(f"data.holdout {holdout} of {n} samples leaves none to train on; lower it")
    keys = stream(sample_keys(0, 0, torch.arange(n)), Stream.HOLDOUT)
    order = scores(keys, 1)[:, 0].argsort()  # (N,)
    return (order[:held] if part == "held out" else order[held:]).sort().values
