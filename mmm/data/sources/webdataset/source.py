"""WebDataset tars: indexed once, then read in place.

A sample is a position in a tar, so that order, exact resume, numbers of processes and labels work as for any other source. The
index of a new or changed tar is made by reading its headers. For a tar at an address, this transfers the tar once (if it contains
images, almost all of it).
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
from mmm.data.sources.webdataset.index import Selection
from mmm.data.sources.webdataset.index_cache import CachedIndex, TarFiles, load_indices
from mmm.system.files import digest

logger = logging.getLogger(__name__)

MAX_CLASS = 10_000_000  # larger numbers are not labels


class TarColumn:
    """Samples in tars, as bytes.

    Args:
        files: the tars.
        number: the number of each sample's tar, int64 (N,).
        offset, size: the position of its bytes there, int64 (N,).
        names: names of the members, an Arrow array of bytes (N,).
        titles: the first part of the samples' names, by tar.
    """

    def __init__(self, files: TarFiles, number: Any, offset: Any, size: Any, names: Any, titles: Sequence[str]) -> None:
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
        """Announces the rows that are read next; tars at addresses request them together."""
        self.files.prefetch([tuple(place) for place in self.places[:, rows].T.tolist()])

    def name(self, row: int) -> str:
        """See `Column.name`."""
        return f"{self.titles[int(self.places[0, row])]}/{show(self.names[row].as_py())}"


class Tars:
    """A source of tars. The split of a tar is a word of its name (train-000012.tar, imagenet-validation-00.tar), the name of its
    folder, or `train`.

    Args:
        files: the tars.
        config: options, which may name the columns.
        title: the name of the source in messages.
    """

    def __init__(self, files: TarFiles, config: DataConfig, title: str) -> None:
        self.files, self.title = files, title
        self.selection = Selection(config.medium, config.column, config.label_column)
        self.split_of = [_split_of(address) for address in files.addresses]
        self.splits = tuple(dict.fromkeys(self.split_of))
        if not files.is_local:
            _announce(title, files.checks)

    def table(self, split: str) -> Table:
        """Makes the missing indices, and returns the samples of one split.

        Raises:
            ValueError: a tar cannot be read in place, or there is no sample.
        """
        numbers = [number for number, name in enumerate(self.split_of) if name == split]
        indices = [self._indices[number] for number in numbers]
        counts = [len(table) for table, _ in indices]
        self._report(split, [self.files.addresses[number] for number in numbers], indices, sum(counts))
        import pyarrow

        rows = pyarrow.concat_tables([table for table, _ in indices])
        offset, size = (rows[name].to_numpy() for name in ("offset", "size"))
        names = rows["name"].combine_chunks()
        column = TarColumn(self.files, np.repeat(numbers, counts), offset, size, names, _titles(self.files.addresses))
        labels, classes = _number_labels(rows["label"].to_pylist(), self._label_texts)
        return Table(column, labels, classes, digest([split, *(facts["fingerprint"] for _, facts in indices)]))

    @cached_property
    def _label_texts(self) -> list[str]:
        """Returns the distinct labels of all splits, so that their numbers agree.

        Raises:
            ValueError: the named column of labels does not exist.
        """
        texts = {text for table, _ in self._indices for text in table["label"].unique().to_pylist()} - {None}
        if not texts and self.selection.label is not None:
            raise ValueError(f"data.label_column {self.selection.label}: no sample of {self.title} has one")
        return sorted(texts)

    @cached_property
    def _indices(self) -> list[CachedIndex]:
        return load_indices(self.files, self.selection)

    def _report(self, split: str, addresses: list[str], indices: list[CachedIndex], count: int) -> None:
        """Logs the members that are left out, and damaged tars."""
        skipped = sum((Counter(facts["skipped"]) for _, facts in indices), Counter[str]())
        listed, noun = ", ".join(f"{number} x {kind}" for kind, number in skipped.most_common()), self.selection.medium.noun
        if not count:
            raise ValueError(
                f"data.source {self.title}: the tars of {split} hold no {noun}" + (f", only {listed}" if skipped else "")
            )
        if skipped:
            logger.warning("%s (%s): %d %s in %d tars found; left out: %s", self.title, split, count, noun, len(indices), listed)
        for address, (table, facts) in zip(addresses, indices, strict=True):
            if facts["damage"]:
                logger.warning("%s is damaged: %s; the %d %s before are used", address, facts["damage"], len(table), noun)


@cache  # logs once, even if a run opens its data several times
def _announce(title: str, checks: str) -> None:
    logger.info(
        "%s is read over the network, with weaker guarantees than a disk: order, crops, masks, resume and process counts are exact "
        "only as long as these files do not change (%s). A sample that does not arrive in %d tries is replaced and named in "
        "bad_inputs.jsonl, which changes the run",
        title,
        checks,
        len(PAUSES),
    )


def _split_of(address: str) -> str:
    path = PurePath(urlsplit(address).path if "://" in address else address)
    words = [*re.split(r"[-_.]", path.stem), path.parent.name]
    return next((word for word in words if word in ("train", *EVALUATION)), "train")


def _titles(addresses: list[str]) -> list[str]:
    """Returns the addresses relative to the folder that contains all of them."""
    folders = [address.replace(os.sep, "/").split("/")[:-1] for address in addresses]
    common = next((place for place, words in enumerate(zip(*folders, strict=False)) if len(set(words)) > 1), min(map(len, folders)))
    return [address.replace(os.sep, "/").split("/", common)[common] for address in addresses]


def _number_labels(texts: list[str | None], known: list[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Returns labels int64 (N,), -1 for samples without one, and the names of the classes."""
    if not any(text is not None for text in texts):
        return None, None
    if not all(text.removeprefix("-").isdecimal() for text in known):
        number = {text: i for i, text in enumerate(known)}
        return torch.tensor([-1 if text is None else number[text] for text in texts]), tuple(known)
    least, most = (choose(map(int, known)) for choose in (min, max))
    if least < 0 or most > MAX_CLASS:
        raise ValueError(f"data.source: {least if least < 0 else most} is not a label; labels go from 0 to {MAX_CLASS:,}")
    return torch.tensor([-1 if text is None else int(text) for text in texts]), tuple(map(str, range(most + 1)))
