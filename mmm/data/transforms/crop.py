"""Crops of images, with small images in batches; flipping, lighting and normalisation of a batch.

All random numbers come from the samples' keys.

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
from mmm.data.decode.files import check_resized
from mmm.data.transforms.resize import resize, resize_into

TRIES = 10  # as in torchvision's RandomResizedCrop
SMALL_SIDE = 48  # largest side of small images and samples; above it the lookup is not faster (and takes 68 MB at 64 pixels)
EXACT = 2**24  # float32 represents every integer up to this one

# Evaluation resizes to 256/224 of the sample's size and crops the centre, as MAE does up to 224 pixels. Above 224 MAE uses no
# margin (crop_pct 1 in its build_transform); below 128 pixels a margin would remove too much of a small image.
MARGIN, MARGIN_SIZES = 256 / 224, (128, 224)


def crop_boxes(keys: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draws boxes of random resized crops ("Going deeper with convolutions", Szegedy et al. 2014; torchvision's rules).

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
    spare = torch.stack([heights, widths], 1)[:, :, None] - sides  # (B, 2, TRIES)
    offsets = (draws[:, 2:] * (spare + 1)).long()  # (B, 2, TRIES)
    fits = ((spare >= 0) & (sides > 0)).all(1)  # (B, TRIES)
    first = fits.long().argmax(1)[:, None, None].expand(-1, 4, 1)  # the first try that fits, (B, 4, 1)
    boxes = torch.cat([offsets, sides], 1).gather(2, first)[:, :, 0]  # (B, 4)
    return torch.where(fits.any(1)[:, None], boxes, _centred_boxes(heights, widths, ratio))


def _centred_boxes(heights: Tensor, widths: Tensor, ratio: tuple[float, float]) -> Tensor:
    """Returns the largest centred boxes whose width over height lies in `ratio`, (B, 4)."""
    height = torch.minimum(heights, (widths / ratio[0]).round().long())
    width = torch.minimum(widths, (heights * ratio[1]).round().long())
    return torch.stack([(heights - height) // 2, (widths - width) // 2, height, width], 1)


def resized_crop(image: NDArray[np.uint8], box: list[int], sample: Tensor) -> None:
    """Resizes the box (top, left, height, width) of an image into a sample. uint8 (H, W, C) -> (C, h, w)."""
    top, left, height, width = box
    part = torch.from_numpy(image[top : top + height, left : left + width])
    resize_into(sample[None], part.permute(2, 0, 1)[None], "bicubic")


def margin_of(size: tuple[int, int]) -> float:
    """Returns the ratio of the image's size to the sample's, (h, w) in pixels, before the centre crop of evaluation."""
    return MARGIN if min(size) >= MARGIN_SIZES[0] and max(size) <= MARGIN_SIZES[1] else 1.0


def covering_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size to which evaluation resizes an image before the centre crop: the smallest that covers the sample.

    Samples of 128 to 224 pixels per side get a margin of 256/224. Heights and widths are in pixels.

    Raises:
        Unreadable: the image is so elongated that the size is too large.
    """
    margin = margin_of(size)
    target = [round(side * margin) for side in size]
    if target[0] * width >= target[1] * height:  # the height limits the size
        resized = target[0], max(target[1], int(target[0] * width / height))
    else:
        resized = max(target[0], int(target[1] * height / width)), target[1]
    check_resized((height, width), resized)
    return resized


def center_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Resizes an image to `covering_size` and crops it at the centre, for evaluation. uint8 (H, W, C) -> (C, h, w).

    Raises:
        Unreadable: see `covering_size`.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (C, H, W)
    resized = resize(pixels[None], covering_size(image.shape[0], image.shape[1], size), "bicubic")[0]
    top, left = (round((have - want) / 2) for have, want in zip(resized.shape[1:], size, strict=True))
    return resized[:, top : top + size[0], left : left + size[1]]


def decode_hint(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> int:
    """Returns the smallest side in pixels to which an image may be decoded so that its smallest crop is not enlarged."""
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
    """Returns values of the channels times 255, (C,). Cached, because creating a GPU tensor from numbers synchronizes."""
    return torch.tensor(values, dtype=torch.float32, device=device) * 255


# --------------------------------------------------------------------------------------- crops of small images, many at once
# The crops equal those of `resized_crop` bit for bit. For a small image the function calls of a crop cost more than its arithmetic
# (32 x 32, one core: 62 us one by one, 12 us here). Resizing is linear, so the crops of a batch are two batched matrix products,
# whose weights depend on a box's offset and length.
#
# The weights are torch's for uint8: the antialiased cubic kernel (Keys, "Cubic convolution interpolation", 1981, a = -0.5),
# rounded to 16-bit integers; the result is rounded to uint8 after each axis. float32 represents every integer up to 2^24 exactly,
# and no sum here is larger, so the result depends neither on the batch nor on the number of threads.
# L is the length of a box along one axis.


def is_small(height: int, width: int, size: tuple[int, int]) -> bool:
    """True if `crop_small` can crop images of this size."""
    if max(height, width, *size) > SMALL_SIDE:
        return False
    return all(_lookup(side, out)[2] for side, out in ((height, size[0]), (width, size[1])))


def crop_small(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops and resizes images, bicubic and antialiased.

    Args:
        images: uint8 (B, H, W, C), of a size for which `is_small` holds.
        boxes: top, left, height, width, int64 (B, 4).
        size: h, w.

    Returns:
        uint8 (B, C, h, w).
    """
    batch, height, width, channels = images.shape
    top, left, box_height, box_width = boxes.unbind(1)
    down, down_scale, _ = _lookup(height, size[0])
    across, across_scale, _ = _lookup(width, size[1])
    x = images.permute(0, 3, 1, 2).float().reshape(batch, channels * height, width)  # (B, C H, W)
    x = _grey_levels(torch.bmm(x, across[left, box_width].transpose(1, 2)), across_scale[box_width])  # (B, C H, w)
    x = x.view(batch, channels, height, size[1]).transpose(1, 2).reshape(batch, height, channels * size[1])  # (B, H, C w)
    x = _grey_levels(torch.bmm(down[top, box_height], x), down_scale[box_height])  # (B, h, C w)
    return x.to(torch.uint8).view(batch, size[0], channels, size[1]).transpose(1, 2).contiguous()  # (B, C, h, w)


def _grey_levels(x: Tensor, scale: Tensor) -> Tensor:
    """Scales sums of integers back to whole grey levels, in place. (B, ...), (B,) -> (B, ...)."""
    return x.mul_(scale[:, None, None]).add_(0.5).floor_().clamp_(0, 255)


@lru_cache(maxsize=16)
def _lookup(side: int, out: int) -> tuple[Tensor, Tensor, bool]:
    """Returns the weights of all boxes along an axis of `side` pixels, as integers in float32.

    Returns:
        The weights (offset, L, out, side), the factors for the sums (L,), and whether all sums are exact.
    """
    weights = torch.zeros(side, side + 1, out, side)
    scale = torch.zeros(side + 1)
    largest = 0.0
    for length in range(1, side + 1):
        taps, bits = _taps(length, out)  # (out, L)
        scale[length] = 2.0**-bits
        largest = max(largest, float(taps.abs().sum(1).max()) * 255)
        for offset in range(side - length + 1):
            weights[offset, length, :, offset : offset + length] = taps
    return weights, scale, largest < EXACT


def _taps(length: int, out: int) -> tuple[Tensor, int]:
    """Returns weights of `length` pixels for each of `out` pixels, as integers (out, L), and the number of bits of their
    shift."""
    step = length / out  # pixels of the box per pixel of the sample
    stretch = max(step, 1.0)  # antialiasing: the kernel is wider if the image is reduced
    centre = step * (torch.arange(out, dtype=torch.float64) + 0.5)[:, None]  # (out, 1)
    first, end = ((centre + sign * 2 * stretch + 0.5).long().clamp(0, length) for sign in (-1, 1))  # (out, 1)
    pixel = torch.arange(length)[None]  # (1, L)
    weights = _cubic((pixel - centre + 0.5) / stretch) * ((pixel >= first) & (pixel < end))  # (out, L)
    weights = weights / weights.sum(1, keepdim=True)
    # the number of bits with which the largest weight fits into 16
    bits = next(bits for bits in range(22) if int(0.5 + float(weights.max()) * 2 ** (bits + 1)) >= 2**15)
    return (weights * 2**bits + torch.where(weights < 0, -0.5, 0.5)).trunc().float(), bits


def _cubic(x: Tensor) -> Tensor:
    """Evaluates the cubic kernel of Keys with a = -0.5."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((x - 5) * x + 8) * -0.5 * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
