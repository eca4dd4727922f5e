"""Crops of images, and flipping, lighting and normalisation of a batch. All random numbers come from the samples' keys.

Shapes: B samples, C channels, (H, W) of an image, (h, w) of a sample; pixels are uint8 until `normalise`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmm.core.rng import Stream, stream, uniform
from mmm.data.transforms.resize import resize, resize_into

TRIES = 10  # as in torchvision's RandomResizedCrop

# Evaluation resizes to 256/224 of the sample's size and crops the centre, as MAE does up to 224 pixels. Above 224 MAE uses no
# margin (crop_pct 1 in its build_transform); below 128 pixels a margin would remove too much of a small image.
MARGIN, MARGIN_SIZES = 256 / 224, (128, 224)


def crop_boxes(keys: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Random-resized-crop boxes ("Going deeper with convolutions", Szegedy et al. 2014; torchvision's rules).

    The area is uniform in `scale`, and the logarithm of width over height is uniform in `ratio`. The first of ten draws that fits
    into the image is taken, else the largest centred box of an allowed ratio.

    Args:
        keys: int64 (B,).
        heights, widths: sizes of the images in pixels, int64 (B,).
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width over height.

    Returns:
        int64 (B, 4): top, left, height, width.
    """
    draws = uniform(stream(keys, Stream.CROP), 4 * TRIES).double().unflatten(1, (4, TRIES))  # (B, 4, TRIES)
    area = (heights * widths)[:, None] * (scale[0] + draws[:, 0] * (scale[1] - scale[0]))  # (B, TRIES)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + draws[:, 1] * (high - low))  # (B, TRIES)
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], 1).round().long()  # (B, 2, TRIES)
    room = torch.stack([heights, widths], 1)[:, :, None] - sides  # (B, 2, TRIES)
    offsets = (draws[:, 2:] * (room + 1)).long()  # (B, 2, TRIES)
    fits = ((room >= 0) & (sides > 0)).all(1)  # (B, TRIES)
    first = fits.long().argmax(1)[:, None, None].expand(-1, 4, 1)  # the first try that fits, (B, 4, 1)
    boxes = torch.cat([offsets, sides], 1).gather(2, first)[:, :, 0]  # (B, 4)
    return torch.where(fits.any(1)[:, None], boxes, _centred_boxes(heights, widths, ratio))


def _centred_boxes(heights: Tensor, widths: Tensor, ratio: tuple[float, float]) -> Tensor:
    """The largest centred boxes whose width over height lies in `ratio`, (B, 4)."""
    height = torch.minimum(heights, (widths / ratio[0]).round().long())
    width = torch.minimum(widths, (heights * ratio[1]).round().long())
    return torch.stack([(heights - height) // 2, (widths - width) // 2, height, width], 1)


def resized_crop(image: NDArray[np.uint8], box: list[int], sample: Tensor) -> None:
    """Resizes the box (top, left, height, width) of an image into a sample. uint8 (H, W, C) -> (C, h, w)."""
    top, left, height, width = box
    part = torch.from_numpy(image[top : top + height, left : left + width])
    resize_into(sample[None], part.permute(2, 0, 1)[None], "bicubic")


def margin_of(size: tuple[int, int]) -> float:
    """The ratio of the image's size to the sample's, (h, w) in pixels, before the centre crop of evaluation."""
    return MARGIN if min(size) >= MARGIN_SIZES[0] and max(size) <= MARGIN_SIZES[1] else 1.0


def covering_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The size to which evaluation resizes an image before the centre crop: the image's own shape, just covering the sample.

    Samples of 128 to 224 pixels per side get a margin of 256/224. Heights and widths are in pixels.
    """
    margin = margin_of(size)
    wanted = [round(side * margin) for side in size]
    if wanted[0] * width >= wanted[1] * height:  # the height is the tighter limit
        return wanted[0], max(wanted[1], int(wanted[0] * width / height))
    return max(wanted[0], int(wanted[1] * height / width)), wanted[1]


def center_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """The evaluation crop: resized to `covering_size`, then cropped at the centre. uint8 (H, W, C) -> (C, h, w)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (C, H, W)
    resized = resize(pixels[None], covering_size(image.shape[0], image.shape[1], size), "bicubic")[0]
    top, left = (round((have - want) / 2) for have, want in zip(resized.shape[1:], size, strict=True))
    return resized[:, top : top + size[0], left : left + size[1]]


def decode_hint(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> int:
    """The smallest side in pixels to which an image may be decoded so that its smallest crop is not enlarged."""
    return math.ceil(max(size) / math.sqrt(scale[0] * min(ratio[0], 1 / ratio[1], 1.0)))


def flip(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """Flips samples horizontally with probability p. (B, ..., w) and keys (B,) -> (B, ..., w)."""
    chosen = uniform(stream(keys, Stream.FLIP), 1)[:, 0] < p  # (B,)
    return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def lighting(x: Tensor, keys: Tensor, strength: float) -> Tensor:
    """Multiplies the contrast around the sample's mean, and the brightness, by factors from 1 - strength to 1 + strength.

    Args:
        x: float (B, C, h, w), from 0 to 255.
        keys: (B,).
        strength: from 0 to 1.

    Returns:
        float (B, C, h, w), from 0 to 255.
    """
    factors = 1 + strength * (2 * uniform(stream(keys, Stream.AUGMENT), 2) - 1)  # (B, 2)
    contrast, brightness = factors.view(-1, 2, *[1] * (x.ndim - 1)).unbind(1)  # (B, 1, 1, 1) each
    mean = x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return ((mean + (x - mean) * contrast) * brightness).clamp(0, 255)


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalises pixels from 0 to 255 for the model: (x / 255 - mean) / std per channel. (B, C, ...) -> float32 (B, C, ...)."""
    centre, scale = (_levels(values, x.device).view(1, -1, *[1] * (x.ndim - 2)) for values in (mean, std))
    return (x.float() - centre) / scale


@lru_cache
def _levels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values of the channels times 255, (C,). Cached, because creating a GPU tensor from numbers synchronizes in each step."""
    return torch.tensor(values, dtype=torch.float32, device=device) * 255
