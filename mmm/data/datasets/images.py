"""A data set of images: decoding, random crops for training, centre crops for evaluation.

Shapes: b images, R crops of each, C channels, (h, w) of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmm.data.config import ImagesConfig
from mmm.data.datasets.cached import CachedColumn
from mmm.data.datasets.dataset import Dataset, select_rows
from mmm.data.decode.image import Pixels, decode_image, image_size
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.base import Table
from mmm.data.transforms.crop import (
    SMALL_SIDE,
    center_crop,
    covering_size,
    crop_boxes,
    crop_small,
    decode_hint,
    is_small,
    resized_crop,
)
from mmm.data.transforms.device_resize import DeferredCrop, DeferredCrops, bounding_box

GROUP = 64  # small images that are cropped at once: more do not fit into the processor's cache (32 x 32: 12 us each, 17 with 256)
MAX_DECODED = 2**26  # bytes of decoded images that a process holds at once; their boxes are drawn together


class Images(Dataset[ImagesConfig]):
    """Images of one split, or of a part of it.

    Attributes:
        size: size of a sample, (h, w).
        in_memory: small cached images of one size, uint8 (N, H, W, C), which are cropped many at once; else None.
    """

    def __init__(self, table: Table, config: ImagesConfig, rows: Tensor, where: str) -> None:
        """See `Dataset`."""
        super().__init__(table, config, rows, where)
        self._fit()

    def _fit(self) -> None:
        """Sets the attributes that depend on the size of samples."""
        column, config = self.table.column, self.config
        images = column.images if isinstance(column, CachedColumn) and config.augment is None else None
        fits = images is not None and is_small(images.shape[1], images.shape[2], config.size)
        self.size = config.size
        self.in_memory = torch.from_numpy(images) if images is not None and fits else None

    def at_size(self, size: tuple[int, int]) -> Self:
        part = super().at_size(size)
        part._fit()
        return part

    def aspect(self, index: int) -> float:
        """Returns the width over the height of an image, read from its header, or 1 if the image cannot be read."""
        try:
            height, width = image_size(self.raw(index), self.config.channels)
        except Unreadable:
            return 1.0  # the error is reported when the image is decoded
        return width / height

    def read(self, index: int, size_hint: int | None = None) -> Pixels:
        """Decodes one image to uint8 (H, W, C).

        Args:
            index: index of the image.
            size_hint: the image may be decoded to a smaller size, with neither side below this many pixels.

        Raises:
            Unreadable: reading fails; the message gives the reason.
        """
        raw = self.raw(index)
        with watched(index, self.config.deadline):
            return decode_image(raw, self.config.channels, size_hint)

    def inspect(self, index: int) -> dict[str, Any]:
        """Decodes an image and returns its size and channels.

        Raises:
            Unreadable: reading fails; the message gives the reason.
        """
        return dict(zip(("height", "width", "channels"), self.read(index).shape, strict=True))

    def shape_of(self, index: int) -> dict[str, float]:
        """Returns the height and width of an image in pixels; see `inspect`."""
        return {name: value for name, value in self.inspect(index).items() if name != "channels"}

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Cuts random resized crops, which depend only on the images and the keys.

        Args:
            index: indices of the images, int64 (b,).
            keys: one key for each of the R crops of an image, image after image, (b R,).

        Returns:
            uint8 (b R, C, h, w), and the reason for each unreadable image, by row. Crops of unreadable images are zero.
        """
        if self.in_memory is not None:
            return self._crops_in_memory(self.in_memory[self.rows[index]], keys), {}
        config, repeats = self.config, len(keys) // len(index)
        hint = decode_hint(config.size, config.crop_scale, config.crop_ratio)
        views = _zeros(len(keys), config)
        failed: dict[int, str] = {}
        for images in self._decoded(index, hint, failed):
            heights, widths = (torch.tensor([image.shape[side] for image in images.values()]) for side in (0, 1))
            for repeat in range(repeats):
                own_keys = keys[repeat::repeats][list(images)]
                boxes = crop_boxes(own_keys, heights, widths, config.crop_scale, config.crop_ratio)
                crops = views[repeat::repeats]
                _crop(images, boxes, config.size, crops)
                for row, key in zip(images, own_keys, strict=True):
                    self.augment(int(index[row]), crops[row].permute(1, 2, 0)[None], key)  # (1, h, w, C)
        return views, failed

    def _crops_in_memory(self, images: Tensor, keys: Tensor) -> Tensor:
        """Cuts the crops of `train_views` from decoded images of one size. uint8 (b, H, W, C), (b R,) -> (b R, C, h, w)."""
        config = self.config
        images = images.repeat_interleave(len(keys) // len(images), dim=0)  # (b R, H, W, C)
        height, width = (torch.full_like(keys, side) for side in images.shape[1:3])
        boxes = crop_boxes(keys, height, width, config.crop_scale, config.crop_ratio)
        parts = zip(images.split(GROUP), boxes.split(GROUP), strict=True)
        return torch.cat([crop_small(some, own, self.size) for some, own in parts])

    @property
    def defers_resize(self) -> bool:
        return self.config.resize == "device" and max(self.size) > SMALL_SIDE

    def deferred_train_views(self, index: Tensor, keys: Tensor) -> tuple[DeferredCrops, dict[int, str]]:
        """Cuts the regions from which a device makes the samples of `train_views`; the arguments are the same."""
        config, groups = self.config, keys.view(len(index), -1)  # (b, R)
        hint = decode_hint(config.size, config.crop_scale, config.crop_ratio)
        inputs: list[list[DeferredCrop]] = [[] for _ in index]
        failed: dict[int, str] = {}
        for images in self._decoded(index, hint, failed):
            own_keys = groups[list(images)]  # (n, R)
            sides = [[image.shape[side] for image in images.values()] for side in (0, 1)]
            heights, widths = (torch.tensor(lengths).repeat_interleave(own_keys.shape[1]) for lengths in sides)
            boxes = crop_boxes(own_keys.flatten(), heights, widths, config.crop_scale, config.crop_ratio)
            for (row, image), group in zip(images.items(), boxes.unflatten(0, own_keys.shape).tolist(), strict=True):
                (top, left, height, width), relative = bounding_box(group)
                region = image[top : top + height, left : left + width]
                if 2 * region.size < image.size:
                    region = region.copy()  # a view would keep the whole image in memory
                inputs[row] = [DeferredCrop(torch.from_numpy(region), relative)]
        return DeferredCrops(inputs, (config.channels, *config.size), "bicubic"), failed

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Cuts centre crops of the images; returns them as `train_views` does."""
        config = self.config
        hint = max(covering_size(1, 1, config.size))
        views = _zeros(len(index), config)

        def crop(row: int, number: int) -> None:
            views[row] = center_crop(self.read(number, hint), config.size)

        return views, self.each(index, crop)

    def _decoded(self, index: Tensor, hint: int, failed: dict[int, str]) -> Iterator[dict[int, Pixels]]:
        """Yields the readable images by row, at most MAX_DECODED bytes at a time; adds the reasons of the others to
        `failed`."""
        images: dict[int, Pixels] = {}
        size = 0
        self.prefetch(index)
        for row, number in enumerate(index.tolist()):
            try:
                images[row] = image = self.read(number, hint)
            except Unreadable as error:
                failed[row] = str(error)
                continue
            size += image.size
            if size >= MAX_DECODED:
                yield images
                images, size = {}, 0
        if images:
            yield images


def _zeros(count: int, config: ImagesConfig) -> Tensor:
    """Makes samples of zeros, (B, C, h, w), in the memory layout of the crops: channels last, or first for small samples."""
    if max(config.size) <= SMALL_SIDE:
        return torch.zeros(count, config.channels, *config.size, dtype=torch.uint8)
    return torch.zeros(count, *config.size, config.channels, dtype=torch.uint8).permute(0, 3, 1, 2)


def _crop(images: dict[int, Pixels], boxes: Tensor, size: tuple[int, int], views: Tensor) -> None:
    """Crops each image into its row. The method depends on the image's own size, never on the other images."""
    small: dict[tuple[int, ...], list[int]] = {}
    for place, (row, image) in enumerate(images.items()):
        if is_small(image.shape[0], image.shape[1], size):
            small.setdefault(image.shape, []).append(place)
        else:
            resized_crop(image, boxes[place].tolist(), views[row])
    rows = list(images)
    for places in small.values():
        for start in range(0, len(places), GROUP):
            group = places[start : start + GROUP]
            group_rows = [rows[place] for place in group]
            pixels = torch.from_numpy(np.stack([images[row] for row in group_rows]))  # (b, H, W, C)
            views[group_rows] = crop_small(pixels, boxes[group], size)


def open_images(config: ImagesConfig, split: str) -> Images:
    """Opens one split of a source of images; see `select_rows` for the arguments and errors."""
    table, rows, where = select_rows(config, split)
    if config.cache:
        table = replace(table, column=CachedColumn(table.column, config.channels))
    return Images(table, config, rows, where)
