"""Decoded images in memory, for small data that is read many times (`data.cache`)."""

from __future__ import annotations

import logging
import os

import numpy as np
from numpy.typing import NDArray

from mmm.data.decode.image import Pixels, decode_image
from mmm.data.errors import Unreadable
from mmm.data.sources.base import Column

logger = logging.getLogger(__name__)

SHARE = 0.5  # largest share of the machine's memory that the pixels may take


class CachedColumn:
    """The pixels of all images in one array, which worker processes share; a list of arrays would be copied into each process.

    Args:
        column: encoded images.
        channels: number of channels of the pixels.

    Raises:
        ValueError: the pixels would take more than half of the memory.
    """

    def __init__(self, column: Column, channels: int) -> None:
        self.column = column
        self.unreadable: dict[int, str] = {}
        self.shapes = np.zeros((len(column), 3), np.int64)  # H, W, C; an unreadable image has no pixels
        limit = SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else float("inf")
        size, parts = 0, []
        for row in range(len(column)):
            image = self._decode(row, channels)
            size += image.size
            if size > limit:
                raise ValueError(f"data.cache: the first {row} of {len(column)} images fill half of the memory; turn it off")
            self.shapes[row] = image.shape
            parts.append(image.reshape(-1))
        self.starts = np.concatenate([[0], self.shapes.prod(axis=1).cumsum()])  # (N + 1,)
        self.pixels = np.concatenate(parts)
        logger.info("%d images decoded into memory, %.1f MiB", len(column), self.pixels.size / 2**20)

    def _decode(self, row: int, channels: int) -> Pixels:
        try:
            return decode_image(self.column[row], channels)
        except Unreadable as error:
            self.unreadable[row] = str(error)
            return np.zeros((0, 0, channels), np.uint8)

    @property
    def images(self) -> NDArray[np.uint8] | None:
        """All images as one array (N, H, W, C), which shares its memory with this column; None if sizes differ or an image cannot
        be read."""
        same = len(self) > 0 and bool((self.shapes == self.shapes[0]).all()) and not self.unreadable
        return self.pixels.reshape(len(self), *self.shapes[0].tolist()) if same else None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, row: int) -> Pixels:
        if row in self.unreadable:
            raise Unreadable(self.unreadable[row])
        return self.pixels[self.starts[row] : self.starts[row + 1]].reshape(self.shapes[row].tolist())

    def name(self, row: int) -> str:
        """See `Column.name`."""
        return self.column.name(row)
