"""Random resized crops of many small images at once, equal bit for bit to `crop.resized_crop` of each.

For a small image the function calls of a crop cost more than its arithmetic (32 x 32, one core: 62 us one by one, 12 us here).
Resizing is linear, so the crops of a batch are two batched matrix products, whose weights depend on a box's offset and length.

The weights are torch's for uint8: the antialiased cubic kernel (Keys, "Cubic convolution interpolation", 1981, a = -0.5),
rounded to 16-bit integers; the result is rounded to uint8 after each axis. float32 represents every integer up to 2^24 exactly,
and no sum here is larger, so the result depends neither on the batch nor on the number of threads.

Shapes: B samples, C channels, (H, W) of the images, (h, w) of a sample, L the length of a box along one axis.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

LARGEST = 48  # side of an image or sample in pixels; above it the lookup is not faster (and takes 68 MB at 64 pixels)
EXACT = 2**24  # float32 represents every integer up to this one


def is_small(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether `crop_small` can crop images of this size."""
    if max(height, width, *size) > LARGEST:
        return False
    return all(_lookup(side, wanted)[2] for side, wanted in ((height, size[0]), (width, size[1])))


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
    x = _levels(torch.bmm(x, across[left, box_width].transpose(1, 2)), across_scale[box_width])  # (B, C H, w)
    x = x.view(batch, channels, height, size[1]).transpose(1, 2).reshape(batch, height, channels * size[1])  # (B, H, C w)
    x = _levels(torch.bmm(down[top, box_height], x), down_scale[box_height])  # (B, h, C w)
    return x.to(torch.uint8).view(batch, size[0], channels, size[1]).transpose(1, 2).contiguous()  # (B, C, h, w)


def _levels(x: Tensor, scale: Tensor) -> Tensor:
    """Scales sums of integers back to whole grey levels, in place. (B, ...), (B,) -> (B, ...)."""
    return x.mul_(scale[:, None, None]).add_(0.5).floor_().clamp_(0, 255)


@lru_cache(maxsize=16)
def _lookup(side: int, out: int) -> tuple[Tensor, Tensor, bool]:
    """Weights of all boxes along an axis of `side` pixels, as integers in float32.

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
    """Weights of `length` pixels for each of `out` pixels, as integers (out, L), and the number of bits they are shifted by."""
    step = length / out  # pixels of the box per pixel of the sample
    stretch = max(step, 1.0)  # antialiasing: the kernel is wider where the image is reduced
    centre = step * (torch.arange(out, dtype=torch.float64) + 0.5)[:, None]  # (out, 1)
    first, end = ((centre + sign * 2 * stretch + 0.5).long().clamp(0, length) for sign in (-1, 1))  # (out, 1)
    pixel = torch.arange(length)[None]  # (1, L)
    weights = _cubic((pixel - centre + 0.5) / stretch) * ((pixel >= first) & (pixel < end))  # (out, L)
    weights = weights / weights.sum(1, keepdim=True)
    # the number of bits with which the largest weight fits into 16
    bits = next(bits for bits in range(22) if int(0.5 + float(weights.max()) * 2 ** (bits + 1)) >= 2**15)
    return (weights * 2**bits + torch.where(weights < 0, -0.5, 0.5)).trunc().float(), bits


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel, a = -0.5."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((x - 5) * x + 8) * -0.5 * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
