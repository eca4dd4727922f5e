"""Objects of an image and their masks, and the transformation of both when the image is cropped.

Shapes: n objects, (H, W) pixels of an image, (h, w) of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1.0  # pixels; an object whose visible part is smaller than this along an axis is left out of the sample


@dataclass(frozen=True)
class Objects:
    """The objects of one image, as annotated.

    Attributes:
        size: (H, W).
        boxes: float32 (n, 4), left, top, right, bottom in pixels.
        labels: int64 (n,), classes from 0.
        crowd: bool (n,), objects that are groups of several; they are not trained on.
        masks: one for each object: polygons (lists of x, y, x, y, ...), a run-length encoding ({"size", "counts"}), bool (H,
            W), or None.
    """

    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class Placement:
    """The position of an image in a sample.

    Attributes:
        scale: pixels of the sample per pixel of the image, along rows and columns.
        offset: row and column of the image's first pixel in the sample; negative if a crop begins after it.
        size: (h, w) of the sample.
        inside: the part of the sample that shows the image, height and width from its first pixel.
        flipped: whether the sample is then flipped horizontally.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]
    inside: tuple[int, int]
    flipped: bool = False

    def boxes(self, boxes: Tensor) -> Tensor:
        """Converts boxes of the image to boxes of the sample, cut at the edge of the visible part, (n, 4)."""
        scale = torch.tensor([self.scale[1], self.scale[0]] * 2)
        offset = torch.tensor([self.offset[1], self.offset[0]] * 2)
        placed = boxes * scale + offset
        placed[:, 0::2] = placed[:, 0::2].clamp(0, self.inside[1])
        placed[:, 1::2] = placed[:, 1::2].clamp(0, self.inside[0])
        if self.flipped:
            placed[:, 0::2] = self.size[1] - placed[:, 0::2].flip(1)
        return placed

    def original(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Converts boxes of the sample to boxes of the image, whose size is (H, W), (n, 4)."""
        assert not self.flipped
        scale = torch.tensor([self.scale[1], self.scale[0]] * 2, device=boxes.device)
        offset = torch.tensor([self.offset[1], self.offset[0]] * 2, device=boxes.device)
        placed = (boxes - offset) / scale
        return torch.stack([placed[:, axis].clamp(0, size[1 - axis % 2]) for axis in range(4)], dim=1)

    def mask(self, mask: Any, size: tuple[int, int]) -> Tensor:
        """Returns an object's mask in the sample, bool (h, w).

        Args:
            mask: an element of `Objects.masks`.
            size: (H, W) of the image.
        """
        if isinstance(mask, list):
            moved = [self._polygon(polygon) for polygon in mask]
            whole = torch.from_numpy(rasterise(moved, self.size)).bool()
        else:
            whole = self._pixels(torch.from_numpy(as_pixels(mask, size)))
        whole[self.inside[0] :] = False
        whole[:, self.inside[1] :] = False
        return whole.flip(1) if self.flipped else whole

    def _polygon(self, polygon: list[float]) -> list[float]:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        return (points * [self.scale[1], self.scale[0]] + [self.offset[1], self.offset[0]]).ravel().tolist()

    def _pixels(self, mask: Tensor) -> Tensor:
        """Samples a mask at the nearest pixel for each pixel of the sample, (H, W) -> (h, w)."""
        rows, columns = (
            (torch.arange(length) + 0.5 - start) / scale
            for length, start, scale in zip(self.size, self.offset, self.scale, strict=True)
        )
        inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
        rows, columns = rows.long().clamp(0, mask.shape[0] - 1), columns.long().clamp(0, mask.shape[1] - 1)
        return mask[rows[:, None], columns] & inside


def rasterise(polygons: list[list[float]], size: tuple[int, int]) -> Any:
    """Fills polygons as COCO does, uint8 (h, w)."""
    api = mask_api()
    if not polygons:
        return np.zeros(size, np.uint8)
    return api.decode(api.merge(api.frPyObjects(polygons, *size)))


def as_pixels(mask: Any, size: tuple[int, int]) -> Any:
    """Converts an object's mask to pixels of the image, bool (H, W)."""
    if isinstance(mask, np.ndarray):
        return mask
    if isinstance(mask, list):
        return rasterise(mask, size).astype(bool)
    api = mask_api()
    encoded = api.frPyObjects(mask, *size) if isinstance(mask.get("counts"), list) else mask
    return api.decode(encoded).astype(bool)


def mask_api() -> Any:
    """Returns COCO's mask functions.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise ValueError("masks of objects need faster-coco-eval; pip install 'masked-modelling[detection]'") from error
    return mask


def place_objects(objects: Objects, placement: Placement, *, masks: bool) -> dict[str, Tensor]:
    """Returns the objects of a sample in the format of torchvision's detectors.

    Crowds are left out, and also objects of which less than a pixel is visible in the sample.

    Args:
        objects: the objects of the image.
        placement: the position of the image in the sample.
        masks: whether to return masks.

    Returns:
        `boxes` float32 (m, 4), `labels` int64 (m,), from 1, and `masks` uint8 (m, h, w).
    """
    boxes = placement.boxes(objects.boxes)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST).all(1) & ~objects.crowd
    target = {"boxes": boxes[kept], "labels": objects.labels[kept] + 1}
    if masks:
        rows = kept.nonzero()[:, 0].tolist()
        drawn = [placement.mask(objects.masks[row], objects.size) for row in rows]
        target["masks"] = torch.stack(drawn).byte() if drawn else torch.zeros(0, *placement.size, dtype=torch.uint8)
        seen = target["masks"].bool().flatten(1).any(1)  # a polygon thinner than a pixel covers no pixel
        target = {name: value[seen] for name, value in target.items()}
    return target


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes the masks of boxes and puts them into images, (n, 1, s, s) in [0, 1] -> bool (n, H, W)."""
    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.bool)
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    y = (rows[None] - boxes[:, 1:2]) / sides[:, 1:2] * 2 - 1  # (n, H)
    x = (columns[None] - boxes[:, 0:1]) / sides[:, 0:1] * 2 - 1  # (n, W)
    places = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    return F.grid_sample(masks.float(), places, align_corners=False)[:, 0] > 0.5
