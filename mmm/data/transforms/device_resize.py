"""Crops that are resized on the training device, so that worker processes have more time to decode (`data.resize device`).

A worker copies the rectangle that contains all crops of a decoded input, and sends it with their boxes. One buffer holds the
rectangles of a whole batch: one block of shared memory and one transfer.

Shapes: b inputs, R crops of each, B = b R samples, T frames (absent for images), (H, W) of a region, (h, w) of a sample, C
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmm.data.transforms.resize import Kernel, resize_into

Box = list[int]  # top, left, height, width


@dataclass(frozen=True)
class DeferredCrop:
    """A region of an image, or of a clip's frames.

    Attributes:
        pixels: uint8 ([T,] H, W, C).
        boxes: boxes of the crops, relative to the region's corner.
    """

    pixels: Tensor
    boxes: list[Box]


def bounding_box(boxes: Sequence[Box]) -> tuple[Box, list[Box]]:
    """Returns the smallest rectangle that contains all boxes, and the boxes relative to its corner."""
    top, left = (min(box[side] for box in boxes) for side in (0, 1))
    bottom, right = (max(box[side] + box[side + 2] for box in boxes) for side in (0, 1))
    return [top, left, bottom - top, right - left], [[box[0] - top, box[1] - left, *box[2:]] for box in boxes]


@dataclass(frozen=True)
class DeferredCrops:
    """The crops of a batch before they are resized.

    Attributes:
        inputs: the regions of each input, b lists; the list of an unreadable input is empty.
        shape: shape of a sample, (C, [T,] h, w).
        kernel: kernel of the antialiased resize.
    """

    inputs: list[list[DeferredCrop]]
    shape: tuple[int, ...]
    kernel: Kernel

    def put(self, rows: Tensor, other: DeferredCrops) -> None:
        """Replaces the inputs at these rows by those of another batch."""
        for row, regions in zip(rows.tolist(), other.inputs, strict=True):
            self.inputs[row] = regions

    def pack(self) -> PackedCrops:
        """Copies all regions into one buffer; in a worker process into shared memory, so that it is not copied again."""
        if not all(self.inputs):
            raise AssertionError("an input without a region")
        regions = [region for regions in self.inputs for region in regions]
        size = sum(region.pixels.numel() for region in regions)
        buffer = torch.empty(0, dtype=torch.uint8)
        if get_worker_info() is None:
            buffer.resize_(size)
        else:  # as torch's default collate_fn does; share_memory_ would copy
            buffer = buffer.new(buffer.untyped_storage()._new_shared(size)).resize_(size)
        start = 0
        for region in regions:
            end = start + region.pixels.numel()
            buffer[start:end].view(region.pixels.shape).copy_(region.pixels)
            start = end
        return PackedCrops(buffer, [(tuple(region.pixels.shape), region.boxes) for region in regions], self.shape, self.kernel)


@dataclass(frozen=True)
class PackedCrops:
    """The crops of a batch in one buffer.

    Attributes:
        buffer: the pixels of all regions, one after the other, uint8.
        regions: the shape of each region, ([T,] H, W, C), and its boxes, in the order of the samples.
        shape, kernel: see `DeferredCrops`.
    """

    buffer: Tensor
    regions: list[tuple[tuple[int, ...], list[Box]]]
    shape: tuple[int, ...]
    kernel: Kernel

    def pin_memory(self) -> PackedCrops:
        """Copies the buffer into page-locked memory."""
        return replace(self, buffer=self.buffer.pin_memory())

    def resize(self, device: torch.device | str) -> Tensor:
        """Makes the samples on a device, without waiting for the copy to it.

        Returns:
            uint8 (B, C, [T,] h, w). On a CPU they have the same bits as when a worker resizes. On other devices they differ by at
            most 1 of 255 on photographs and 2 at hard edges, because the kernel computes in floating point there.
        """
        buffer = self.buffer.to(device, non_blocking=True)
        count, (channels, *sides) = sum(len(boxes) for _, boxes in self.regions), self.shape
        samples = torch.empty(count, *sides, channels, dtype=torch.uint8, device=buffer.device)  # (B, [T,] h, w, C)
        start = row = 0
        for shape, boxes in self.regions:
            end = start + prod(shape)
            frames = buffer[start:end].view(-1, *shape[-3:]).permute(0, 3, 1, 2)  # (T or 1, C, H, W)
            for top, left, height, width in boxes:
                sample = samples[row].view(-1, *samples.shape[-3:]).permute(0, 3, 1, 2)  # (T or 1, C, h, w)
                resize_into(sample, frames[:, :, top : top + height, left : left + width], self.kernel)
                row += 1
            start = end
        return samples.movedim(-1, 1)
