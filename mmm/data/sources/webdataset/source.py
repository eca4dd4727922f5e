"""Tars of samples in WebDataset's convention, indexed once and then read in place.

Order, exact resume, process counts and labels are those of any other source: a sample is a place in a tar. What an index costs: one
walk over the headers of each new or changed tar; at an address the tars' bytes pass through that walk once, for images all of them.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from mmm.data.config import DataConfig
from mmm.data.errors import Unreadable
from mmm.data.sources.addresses import PAUSES
from mmm.data.sources.base import EVALUATION, Table
from mmm.data.sources.webdataset.headers import show
from mmm.data.sources.webdataset.index import Choice
from mmm.data.sources.webdataset.index_cache import Files, Kept, indices
from mmm.system.files import digest

logger = logging.getLogger(__name__)

CLASSES = 10_000_000  # a label above this is none


class TarColumn:
    """Samples in tars, as bytes.

    Args:
        files: which tars.
        number: of each sample's tar among them, int64 (N,).
        offset, size: of its bytes there, int64 (N,).
        names: of its member, an Arrow array of bytes (N,).
        titles: what a sample's name starts with, by tar.
    """

    def __init__(self, files: Files, number: Any, offset: Any, size: Any, names: Any, titles: Sequence[str]) -> None:
        self.files, self.places, self.names, self.titles = files, np.stack([number, offset, size]), names, titles

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> bytes:
        number, offset, size = self.places[:, row].tolist()
        content = self.files.read(number, offset, size)
        if len(content) < size:
            raise Unreadable("the tar ends before the sample does")
        return content

    def prefetch(self, rows: list[int]) -> None:
        """Says what is read next: at an address it is asked for all at once."""
        self.files.prefetch([tuple(place) for place in self.places[:, rows].T.tolist()])

    def name(self, row: int) -> str:
        return f"{self.titles[int(self.places[0, row])]}/{show(self.names[row].as_py())}"


class Tars:
    """Tars; a tar's split is a word of its name (train-000012.tar, imagenet-validation-00.tar), its folder's name, or `train`.

    Args:
        files: which; `config` may name their columns.
        title: of the source, for messages.

    Raises:
        ValueError: one cannot be had.
    """

    def __init__(self, files: Files, config: DataConfig, title: str) -> None:
        self.files, self.title = files, title
        self.choice = Choice(config.medium, config.column, config.label_column)
        self.split_of = [_split_of(address) for address in files.addresses]
        self.splits = tuple(dict.fromkeys(self.split_of))
        if not files.here:
            _announce(title, files.checks)

    def table(self, split: str) -> Table:
        """Reads the index of one split, after all that are missing were made.

        Raises:
            ValueError: a tar cannot be read in place, or there is no sample.
        """
        numbers = [number for number, name in enumerate(self.split_of) if name == split]
        kept = [self._indices[number] for number in numbers]
        counts = [len(table) for table, _ in kept]
        self._report(split, [self.files.addresses[number] for number in numbers], kept, sum(counts))
        import pyarrow

        rows = pyarrow.concat_tables([table for table, _ in kept])
        offset, size = (rows[name].to_numpy() for name in ("offset", "size"))
        names = rows["name"].combine_chunks()
        cells = TarColumn(self.files, np.repeat(numbers, counts), offset, size, names, _titles(self.files.addresses))
        labels, classes = _labels(rows["label"].to_pylist(), self._words)
        return Table(cells, labels, classes, digest([split, *(facts["fingerprint"] for _, facts in kept)]))

    @cached_property
    def _words(self) -> list[str]:
        """The labels of all splits, so that their numbers agree.

        Raises:
            ValueError: a column of labels was named, and there is none.
        """
        words = {word for table, _ in self._indices for word in table["label"].unique().to_pylist()} - {None}
        if not words and self.choice.label is not None:
            raise ValueError(f"data.label_column {self.choice.label}: no sample of {self.title} has one")
        return sorted(words)

    @cached_property
    def _indices(self) -> list[Kept]:
        """The index of each tar."""
        return indices(self.files, self.choice)

    def _report(self, split: str, addresses: list[str], kept: list[Kept], count: int) -> None:
        """Says what is not taken, and what is lost."""
        left = sum((Counter(facts["left"]) for _, facts in kept), Counter[str]())
        listed, noun = ", ".join(f"{number} x {what}" for what, number in left.most_common()), self.choice.medium.noun
        if not count:
            raise ValueError(f"data.source {self.title}: the tars of {split} hold no {noun}" + (f", only {listed}" if left else ""))
        if left:
            logger.warning("%s (%s): %d %s in %d tars taken; left out: %s", self.title, split, count, noun, len(kept), listed)
        for address, (table, facts) in zip(addresses, kept, strict=True):
            if facts["lost"]:
                logger.warning("%s is damaged: %s; the %d %s before are used", address, facts["lost"], len(table), noun)


@cache  # once, however often a run opens its data
def _announce(title: str, checks: str) -> None:
    logger.info(
        "%s is read over the network, which guarantees less than a disk: order, crops, masks, resume and process counts are exact "
        "only as long as these files stay as they were indexed (%s), and a sample that does not come in %d tries is replaced and "
        "named in bad_inputs.jsonl: such a run is not what an undisturbed one is",
        title,
        checks,
        len(PAUSES),
    )


def _split_of(address: str) -> str:
    path = PurePath(urlsplit(address).path if "://" in address else address)
    words = [*re.split(r"[-_.]", path.stem), path.parent.name]
    return next((word for word in words if word in ("train", *EVALUATION)), "train")


def _titles(addresses: list[str]) -> list[str]:
    """The addresses, without what is before the folder that holds them all."""
    folders = [address.replace(os.sep, "/").split("/")[:-1] for address in addresses]
    common = next((place for place, words in enumerate(zip(*folders, strict=False)) if len(set(words)) > 1), min(map(len, folders)))
    return [address.replace(os.sep, "/").split("/", common)[common] for address in addresses]


def _labels(texts: list[str | None], words: list[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels int64 (N,), -1 where a sample has none, and the classes' names."""
    if not any(text is not None for text in texts):
        return None, None
    if not all(word.removeprefix("-").isdecimal() for word in words):
        number = {word: i for i, word in enumerate(words)}
        return torch.tensor([-1 if text is None else number[text] for text in texts]), tuple(words)
    least, most = (choose(map(int, words)) for choose in (min, max))
    if least < 0 or most > CLASSES:
        raise ValueError(f"data.source: {least if least < 0 else most} is no label; they go from 0 to {CLASSES:,}")
    return torch.tensor([-1 if text is None else int(text) for text in texts]), tuple(map(str, range(most + 1)))
