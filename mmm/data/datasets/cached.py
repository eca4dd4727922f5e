"""Decoded images in memory, for data that is small and read many times."""

from __future__ import annotations

import logging
import os

import numpy as np

from mmm.data.decode.image import Pixels, decode_image
from mmm.data.errors import Unreadable
from mmm.data.sources.base import Cells

logger = logging.getLogger(__name__)

SHARE = 0.5  # of the machine's memory that the pixels may fill


class CachedCells:
    """Every image decoded once, in one array: worker processes share it, where a list of arrays would be copied into each.

    Args:
        cells: encoded samples.
        channels: of the pixels.

    Raises:
        ValueError: where they would fill more than half of the memory.
    """

    def __init__(self, cells: Cells, channels: int) -> None:
        self.cells = cells
        self.bad: dict[int, str] = {}
        self.shapes = np.zeros((len(cells), 3), np.int64)  # H, W, C; an unreadable image has no pixel
        limit = SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else float("inf")
        filled, parts = 0, []
        for row in range(len(cells)):
            image = self._decode(row, channels)
            filled += image.size
            if filled > limit:
                raise ValueError(f"data.cache: the first {row} of {len(cells)} images fill half of the memory; turn it off")
            self.shapes[row] = image.shape
            parts.append(image.reshape(-1))
        self.starts = np.concatenate([[0], self.shapes.prod(axis=1).cumsum()])  # (N + 1,)
        self.pixels = np.concatenate(parts)
        logger.info("%d images decoded into memory, %.1f MiB", len(cells), self.pixels.size / 2**20)

    def _decode(self, row: int, channels: int) -> Pixels:
        try:
            return decode_image(self.cells[row], channels)
        except Unreadable as error:
            self.bad[row] = str(error)
            return np.zeros((0, 0, channels), np.uint8)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, row: int) -> Pixels:
        if row in self.bad:
            raise Unreadable(self.bad[row])
        return self.pixels[self.starts[row] : self.starts[row + 1]].reshape(self.shapes[row].tolist())

    def name(self, row: int) -> str:
        return self.cells.name(row)
