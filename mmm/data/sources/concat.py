"""Several sources as one: `data.source a+b`, each sample of which is a sample of one of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmm.data.sources.base import Cells, Source, Table, digest

logger = logging.getLogger(__name__)


class JoinedCells:
    """The samples of several tables, one table after the other.

    Args:
        cells: of each.
        titles: what the names of each one's samples start with.
    """

    def __init__(self, cells: Sequence[Cells], titles: Sequence[str]) -> None:
        self.cells, self.titles = list(cells), list(titles)
        self.starts = np.cumsum([0, *(len(one) for one in cells)])  # (sources + 1,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Any:
        source, place = self._find(row)
        return self.cells[source][place]

    def expect(self, rows: list[int]) -> None:
        """Says what is read next to those that want to know."""
        for cells, start, end in zip(self.cells, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            if hasattr(cells, "expect"):
                cells.expect([row - start for row in rows if start <= row < end])

    def name(self, row: int) -> str:
        source, place = self._find(row)
        return f"{self.titles[source]}: {self.cells[source].name(place)}"

    def _find(self, row: int) -> tuple[int, int]:
        source = int(np.searchsorted(self.starts, row, side="right")) - 1
        return source, row - int(self.starts[source])


class Several:
    """Sources beside each other. Its splits are those that all of them have; its labels, those of sources with the same classes.

    Args:
        sources: two or more.
        titles: what they are called.

    Raises:
        ValueError: they have no split in common.
    """

    def __init__(self, sources: Sequence[Source], titles: Sequence[str]) -> None:
        self.sources, self.titles = sources, titles
        self.splits = tuple(split for split in sources[0].splits if all(split in source.splits for source in sources))
        if not self.splits:
            has = "; ".join(f"{title} has {', '.join(source.splits)}" for title, source in zip(titles, sources, strict=True))
            raise ValueError(f"data.source: these have no split in common: {has}")

    def table(self, split: str) -> Table:
        """The samples of a split, source after source."""
        tables = [source.table(split) for source in self.sources]
        classes = tables[0].classes
        alike = all(table.labels is not None and table.classes == classes for table in tables)
        if not alike and any(table.labels is not None for table in tables):
            logger.info("%s: their classes differ, so that these samples have no labels", " and ".join(self.titles))
        return Table(
            JoinedCells([table.cells for table in tables], self.titles),
            torch.cat([table.labels for table in tables if table.labels is not None]) if alike else None,
            classes if alike else None,
            digest([split, *(table.fingerprint for table in tables)]),
            parts=tuple(len(table.cells) for table in tables),
        )
