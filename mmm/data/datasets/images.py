"""Images behind one table: opened by split, read one by one, cut into samples.

Shapes: b images, R crops of each, C channels, (h, w) of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmm.data.config import ImagesConfig
from mmm.data.datasets.cached import CachedCells
from mmm.data.datasets.dataset import Part, find_part
from mmm.data.decode.image import Pixels, decode_image
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_watchdog import in_hand
from mmm.data.sources.resolve import find_source as find_source
from mmm.data.transforms import crop as transforms
from mmm.data.transforms.device_resize import Cut, Cuts, bounds
from mmm.data.transforms.small_images import LARGEST, crop_small, is_small

TOGETHER = 64  # small images that are cropped at once: more leave the processor's cache (32 x 32: 12 us each, 17 with 256)
HELD = 2**26  # bytes of decoded images that a process holds at once; their boxes are drawn together


class Images(Part[ImagesConfig]):
    """Images: a part of one split."""

    def read(self, index: int, size_hint: int | None = None) -> Pixels:
        """One image, uint8 (H, W, C).

        Args:
            index: which.
            size_hint: allows a smaller version, with neither side below this many pixels.

        Raises:
            Unreadable: with the reason.
        """
        cell = self.cell(index)
        with in_hand(index, self.config.deadline):
            return decode_image(cell, self.config.channels, size_hint)

    def inspect(self, index: int) -> dict[str, Any]:
        """Decodes an image, and says what it is.

        Raises:
            Unreadable: with the reason.
        """
        height, width, channels = self.read(index).shape
        return {"height": height, "width": width, "channels": channels}

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Random resized crops, a pure function of the images and the keys.

        Args:
            index: which images, int64 (b,).
            keys: one for each of the R crops of an image, one image after the other, (b R,).

        Returns:
            uint8 (b R, C, h, w), and for the images that could not be read, whose crops are left at zero, the reason, by row.
        """
        config, repeats = self.config, len(keys) // len(index)
        hint = transforms.decode_hint(config.size, config.crop_scale, config.crop_ratio)
        views = _nothing(len(keys), config)
        failed: dict[int, str] = {}
        for images in self._readable(index, hint, failed):
            heights, widths = (torch.tensor([image.shape[side] for image in images.values()]) for side in (0, 1))
            for repeat in range(repeats):
                mine = keys[repeat::repeats][list(images)]
                boxes = transforms.crop_boxes(mine, heights, widths, config.crop_scale, config.crop_ratio)
                crops = views[repeat::repeats]
                _crop(images, boxes, config.size, crops)
                for row, key in zip(images, mine, strict=True):
                    self.augment(int(index[row]), crops[row].permute(1, 2, 0)[None], key)  # (1, h, w, C)
        return views, failed

    @property
    def resized_later(self) -> bool:
        return self.config.resize == "device" and max(self.config.size) > LARGEST

    def train_cuts(self, index: Tensor, keys: Tensor) -> tuple[Cuts, dict[int, str]]:
        """The parts of images from which a device makes what `train_views` gives; the arguments are the same."""
        config, groups = self.config, keys.view(len(index), -1)  # (b, R)
        hint = transforms.decode_hint(config.size, config.crop_scale, config.crop_ratio)
        inputs: list[list[Cut]] = [[] for _ in index]
        failed: dict[int, str] = {}
        for images in self._readable(index, hint, failed):
            mine = groups[list(images)]  # (n, R)
            sides = [[image.shape[side] for image in images.values()] for side in (0, 1)]
            heights, widths = (torch.tensor(lengths).repeat_interleave(mine.shape[1]) for lengths in sides)
            boxes = transforms.crop_boxes(mine.flatten(), heights, widths, config.crop_scale, config.crop_ratio)
            for (row, image), group in zip(images.items(), boxes.unflatten(0, mine.shape).tolist(), strict=True):
                (top, left, height, width), inside = bounds(group)
                part = image[top : top + height, left : left + width]
                if 2 * part.size < image.size:
                    part = part.copy()  # a view would hold all of the image
                inputs[row] = [Cut(torch.from_numpy(part), inside)]
        return Cuts(inputs, (config.channels, *config.size), "bicubic"), failed

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """The middles of the images, as `train_views` returns them."""
        config = self.config
        hint = max(transforms.covering_size(1, 1, config.size))
        views = _nothing(len(index), config)
        failed: dict[int, str] = {}
        for images in self._readable(index, hint, failed):
            for row, image in images.items():
                views[row] = transforms.center_crop(image, config.size)
        return views, failed

    def _readable(self, index: Tensor, hint: int, failed: dict[int, str]) -> Iterator[dict[int, Pixels]]:
        """The images that can be read, by row, as many at a time as HELD allows; why the others cannot goes into `failed`."""
        images: dict[int, Pixels] = {}
        held = 0
        self.expect(index)
        for row, place in enumerate(index.tolist()):
            try:
                images[row] = image = self.read(place, hint)
            except Unreadable as error:
                failed[row] = str(error)
                continue
            held += image.size
            if held >= HELD:
                yield images
                images, held = {}, 0
        if images:
            yield images


def _nothing(count: int, config: ImagesConfig) -> Tensor:
    """Samples of zeros, (B, C, h, w), in memory as they are made: by pixel, or small ones by channel."""
    if max(config.size) <= LARGEST:
        return torch.zeros(count, config.channels, *config.size, dtype=torch.uint8)
    return torch.zeros(count, *config.size, config.channels, dtype=torch.uint8).permute(0, 3, 1, 2)


def _crop(images: dict[int, Pixels], boxes: Tensor, size: tuple[int, int], views: Tensor) -> None:
    """Crops each image and puts it into its row. Which way it goes depends on its own size, never on its neighbours."""
    together: dict[tuple[int, ...], list[int]] = {}
    for place, (row, image) in enumerate(images.items()):
        if is_small(image.shape[0], image.shape[1], size):
            together.setdefault(image.shape, []).append(place)
        else:
            transforms.resized_crop(image, boxes[place].tolist(), views[row])
    rows = list(images)
    for places in together.values():
        for start in range(0, len(places), TOGETHER):
            part = places[start : start + TOGETHER]
            group = [rows[place] for place in part]
            pixels = torch.from_numpy(np.stack([images[row] for row in group]))  # (b, H, W, C)
            views[group] = crop_small(pixels, boxes[part], size)


def open_images(config: ImagesConfig, split: str) -> Images:
    """Opens one part of the data.

    Args:
        config: where the images are, and how they are read.
        split: `train` and `eval` are the parts that DataConfig describes; any other name is a split of the source.

    Raises:
        ValueError: of one line, for a source that is missing or empty, a split or a column that does not exist, ...
    """
    table, rows, where = find_part(config, split)
    if config.cache:
        table = replace(table, cells=CachedCells(table.cells, config.channels))
    return Images(table, config, rows, where)
