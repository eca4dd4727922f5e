"""A list file: one sample a line, `path label`, as VideoMAE's repositories keep Kinetics and Something-Something."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from mmm.data.media import Medium
from mmm.data.sources.base import EVALUATION, Table
from mmm.data.sources.folder import FileColumn
from mmm.system.files import digest

SUFFIXES = (".txt", ".csv", ".tsv", ".list")


class ListFile:
    """Lines of a path and, in all or in none of them, a label: a whole number or a name.

    Columns are parted by a tab, a comma, or else by spaces; a path that holds such a character stands in quotes. Relative paths
    start from the list's own folder. Empty lines and lines that start with # are left out. A list called train.csv, val.csv, ...
    is that split, and those beside it of the same ending are the others.

    Args:
        file: the list.
        medium: what a sample is.
    """

    def __init__(self, file: Path, medium: Medium) -> None:
        self.medium = medium
        self.files = {"train": file}
        if file.stem in ("train", *EVALUATION):
            beside = {name: file.with_name(name + file.suffix) for name in ("train", *EVALUATION)}
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
        paths, words = [path for path, _ in rows], [label for _, label in rows]
        labels, classes = _labels(file, words, self._names())
        return Table(FileColumn(file.parent, paths), labels, classes, digest([split, len(rows), *rows]))

    def _names(self) -> list[str]:
        """The labels of all splits, so that their numbers agree."""
        return [label for file in self.files.values() for _, label in read_list(file) if label is not None]


def read_list(file: Path) -> list[tuple[str, str | None]]:
    """The paths and labels of a list.

    Raises:
        ValueError: naming the line that is not understood.
    """
    rows: list[tuple[str, str | None]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = _split(line.strip())
        if not 1 <= len(words) <= 2 or not words[0]:
            advice = "`path label` or `path` is expected; put a path with spaces or commas in quotes"
            raise ValueError(f"data.source {file}, line {number} has {len(words)} columns: {line.strip()[:80]!r}; {advice}")
        if rows and (rows[0][1] is None) != (len(words) == 1):
            raise ValueError(f"data.source {file}, line {number}: a label in some lines but not in all: {line.strip()[:80]!r}")
        rows.append((words[0], words[1] if len(words) == 2 else None))
    return rows


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
    if all(name.lstrip("-").isdecimal() for name in names):
        numbers = [int(word or 0) for word in words]
        if min(numbers) < 0:
            raise ValueError(f"data.source {file}: {min(numbers)} is no label; they start from 0")
        return torch.tensor(numbers), tuple(map(str, range(max(map(int, names)) + 1)))
    classes = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[word or ""] for word in words]), classes
