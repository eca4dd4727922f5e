"""Parts of pictures on their way to the device, which resizes them there: what a worker's core does not do, it decodes for.

A worker cuts from what it decoded the rectangle in which all crops of an input lie, and sends it with their boxes. One buffer holds
a whole batch: one block of shared memory, one transfer. With several crops of an input that is also less to send.

Shapes: b inputs, R crops of each, B = b R samples, T frames (absent for images), (H, W) of a part, (h, w) of a sample, C channels.
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
class Cut:
    """A part of a picture or of a clip's frames.

    Attributes:
        pixels: uint8 ([T,] H, W, C).
        boxes: of the crops that are made of it, from the part's own corner.
    """

    pixels: Tensor
    boxes: list[Box]


def bounds(boxes: Sequence[Box]) -> tuple[Box, list[Box]]:
    """The smallest rectangle that holds boxes, and the boxes from its corner."""
    top, left = (min(box[side] for box in boxes) for side in (0, 1))
    bottom, right = (max(box[side] + box[side + 2] for box in boxes) for side in (0, 1))
    return [top, left, bottom - top, right - left], [[box[0] - top, box[1] - left, *box[2:]] for box in boxes]


@dataclass(frozen=True)
class Cuts:
    """Crops that are not resized yet.

    Attributes:
        inputs: the parts of each input, (b); none for an input that could not be read.
        shape: of a sample, (C, [T,] h, w).
        kernel: how they are resized, antialiased.
    """

    inputs: list[list[Cut]]
    shape: tuple[int, ...]
    kernel: Kernel

    def put(self, rows: Tensor, other: Cuts) -> None:
        """Inputs of another take the places of some."""
        for row, cuts in zip(rows.tolist(), other.inputs, strict=True):
            self.inputs[row] = cuts

    def pack(self) -> Packed:
        """All in one buffer; in a worker process in memory that it shares with its parent, so that it is not copied again."""
        if not all(self.inputs):
            raise AssertionError("an input without a part")
        parts = [cut for cuts in self.inputs for cut in cuts]
        size = sum(cut.pixels.numel() for cut in parts)
        buffer = torch.empty(0, dtype=torch.uint8)
        if get_worker_info() is None:
            buffer.resize_(size)
        else:  # as torch's own collate_fn does; share_memory_ would copy
            buffer = buffer.new(buffer.untyped_storage()._new_shared(size)).resize_(size)
        start = 0
        for cut in parts:
            end = start + cut.pixels.numel()
            buffer[start:end].view(cut.pixels.shape).copy_(cut.pixels)
            start = end
        return Packed(buffer, [(tuple(cut.pixels.shape), cut.boxes) for cut in parts], self.shape, self.kernel)


@dataclass(frozen=True)
class Packed:
    """The cuts of a batch.

    Attributes:
        buffer: the pixels of all parts, one after the other, uint8.
        parts: the shape of each, ([T,] H, W, C), and its boxes, in the order of the samples.
        shape, kernel: as of `Cuts`.
    """

    buffer: Tensor
    parts: list[tuple[tuple[int, ...], list[Box]]]
    shape: tuple[int, ...]
    kernel: Kernel

    def pin_memory(self) -> Packed:
        """In page-locked memory."""
        return replace(self, buffer=self.buffer.pin_memory())

    def resize(self, device: torch.device | str) -> Tensor:
        """The samples, made on a device, without waiting for the copy there.

        Returns:
            uint8 (B, C, [T,] h, w). On a CPU the bits that a worker gives; elsewhere at most 1 of 255 off on photographs,
            2 at hard edges, because there the kernel computes in floating point and a worker's in integers.
        """
        buffer = self.buffer.to(device, non_blocking=True)
        count, (channels, *sides) = sum(len(boxes) for _, boxes in self.parts), self.shape
        samples = torch.empty(count, *sides, channels, dtype=torch.uint8, device=buffer.device)  # (B, [T,] h, w, C)
        start = row = 0
        for shape, boxes in self.parts:
            end = start + prod(shape)
            frames = buffer[start:end].view(-1, *shape[-3:]).permute(0, 3, 1, 2)  # (T or 1, C, H, W)
            for top, left, height, width in boxes:
                sample = samples[row].view(-1, *samples.shape[-3:]).permute(0, 3, 1, 2)  # (T or 1, C, h, w)
                resize_into(sample, frames[:, :, top : top + height, left : left + width], self.kernel)
                row += 1
            start = end
        return samples.movedim(-1, 1)
