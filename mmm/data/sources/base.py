"""The interface of all data sources: named splits, and for each split a table of encoded samples.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# the splits that evaluation uses if none is named; the first that exists is used
EVALUATION = ("validation", "valid", "val", "eval", "dev", "test")


class Column(Protocol):
    """A column of samples: encoded bytes, paths of files, or pixels.

    A column may also have `prefetch(rows)`, which is called before these rows are read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...

    def name(self, row: int, /) -> str:
        """Returns the name of a sample in messages: a path, or a row of a table."""
        ...


@dataclass(frozen=True)
class Table:
    """One split.

    Attributes:
        column: the samples.
        labels: int64 (N,), or None.
        classes: the names of the classes, in the order of the labels, or None.
        fingerprint: a hash that changes with the data, not with its location.
        parts: for concatenated sources, the number of samples of each.
    """

    column: Column
    labels: Tensor | None
    classes: tuple[str, ...] | None
    fingerprint: str
    parts: tuple[int, ...] = ()


class Source(Protocol):
    """Data that `data.source` names."""

    splits: tuple[str, ...]

    def table(self, split: str) -> Table:
        """Returns one of the splits."""
        ...


def number_labels(values: Sequence[int | str | None], names: Sequence[str] | None, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """Converts labels to whole numbers.

    Args:
        values: whole numbers, or names, which are numbered in alphabetical order; None if a sample has no label.
        names: the names of the classes, in the order of whole numbers, if known.
        title: description of the values for messages.

    Returns:
        int64 (N,), -1 for None, and one name for each class.

    Raises:
        ValueError: a value is neither a whole number nor a name.
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
