"""Pictures of maps and objects beside their images.

Shapes: B samples, C channels, (H, W) pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmm.core.rng import sample_keys, uniform
from mmm.data.annotated.maps import IGNORE
from mmm.data.decode.image import Pixels

SHOWN = 6  # number of images in a picture
SIDE = 320  # pixels to which a larger image is reduced
BLEND = 0.65  # share of a class's colour over its image
FIRST = ((0, 0, 0), (228, 26, 28), (55, 126, 184), (77, 175, 74), (255, 200, 40), (152, 78, 163), (255, 127, 0), (80, 220, 210))


def class_colours(classes: int) -> Tensor:
    """Returns a colour for each class, uint8 (K, 3): black for the first, then distinct colours, then random ones."""
    drawn = (uniform(sample_keys(7, 0, torch.arange(max(classes, 1))), 3) * 200 + 40).byte()
    count = min(classes, len(FIRST))
    drawn[:count] = torch.tensor(FIRST[:count], dtype=torch.uint8)
    return drawn[:classes]


def paint_classes(image: Pixels, labels: Tensor, classes: int) -> Tensor:
    """Draws the colours of classes over an image. Pixels without a label do not change.

    Args:
        image: uint8 (H, W, C).
        labels: int64 (H, W), on the CPU.

    Returns:
        float (3, H, W) in [0, 1].
    """
    base = as_picture(image)
    table = class_colours(classes).float() / 255
    colours = table[labels.clamp(max=classes - 1)].movedim(-1, 0)  # (3, H, W)
    mixed = (1 - BLEND) * base + BLEND * colours
    return torch.where((labels == IGNORE)[None], base, mixed)


def as_picture(image: Pixels) -> Tensor:
    """Converts an image, uint8 (H, W, C) -> float (3, H, W) in [0, 1]."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    return pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)


def same_size(pictures: list[Tensor]) -> Tensor:
    """Pads pictures (3, H, W) of several sizes to one size, at most SIDE pixels high and wide. (B, 3, h, w)."""
    from torch.nn import functional as F

    reduced = []
    for picture in pictures:
        factor = min(1.0, SIDE / max(picture.shape[-2:]))
        size = [max(1, round(side * factor)) for side in picture.shape[-2:]]
        reduced.append(picture if factor == 1 else F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0])
    height, width = (max(picture.shape[axis] for picture in reduced) for axis in (-2, -1))
    result = torch.full((len(reduced), 3, height, width), float("nan"))
    for row, picture in enumerate(reduced):
        top, left = (height - picture.shape[-2]) // 2, (width - picture.shape[-1]) // 2
        result[row, :, top : top + picture.shape[-2], left : left + picture.shape[-1]] = picture
    return result


def paint_objects(image: Pixels, objects: dict[str, Tensor], classes: int) -> Tensor:
    """Draws boxes and masks over an image.

    Args:
        image: uint8 (H, W, C).
        objects: `boxes` (n, 4), `labels` (n,) from 0 and, if there are any, `masks` bool (n, H, W).

    Returns:
        float (3, H, W) in [0, 1].
    """
    from PIL import Image, ImageDraw

    table = class_colours(classes + 1)[1:]  # the first is the background's
    picture = as_picture(image).clone()
    for number, label in enumerate(objects["labels"].tolist()):
        if "masks" in objects:
            inside = objects["masks"][number].cpu()
            colour = table[label].float()[:, None] / 255
            picture[:, inside] = (1 - BLEND) * picture[:, inside] + BLEND * colour
    drawn = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(drawn)
    for label, box in zip(objects["labels"].tolist(), objects["boxes"].tolist(), strict=True):
        left, top, right, bottom = box
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=tuple(table[label].tolist()))
    return torch.from_numpy(np.array(drawn)).permute(2, 0, 1).float() / 255


def draw_beside(
    images: list[Pixels], columns: dict[str, list[Any]], path: Path, paint: Callable[[Pixels, Any], Tensor], *, title: str
) -> Path:
    """Draws images, one per row, and beside each image its values in further columns.

    Args:
        columns: values by the title of the column, one value for each image.
        paint: draws a value over its image, see `paint_classes` and `paint_objects`.
    """
    from mmm.evaluate.plots.image_grid import draw_grid

    shown = [("image", same_size([as_picture(image) for image in images]))]
    for name, values in columns.items():
        shown.append((name, same_size([paint(image, value) for image, value in zip(images, values, strict=True)])))
    return draw_grid(shown, path, title=title)
