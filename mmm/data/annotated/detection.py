"""A data set of images with objects.

Every sample is a canvas of one size. For training, the image is scaled at random, and cropped or padded (large-scale jitter, Ghiasi
et al., CVPR 2021); for evaluation, it is resized so that it just fits into the canvas. The objects of a sample, like its crop, are
determined by its image and its key.

Shapes: b images, C channels, (h, w) of the canvas.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmm.core.rng import Stream, stream, uniform
from mmm.data.annotated.coco import ObjectTable, find_objects
from mmm.data.annotated.config import ObjectsConfig
from mmm.data.annotated.objects import Objects, Placement, place_objects
from mmm.data.datasets.dataset import Dataset, select_rows
from mmm.data.decode.image import Pixels, decode_image
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.base import Table
from mmm.data.transforms.resize import resize


class AnnotatedObjects(Dataset[ObjectsConfig]):
    """Images of one split with their objects.

    Args:
        table, config, rows, where: see `Dataset`.
        objects: the objects of each image of the table.
        masks: whether samples have masks.
    """

    def __init__(
        self, table: Table, config: ObjectsConfig, rows: Tensor, where: str, objects: list[Objects], *, masks: bool = True
    ) -> None:
        super().__init__(table, config, rows, where)
        self.all_objects, self.masks = objects, masks

    def subset(self, index: Tensor) -> AnnotatedObjects:
        """Returns the images at these indices, int64 (K,), in this order."""
        return AnnotatedObjects(self.table, self.config, self.rows[index], self.where, self.all_objects, masks=self.masks)

    def objects(self, index: int) -> Objects:
        """Returns the annotated objects of an image."""
        return self.all_objects[int(self.rows[index])]

    def read(self, index: int) -> Pixels:
        """Decodes an image, uint8 (H, W, C).

        Raises:
            Unreadable: the image cannot be decoded, or its size is not the annotated one.
        """
        with watched(index, self.config.deadline):
            pixels = decode_image(self.raw(index), self.config.channels)
        size = self.objects(index).size
        if pixels.shape[:2] != size:
            raise Unreadable(f"has {pixels.shape[0]} x {pixels.shape[1]} pixels, and its annotation says {size[0]} x {size[1]}")
        return pixels

    def placement(self, index: int, key: Tensor | None) -> Placement:
        """Places an image in its sample: at random for the key of a training sample, and as a whole without a key."""
        (height, width), (high, wide) = self.config.frame_size, self.objects(index).size
        if key is None:
            return fitted((high, wide), (height, width))
        fit = min(height / high, width / wide)
        low, top = self.config.scale
        draws = uniform(stream(key[None], Stream.CROP), 3)[0].double().tolist()
        factor = fit * (low + draws[0] * (top - low))
        whole = (max(1, round(high * factor)), max(1, round(wide * factor)))
        offset = tuple(
            -int(draw * (max(0, side - limit) + 1)) for draw, side, limit in zip(draws[1:], whole, (height, width), strict=True)
        )
        inside = (min(height, whole[0]), min(width, whole[1]))
        flipped = bool(uniform(stream(key[None], Stream.FLIP), 1)[0, 0] < self.config.flip)  # as `flip` decides on the device
        return Placement((whole[0] / high, whole[1] / wide), (float(offset[0]), float(offset[1])), (height, width), inside, flipped)

    def targets(self, index: Tensor, keys: Tensor, train: bool) -> tuple[dict[str, Tensor], ...]:
        """Returns the objects of training samples; see `place_objects`. In evaluation it returns (), because boxes are then
        compared in the image."""
        if not train:
            return ()
        pairs = zip(index.tolist(), keys, strict=True)
        return tuple(place_objects(self.objects(row), self.placement(row, key), masks=self.masks) for row, key in pairs)

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Returns the canvases before they are flipped, uint8 (b, C, h, w), and the reasons why images could not be read, by
        row."""
        return self._views(index, list(keys))

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Returns canvases with the whole images, as `train_views` does."""
        return self._views(index, [None] * len(index))

    def _views(self, index: Tensor, keys: list[Any]) -> tuple[Tensor, dict[int, str]]:
        views = empty_canvas(self.config.mean, self.config.frame_size)[None].repeat(len(index), 1, 1, 1)
        return views, self.each(index, lambda row, number: paint(views[row], self.read(number), self.placement(number, keys[row])))


def fitted(size: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """Places a whole image at the top left of a canvas, as large as possible. Sizes are (H, W)."""
    fit = min(canvas[0] / size[0], canvas[1] / size[1])
    inside = (max(1, round(size[0] * fit)), max(1, round(size[1] * fit)))
    return Placement((inside[0] / size[0], inside[1] / size[1]), (0.0, 0.0), canvas, inside)


def empty_canvas(channels: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """Returns a canvas of the mean colour, uint8 (C, h, w)."""
    fill = torch.tensor([round(255 * value) for value in channels], dtype=torch.uint8)
    return fill[:, None, None].repeat(1, *size)


def paint(canvas: Tensor, image: Pixels, placement: Placement) -> None:
    """Resizes the visible part of an image into a canvas, (H, W, C) -> (C, h, w)."""
    ends = []
    for axis in range(2):
        start = -placement.offset[axis] / placement.scale[axis]
        end = min(image.shape[axis], start + placement.inside[axis] / placement.scale[axis])
        first = min(round(start), image.shape[axis] - 1)
        ends.append((first, max(first + 1, round(end))))
    part = torch.from_numpy(np.ascontiguousarray(image[slice(*ends[0]), slice(*ends[1])])).permute(2, 0, 1)
    canvas[:, : placement.inside[0], : placement.inside[1]] = resize(part[None], placement.inside, "bicubic")[0]


class _AsSource:
    """Adapts a source of objects to the interface of a source of images, for `select_rows`."""

    def __init__(self, tables: dict[str, ObjectTable], source: Any) -> None:
        self.tables, self.source, self.splits = tables, source, source.splits

    def table(self, split: str) -> Table:
        """Returns the images of a split, and keeps their objects in `tables`."""
        self.tables[split] = found = self.source.table(split)
        return Table(found.images, None, found.classes, found.fingerprint)


def open_objects(config: ObjectsConfig, split: str, *, masks: bool = True) -> AnnotatedObjects:
    """Opens one split of images with objects.

    Args:
        config, split: see `select_rows`.
        masks: whether objects must have masks.

    Raises:
        ValueError: see `select_rows`; also for objects without masks.
    """
    tables: dict[str, ObjectTable] = {}
    table, rows, where = select_rows(config, split, _AsSource(tables, find_objects(config)))
    (found,) = tables.values()
    if config.one_class:
        found = replace(found, objects=[replace(one, labels=torch.zeros_like(one.labels)) for one in found.objects])
        table = replace(table, classes=("object",))
    if masks:
        bare = sum(
            mask is None and not crowd for one in found.objects for mask, crowd in zip(one.masks, one.crowd.tolist(), strict=True)
        )
        if bare:
            raise ValueError(f"{bare} objects of {config.source} have no mask; detect boxes alone with --detector.masks false")
    return AnnotatedObjects(table, config, rows, where, found.objects, masks=masks)


def with_classes(config: ObjectsConfig, part: AnnotatedObjects) -> ObjectsConfig:
    """Returns the config with the number of classes of the data, which a run then saves."""
    assert part.classes is not None
    if config.classes not in (None, len(part.classes)):
        raise ValueError(f"data.classes {config.classes}: data.source {config.source} has {len(part.classes)}")
    return replace(config, classes=len(part.classes))
