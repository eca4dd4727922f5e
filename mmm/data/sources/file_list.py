"""A list file: one sample a line, `path label`, as VideoMAE's repositories keep Kinetics and Something-Something."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmm.data.media import Medium
from mmm.data.sources.base import EVALUATION, Table
from mmm.data.sources.folder import FileColumn
from mmm.system.files import digest

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".csv", ".tsv", ".list")
# names of columns in a header, in lower case
PATHS = ("path", "paths", "file", "file_name", "filename", "file_path", "filepath", "video", "video_path", "frame_dir")
LABELS = ("label", "labels", "class", "classes", "class_id", "category", "target")
STARTS, TOTALS = ("start", "start_frame"), ("total", "total_frames", "num_frames", "frames")
KINDS = (PATHS, LABELS, STARTS, TOTALS)
FORMATS = "`path`, `path label`, and VideoMAE V2's `path total label`, `path start total` and `path start total label` are read"


class Row(NamedTuple):
    """A path and, where there is one, a label: a whole number or a name."""

    path: str
    label: str | None


class Columns(NamedTuple):
    """The places of the columns; None for one that is not there."""

    path: int = 0
    label: int | None = None
    start: int | None = None


class ListFile:
    """Lines of a path and, in all or in none of them, a label: a whole number, which keeps its value, or a name.

    Columns are separated by a tab, a comma, or else by spaces; a path that holds such a character stands in quotes. Empty lines and
    lines that start with # are left out. A header (`path,label`) is recognised: it says which column is which, and columns of other
    names are ignored. VideoMAE V2's `start total` (the first frame and the number of frames, or 0 -1 for a video file) is read
    if the video starts there; the number of frames is that of the video. A list called train.csv, val.csv, ... is that split, and
    those beside it of the same ending are the others.

    Args:
        file: the list.
        medium: type of the samples.
        root: folder from which relative paths start; None: the list's own.
    """

    def __init__(self, file: Path, medium: Medium, root: str | None = None) -> None:
        self.medium, self.root = medium, file.parent if root is None else Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.root {root} is no folder; give the one from which the paths in {file} start")
        self.files = {"train": file}
        if file.stem in ("train", *EVALUATION):
            beside = {name: file.with_name(name + file.suffix) for name in (file.stem, "train", *EVALUATION)}
            self.files = {name: path for name, path in beside.items() if path.is_file()}
        self.splits = tuple(self.files)

    def table(self, split: str) -> Table:
        """Reads one list.

        Raises:
            ValueError: naming the line that is not understood.
        """
        file = self.files[split]
        rows = read_list(file)
        if not rows:
            raise ValueError(f"data.source {file} names no {self.medium.noun}")
        labels, classes = _labels(file, [row.label for row in rows], self._names())
        column = FileColumn(self.root, [row.path for row in rows])
        return Table(column, labels, classes, digest([split, len(rows), *map(tuple, rows)]))

    def _names(self) -> list[str]:
        """The labels of all splits, so that their numbers agree."""
        return [row.label for file in self.files.values() for row in read_list(file) if row.label is not None]


def read_list(file: Path) -> list[Row]:
    """Returns the paths and labels of a list.

    Raises:
        ValueError: naming the line that is not understood.
    """
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1)}
    rows = {number: _split(line) for number, line in lines.items() if line and not line.startswith("#")}
    if not rows:
        return []
    first, *others = rows
    columns = _header(rows[first], [rows[number] for number in others])
    if columns is not None:
        _announce_header(file, first, lines[first][:80])
        del rows[first]
    else:
        columns = _columns_of(list(rows.values()))
    found = []
    for number, words in rows.items():
        where, width = f"data.source {file}, line {number}", len(next(iter(rows.values())))
        if columns is None or len(words) > max(4, width) or not words[columns.path]:
            advice = f"{FORMATS}; put a path with spaces or commas in quotes"
            raise ValueError(f"{where} has {len(words)} columns: {lines[number][:80]!r}; {advice}")
        if len(words) != width:
            raise ValueError(f"{where}: a label in some lines but not in all: {lines[number][:80]!r}")
        if columns.start is not None and words[columns.start] not in ("0", "1"):
            raise ValueError(f"{where} starts at frame {words[columns.start]}; only whole videos are read, from frame 0 or 1")
        found.append(Row(words[columns.path], None if columns.label is None else words[columns.label]))
    return found


@cache  # once, however often a run opens its data
def _announce_header(file: Path, line: int, text: str) -> None:
    logger.info("%s: line %d is taken as a header: %s", file, line, text)


def _header(words: list[str], others: Sequence[list[str]]) -> Columns | None:
    """Returns the columns that a first line names, or None where it is a sample's."""
    names = [word.lower() for word in words]
    path, label, start, total = (next((place for place, name in enumerate(names) if name in kind), None) for kind in KINDS)
    if path is not None and (len(names) == 1 or any(place is not None for place in (label, start, total))):
        return Columns(path, label, start)
    numbers = bool(others) and all(_is_number(row[-1]) for row in others)
    if numbers and len(words) > 1 and not _is_number(words[-1]) and not os.path.splitext(words[0])[1]:
        return _columns_of(others)
    return None


def _columns_of(rows: Sequence[list[str]]) -> Columns | None:
    """Returns the columns of lines without a header, by their number and content; None where they have no known format."""
    width = len(rows[0])
    if width <= 2:
        return Columns(label=1 if width == 2 else None)
    even = [row for row in rows if len(row) == width]
    if width > 4 or not all(_is_number(word) for row in even for word in row[1:3]):
        return None
    if width == 4:
        return Columns(start=1, label=3)
    starts = all(int(row[1]) <= 1 for row in even) or any(int(row[2]) < 0 for row in even)
    return Columns(start=1) if starts else Columns(label=2)  # `path start total`, or `path total label`


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _split(line: str) -> list[str]:
    """The columns of a line; separators within quotes do not count."""
    outside = "".join(part for i, part in enumerate(line.split('"')) if i % 2 == 0)
    separator = next((mark for mark in "\t," if mark in outside), " ")
    words = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return [word.strip() for word in words if separator != " " or word]


def _labels(file: Path, words: list[str | None], names: list[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels int64 (N,) and the classes' names."""
    if words[0] is None:
        return None, None
    if all(_is_number(name) for name in names):
        numbers, known = [int(word or 0) for word in words], set(map(int, names))
        if min(numbers) < 0:
            raise ValueError(f"data.source {file}: {min(numbers)} is no label; they start from 0")
        missing = [number for number in range(max(known)) if number not in known]
        if missing:
            listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            _announce_gaps(file, max(known), len(missing), listed)
        return torch.tensor(numbers), tuple(map(str, range(max(known) + 1)))
    classes = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[word or ""] for word in words]), classes


@cache
def _announce_gaps(file: Path, largest: int, missing: int, listed: str) -> None:
    logger.warning("%s: of the labels 0 to %d, %d have no sample: %s", file, largest, missing, listed)
