"""What a source of samples offers, whatever it is: splits, and for each a table of encoded samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import torch
from torch import Tensor

# where evaluation looks, in this order, when no split is named
EVALUATION = ("validation", "valid", "val", "eval", "dev", "test")


@dataclass(frozen=True)
class Medium:
    """What kind of thing a sample is.

    Attributes:
        noun: for messages, in the plural.
        suffixes: of its files.
        feature: its type in a table of `datasets`.
        flag: what names its column in a table.
        whole: whether a folder of such files, not a file, is a sample.
    """

    noun: str
    suffixes: frozenset[str]
    feature: str
    flag: str
    whole: bool = False


PICTURES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".npy"}
)
RECORDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".3gp"}
    | {".ogv", ".vob", ".mxf"}
)
IMAGES = Medium("images", PICTURES, "Image", "data.image_column")
VIDEOS = Medium("videos", RECORDINGS, "Video", "data.video_column")
FRAMES = Medium("videos", PICTURES, "Video", "data.video_column", whole=True)


class Cells(Protocol):
    """A column of samples: encoded bytes, the path of a file, or decoded pixels (H, W, C)."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...

    def name(self, row: int, /) -> str:
        """What a person would call the sample: a path, or a row of a table."""
        ...


@dataclass(frozen=True)
class Table:
    """One split.

    Attributes:
        cells: the samples.
        labels: int64 (N,), or None.
        classes: the names that the labels count, or None.
        fingerprint: changes with the data, not with where it lies.
        parts: where it joins several sources, how many samples each has, one source after the other.
    """

    cells: Cells
    labels: Tensor | None
    classes: tuple[str, ...] | None
    fingerprint: str
    parts: tuple[int, ...] = ()


class Source(Protocol):
    """Data that `data.source` names."""

    splits: tuple[str, ...]

    def table(self, split: str) -> Table:
        """One of the splits."""
        ...


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest choice, if one is near, and all of them."""
    choices = list(choices)
    near = get_close_matches(name, choices, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"there are: {', '.join(choices) or 'none'}"


def number_labels(values: Sequence[int | str | None], names: Sequence[str] | None, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as whole numbers, and the names of their classes.

    Args:
        values: whole numbers, or names, which are numbered in alphabetical order; None where a sample has no label.
        names: of the classes that whole numbers count, where they are known.
        title: of the values, for messages.

    Returns:
        int64 (N,), -1 for None, and one name for each class.

    Raises:
        ValueError: for values of other kinds.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {str}:
        names = sorted({str(value) for value in values if value is not None})
        number: dict[Any, int] = {name: i for i, name in enumerate(names)}
        values = [number.get(value) for value in values]
    elif not kinds <= {int, bool}:
        held = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{title} holds {held}; whole numbers or names are expected")
    labels = torch.tensor([-1 if value is None else int(value) for value in values], dtype=torch.int64)  # (N,)
    return labels, tuple(names or map(str, range(int(labels.max()) + 1)))


def digest(parts: Iterable[object]) -> str:
    """A hash of the texts of the parts, 16 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        state.update(f"{part}\n".encode(errors="surrogateescape"))
    return state.hexdigest()[:16]
