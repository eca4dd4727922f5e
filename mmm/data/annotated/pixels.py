"""A data set of images with a number for each pixel: a class, or a depth.

An image and its map are scaled and cropped together, the image with a filter and the map by the nearest pixel. In a sample, two
channels after those of the image hold the map, two bytes for each pixel. Loading, flipping and resuming therefore need no
special case.

Shapes: b images, C channels, (h, w) of a sample, (H, W) of an image.
"""

from __future__ import annotations

import logging
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmm.core.rng import Stream, stream, uniform
from mmm.data.annotated.config import DepthConfig, MasksConfig, PairsConfig
from mmm.data.annotated.maps import IGNORE, Numbers, class_numbers, decode_map, depth_numbers, to_planes
from mmm.data.annotated.pairs import find_pairs
from mmm.data.datasets.dataset import Dataset, select_rows
from mmm.data.decode.image import Pixels, decode_image
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.base import Table
from mmm.data.transforms.resize import resize

logger = logging.getLogger(__name__)

LISTED = 5  # largest number of labels in a message
TRIES = 10  # largest number of crops that are drawn for `data.largest_class`

C = TypeVar("C", bound=PairsConfig)


class LabelledPixels(Dataset[C], Generic[C]):
    """Images of one split with their maps.

    Args:
        table: its column holds pairs of an image and a map.
        config, rows, where: see `Dataset`.
        classes: number of classes of masks; 0 for depths.
    """

    def __init__(self, table: Table, config: C, rows: Tensor, where: str, classes: int = 0) -> None:
        super().__init__(table, config, rows, where)
        self.count = classes

    def subset(self, index: Tensor) -> LabelledPixels[C]:
        """Returns the images at these indices, int64 (K,), in this order."""
        return LabelledPixels(self.table, self.config, self.rows[index], self.where, self.count)

    def read(self, index: int) -> tuple[Pixels, Numbers]:
        """Decodes an image, uint8 (H, W, C), and its map, uint16 (H, W), in which IGNORE marks pixels to leave out.

        Raises:
            Unreadable: one of the two cannot be decoded, or their sizes differ.
        """
        image, numbers = self.raw(index)
        with watched(index, self.config.deadline):
            pixels = decode_image(image, self.config.channels)
            values = decode_map(numbers)
        if values.shape != pixels.shape[:2]:
            sizes = [f"{one.shape[0]} x {one.shape[1]}" for one in (values, pixels)]
            raise Unreadable(f"its map has {sizes[0]} pixels and the image {sizes[1]}")
        config: Any = self.config
        if isinstance(config, DepthConfig):
            return pixels, depth_numbers(values, config)
        return pixels, class_numbers(values, config, self.count)

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Cuts scaled crops, which depend only on the images and the keys.

        Args:
            index: indices of the images, int64 (b,).
            keys: keys of the samples, (b,).

        Returns:
            uint8 (b, C + 2, h, w) with the map in the last two channels, and the reasons why images could not be read, by row.
        """
        size = self.config.frame_size
        views = torch.zeros(len(index), self.config.channels + 2, *size, dtype=torch.uint8)

        def crop(row: int, number: int) -> None:
            views[row] = self._crop(*self.read(number), keys[row])

        return views, self.each(index, crop)

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Returns one whole image and its map at their own size, uint8 (1, C + 2, H, W), as `train_views` returns them.

        Images have different sizes, so a batch contains one.
        """
        assert len(index) == 1, "evaluation batches of images with maps hold one image"
        try:
            image, numbers = self.read(int(index[0]))
        except Unreadable as error:
            return torch.zeros(1, self.config.channels + 2, 1, 1, dtype=torch.uint8), {0: str(error)}
        return torch.cat([torch.from_numpy(image).permute(2, 0, 1), to_planes(numbers)])[None], {}

    def _crop(self, image: Pixels, numbers: Numbers, key: Tensor) -> Tensor:
        """Cuts a scaled crop of an image and its map, (C + 2, h, w). Pixels outside the image get the mean colour; their labels
        are ignored."""
        (height, width), config = self.config.frame_size, self.config
        draws = uniform(stream(key[None], Stream.CROP), 1 + 2 * TRIES)[0].double().tolist()
        factor = config.scale[0] + draws[0] * (config.scale[1] - config.scale[0])
        shorter = min(image.shape[:2]) / (min(height, width) * factor)  # pixels of the image per pixel of the sample
        box = [min(max(1, round(side * shorter)), whole) for side, whole in zip((height, width), image.shape[:2], strict=True)]
        inner = [min(max(1, round(side / shorter)), whole) for side, whole in zip(box, (height, width), strict=True)]
        largest = getattr(config, "largest_class", 1.0)
        for number in range(TRIES):
            offsets = zip(draws[1 + 2 * number : 3 + 2 * number], image.shape[:2], box, strict=True)
            top, left = (int(draw * (whole - side + 1)) for draw, whole, side in offsets)
            part = _nearest(numbers[top : top + box[0], left : left + box[1]], inner)
            if largest == 1 or _largest_share(part) <= largest:
                break
        piece = torch.from_numpy(image[top : top + box[0], left : left + box[1]]).permute(2, 0, 1)
        fill = torch.tensor([round(255 * value) for value in config.mean], dtype=torch.uint8)
        sample = torch.cat([fill, torch.tensor([255, 255], dtype=torch.uint8)])[:, None, None].repeat(1, height, width)
        sample[:-2, : inner[0], : inner[1]] = resize(piece[None], (inner[0], inner[1]), "bicubic")[0]
        sample[-2:, : inner[0], : inner[1]] = to_planes(part)
        return sample


def _nearest(numbers: Numbers, size: list[int]) -> Numbers:
    """Resizes a map by the nearest pixel, (H, W) -> (h, w)."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, numbers.shape, strict=True))
    return numbers[rows[:, None], columns]


def _largest_share(numbers: Numbers) -> float:
    """Returns the share of the most frequent class among the labelled pixels; 0 if there are none."""
    labelled = numbers[numbers != IGNORE]
    return float(np.bincount(labelled).max() / len(labelled)) if len(labelled) else 0.0


def open_pixels(config: PairsConfig, split: str, classes: int | None = None) -> LabelledPixels[Any]:
    """Opens one split of images with maps.

    Args:
        config, split: see `select_rows`.
        classes: number of classes. None: counted; see `MasksConfig.classes`.

    Raises:
        ValueError: see `select_rows`.
    """
    source = find_pairs(config)
    table, rows, where = select_rows(config, split, source)
    part: LabelledPixels[Any] = LabelledPixels(table, config, rows, where)
    if isinstance(config, MasksConfig):
        part.count = classes or count_classes(part, config)
    return part


def count_classes(part: LabelledPixels[Any], config: MasksConfig) -> int:
    """Returns the number of classes: from the config, from the names in the source, or counted in the masks.

    Raises:
        ValueError: config and source do not agree, or the masks have no label.
    """
    names = part.table.classes
    if config.classes is not None and names is not None and config.classes != len(names):
        raise ValueError(f"data.classes {config.classes}: data.source {config.source} names {len(names)} classes")
    if config.classes is not None or names is not None:
        return config.classes or len(names or ())
    seen, first = np.zeros(0, np.int64), ""
    logger.info("%s: reading %s masks to count their classes; set --data.classes K to skip this", config.source, f"{len(part):,}")
    for index in range(len(part)):
        try:
            values = decode_map(part.raw(index)[1]).astype(np.int64)
        except Unreadable as error:
            first = first or str(error)
            continue  # reported when it is loaded
        seen = np.union1d(seen, values[values != config.ignore])
    largest = int(seen.max(initial=-1))
    count = largest + 1 - int(config.zero_is_ignored)
    if largest < 0 and first:
        raise ValueError(f"not one mask of {part.title} can be read; the first: {first}")
    if count < 1:
        raise ValueError(f"{part.title} have ignored labels only; check data.maps, data.ignore and data.zero_is_ignored")
    if count > 1000:
        raise ValueError(f"{part.title} have labels up to {largest}; if these are classes, give --data.classes {count}")
    if absent := sorted(set(range(int(config.zero_is_ignored), largest)) - set(seen.tolist())):
        listed = ", ".join(map(str, absent[:LISTED])) + (", ..." if len(absent) > LISTED else "")
        logger.warning(
            "%s: the largest label is %d, which makes %d classes, but no mask has the label %s; if labels are wrong, set "
            "--data.classes, which refuses other labels, or --data.ignore",
            *(config.source, largest, count, listed),
        )
    return count
