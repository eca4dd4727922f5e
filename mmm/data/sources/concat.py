"""Several sources as one: `data.source a+b` contains the samples of a, then those of b."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmm.data.sources.base import Column, Source, Table
from mmm.system.files import digest

logger = logging.getLogger(__name__)


class ConcatColumn:
    """The samples of several tables, one table after the other.

    Args:
        columns: the column of each table.
        titles: the name of each source; the samples' names begin with it.
    """

    def __init__(self, columns: Sequence[Column], titles: Sequence[str]) -> None:
        self.columns, self.titles = list(columns), list(titles)
        self.starts = np.cumsum([0, *(len(column) for column in columns)])  # (sources + 1,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Any:
        source, place = self._locate(row)
        return self.columns[source][place]

    def prefetch(self, rows: list[int]) -> None:
        """Announces to the columns that have `prefetch` which rows are read next."""
        for column, start, end in zip(self.columns, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            if hasattr(column, "prefetch"):
                column.prefetch([row - start for row in rows if start <= row < end])

    def name(self, row: int) -> str:
        """See `Column.name`."""
        source, place = self._locate(row)
        return f"{self.titles[source]}: {self.columns[source].name(place)}"

    def _locate(self, row: int) -> tuple[int, int]:
        """Returns the source of a row, and its row in that source."""
        source = int(np.searchsorted(self.starts, row, side="right")) - 1
        return source, row - int(self.starts[source])


class ConcatSource:
    """Several sources. It has the splits that all of them have, and labels if all of them have the same classes.

    Args:
        sources: two or more.
        titles: their names.

    Raises:
        ValueError: the sources have no split in common.
    """

    def __init__(self, sources: Sequence[Source], titles: Sequence[str]) -> None:
        self.sources, self.titles = sources, titles
        self.splits = tuple(split for split in sources[0].splits if all(split in source.splits for source in sources))
        if not self.splits:
            has = "; ".join(f"{title} has {', '.join(source.splits)}" for title, source in zip(titles, sources, strict=True))
            raise ValueError(f"data.source: the sources have no split in common: {has}")

    def table(self, split: str) -> Table:
        """Returns the samples of a split, source after source."""
        tables = [source.table(split) for source in self.sources]
        classes = tables[0].classes
        same_classes = all(table.labels is not None and table.classes == classes for table in tables)
        if not same_classes and any(table.labels is not None for table in tables):
            logger.info("%s have different classes; their samples are used without labels", " and ".join(self.titles))
        return Table(
            ConcatColumn([table.column for table in tables], self.titles),
            torch.cat([table.labels for table in tables if table.labels is not None]) if same_classes else None,
            classes if same_classes else None,
            digest([split, *(table.fingerprint for table in tables)]),
            parts=tuple(len(table.column) for table in tables),
        )
