"""A list file: one sample per line, `path label`, as in VideoMAE's repositories for Kinetics and Something-Something."""

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

from mmm.core.checks import suggest
from mmm.data.decode.video.reader import FrameRange
from mmm.data.media import VIDEOS, Medium
from mmm.data.sources.base import EVALUATION, Table
from mmm.data.sources.folder import FileColumn
from mmm.system.files import digest

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".csv", ".tsv", ".list")
# names of columns in a header, in lower case
HEADERS = {
    "path": (
        *("path", "paths", "file", "file_name", "filename", "file_path", "filepath", "name", "video", "video_path", "frame_dir"),
        *("image", "images", "img", "image_path", "img_path", "image_file", "image_name"),
    ),
    "label": ("label", "labels", "class", "classes", "class_id", "category", "target"),
    "start": ("start", "start_frame", "start_index", "start_idx", "first_frame"),
    "end": ("end", "end_frame", "stop", "stop_frame", "last_frame"),
    "total": ("total", "total_frames", "total_frame", "num_frames", "frames"),
}
FORMATS = "`path`, `path label`, `path total label`, `path start total` and `path start total label` are read without a header"
HINT = "say which column is which, for instance data.list_columns path start end label"


class Row(NamedTuple):
    """A path and, if the list has them, a label (a whole number or a name) and a range of frames: the first, and their number."""

    path: str
    label: str | None
    range: tuple[int, int | None] | None


class Columns(NamedTuple):
    """The positions of the columns; None for a column that is absent."""

    path: int = 0
    label: int | None = None
    start: int | None = None
    end: int | None = None
    total: int | None = None

    @classmethod
    def named(cls, names: Sequence[str]) -> Columns:
        """Returns the positions of known names in a list of names; other names are left out."""
        return cls(**{name: names.index(name) for name in HEADERS if name in names})

    def format(self) -> str:
        """The names of the columns in their order."""
        return " ".join(name for _, name in self._ordered())

    def example(self, words: Sequence[str]) -> str:
        """Returns the values of a line with the names of their columns: "path a.mp4, start 0, total 20"."""
        return ", ".join(f"{name} {words[place]}" for place, name in self._ordered())

    def _ordered(self) -> list[tuple[int, str]]:
        return sorted((place, name) for name, place in self._asdict().items() if place is not None)


class RangeColumn:
    """The rows of a list in which some rows are ranges of the frames of a video.

    Args:
        files: the videos.
        ranges: the first frame of each row and the number of frames (None: all that follow), or None for a whole video.
    """

    def __init__(self, files: FileColumn, ranges: Sequence[tuple[int, int | None] | None]) -> None:
        self.files = files
        numbers = [(-1, -1) if part is None else (part[0], -1 if part[1] is None else part[1]) for part in ranges]
        self.ranges = torch.tensor(numbers)  # (N, 2)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Path | FrameRange:
        start, count = self.ranges[row].tolist()
        return self.files[row] if start < 0 else FrameRange(self.files[row], start, None if count < 0 else count)

    def name(self, row: int) -> str:
        """See `Column.name`."""
        start, count = self.ranges[row].tolist()
        name = self.files.name(row)
        if start < 0:
            return name
        return f"{name}, frames from {start}" if count < 0 else f"{name}, frames {start} to {start + count - 1}"


class ListFile:
    """Lines of a path and, in all or in none of them, a label: a whole number, which keeps its value, or a name.

    An empty cell is no label. Columns are separated by a tab, a comma, or else by spaces. A path that contains such a character
    must be in quotes. Empty lines and lines that start with # are ignored. A header (`path,label`) names the columns, and columns
    of other names are ignored. Without a header, `data.list_columns` names them. Without either, the format is found from their
    number and content, if only one format fits.

    A row with a start and an end, or with a start and a number of frames, is a sample of that part of the video (VideoMAE V2's
    `path start total label`; a number below 0 selects the rest of the video). Frames are counted from 0 in a file, and by the
    numbers in their names in a folder. The end is included in the range. A number of frames without a start (`path total label`) is
    ignored. A file named train.csv, val.csv, ... is the split of that name, and lists in the same folder with the same ending are
    the other splits.

    Args:
        file: the list.
        medium: type of the samples.
        root: folder from which relative paths start. None: the list's own folder.
        columns: `data.list_columns`.

    Raises:
        ValueError: the root is not a folder, or the name of a column is unknown.
    """

    def __init__(self, file: Path, medium: Medium, root: str | None = None, columns: Sequence[str] = ()) -> None:
        self.medium, self.root = medium, file.parent if root is None else Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.root {root} is not a folder; give the folder from which the paths in {file} start")
        self.names = tuple(" ".join(columns).split())  # also given as one word, "path label"
        for name in self.names:
            if name not in (*HEADERS, "ignore"):
                raise ValueError(f"data.list_columns {name}: no such column{suggest(name, [*HEADERS, 'ignore'])}")
        if self.names and (
            "path" not in self.names or len(set(self.names)) + max(0, self.names.count("ignore") - 1) < len(self.names)
        ):
            raise ValueError(f"data.list_columns {' '.join(self.names)}: give path, and each other column at most once")
        self.files = {"train": file}
        if file.stem in ("train", *EVALUATION):
            beside = {name: file.with_name(name + file.suffix) for name in (file.stem, "train", *EVALUATION)}
            self.files = {name: path for name, path in beside.items() if path.is_file()}
        self.splits = tuple(self.files)

    def table(self, split: str) -> Table:
        """Reads one list.

        Raises:
            ValueError: a line cannot be interpreted; the message names it.
        """
        file = self.files[split]
        rows = read_list(file, self.names)
        if not rows:
            raise ValueError(f"data.source {file} names no {self.medium.noun}")
        labels, classes = _labels(file, [row.label for row in rows], self._labels())
        files = FileColumn(self.root, [row.path for row in rows])
        ranges = [row.range for row in rows]
        if any(ranges) and self.medium is not VIDEOS:
            raise ValueError(f"data.source {file} has ranges of frames; {self.medium.noun} have none")
        return Table(
            RangeColumn(files, ranges) if any(ranges) else files, labels, classes, digest([split, len(rows), *map(tuple, rows)])
        )

    def _labels(self) -> list[str]:
        """Returns the labels of all splits, so that their numbers agree."""
        return [row.label for file in self.files.values() for row in read_list(file, self.names) if row.label is not None]


def read_list(file: Path, names: Sequence[str] = ()) -> list[Row]:
    """Returns the rows of a list.

    Args:
        file: the list.
        names: names of the columns. Empty: from a header, or by their content.

    Raises:
        ValueError: a line cannot be interpreted; the message names it.
    """
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1)}
    rows = {number: _split(line) for number, line in lines.items() if line and not line.startswith("#")}
    if not rows:
        return []
    first, *others = rows
    columns = _header(file, rows[first], [rows[number] for number in others], names)
    if columns is not None:
        _announce_header(file, first, lines[first][:80])
        del rows[first]
    width = len(names) or len(next(iter(rows.values())))
    if names:
        columns = Columns.named(names)
    elif columns is None:
        columns = _columns_of(file, list(rows.values()))
    found = []
    for number, words in rows.items():
        where, line = f"data.source {file}, line {number}", lines[number][:80]
        if columns is None or len(words) > max(4, width) or (len(words) == width and not words[columns.path]):
            advice = f"{FORMATS}; put a path with spaces or commas in quotes, or {HINT}"
            raise ValueError(f"{where} has {len(words)} columns: {line!r}; {advice}")
        if len(words) != width:
            problem = f"{len(words)} columns, not {width}" if width > 2 or names else "a label in some lines but not in all"
            raise ValueError(f"{where}: {problem}: {line!r}")
        label = None if columns.label is None else words[columns.label] or None
        found.append(Row(words[columns.path], label, _range(words, columns, where)))
    unlabelled = [number for number, row in zip(rows, found, strict=True) if row.label is None]
    if 0 < len(unlabelled) < len(found):
        number = unlabelled[0]
        raise ValueError(f"data.source {file}, line {number}: a label in some lines but not in all: {lines[number][:80]!r}")
    return found


def _range(words: list[str], columns: Columns, where: str) -> tuple[int, int | None] | None:
    """Returns the first frame of a row and the number of its frames; None for a whole video."""
    if columns.start is None and columns.end is None:
        return None
    named = {name: getattr(columns, name) for name in ("start", "end", "total")}
    for name, place in named.items():
        if place is not None and not _is_number(words[place]):
            raise ValueError(f"{where}: {name} {words[place]!r} is not a whole number; {HINT}")
    start, end, total = (None if place is None else int(words[place]) for place in named.values())
    first = start or 0
    count = total if end is None or end < 0 else end - first + 1
    if first < 0 or (count is not None and count == 0) or (end is not None and 0 <= end < first):
        listed = ", ".join(f"{name} {words[place]}" for name, place in named.items() if place is not None)
        raise ValueError(f"{where} holds no frame: {listed}{f'; {HINT}' if total == 0 else ''}")  # perhaps it is a label
    count = None if count is None or count < 0 else count
    return None if first == 0 and count is None else (first, count)


@cache  # logs once, even if a run opens its data several times
def _announce_header(file: Path, line: int, text: str) -> None:
    logger.info("%s: line %d is taken as a header: %s", file, line, text)


@cache
def _announce_columns(file: Path, columns: str, first: str) -> None:
    text = "%s: by their content, the columns are read as `%s`, and the first line as %s; if this is wrong, name the columns, for "
    logger.info(text + "instance data.list_columns path start label", file, columns, first)


def _header(file: Path, words: list[str], others: Sequence[list[str]], given: Sequence[str]) -> Columns | None:
    """Returns the columns that a first line names, or None if the line is a sample. `given` are the names in data.list_columns."""
    lower = [word.lower() for word in words]
    names = [next((name for name, known in HEADERS.items() if word in known), "ignore") for word in lower]
    columns = Columns.named(names)
    if "path" in names and (len(names) == 1 or any(place is not None for place in columns[1:])):
        return columns
    numbers = bool(others) and all(_is_number(row[-1]) for row in others)
    if numbers and len(words) > 1 and not _is_number(words[-1]) and not os.path.splitext(words[0])[1]:
        return Columns.named(given) if given else _columns_of(file, others)
    return None


def _columns_of(file: Path, rows: Sequence[list[str]]) -> Columns | None:
    """Returns the columns of lines whose names are not known, by their number and content, and logs what was found; see
    `_find_columns`."""
    columns = _find_columns(file, rows)
    if columns is not None and len(rows[0]) > 2:
        _announce_columns(file, columns.format(), columns.example(rows[0]))
    return columns


def _find_columns(file: Path, rows: Sequence[list[str]]) -> Columns | None:
    """Returns the columns of lines by their number and content; None if they have no known format.

    Raises:
        ValueError: the content fits two formats.
    """
    width = len(rows[0])
    if width <= 2:
        return Columns(label=1 if width == 2 else None)
    even = [row for row in rows if len(row) == width]
    if width > 4 or not all(_is_number(word) for row in even for word in row[1:3]):
        return None
    pairs = [(int(row[1]), int(row[2])) for row in even]
    starts = all(first <= 1 for first, _ in pairs) or any(second < 0 for _, second in pairs)
    if width == 4:
        if starts or any(second < first for first, second in pairs):
            return Columns(start=1, total=2, label=3)
        raise ValueError(
            f"data.source {file}: the third column may be the last frame of a range, or the number of its frames; {HINT}"
        )
    if starts:
        return Columns(start=1, total=2)
    if any(first == 0 for first, _ in pairs) or len({row[0] for row in even}) < len({(row[0], row[1]) for row in even}):
        raise ValueError(
            f"data.source {file}: the second column is the first frame of a range, and the third may be the number of its frames "
            f"or a label; {HINT}"
        )
    return Columns(total=1, label=2)


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _split(line: str) -> list[str]:
    """Splits a line into columns; separators within quotes do not count."""
    outside = "".join(part for i, part in enumerate(line.split('"')) if i % 2 == 0)
    separator = next((mark for mark in "\t," if mark in outside), " ")
    words = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return [word.strip() for word in words if separator != " " or word]


def _labels(file: Path, words: list[str | None], names: list[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Returns labels int64 (N,) and the classes' names."""
    if words[0] is None:
        return None, None
    if all(_is_number(name) for name in names):
        numbers, known = [int(word or 0) for word in words], set(map(int, names))
        if min(numbers) < 0:
            raise ValueError(f"data.source {file}: {min(numbers)} is not a label; they start from 0")
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
