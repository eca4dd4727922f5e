"""Frames of an open video a few at a time, so that what is cut from them is cut while a processor's cache holds them.

Measured beside reading a whole clip first, the same pixels (one core of two busy ones): four crops a decode take 3 to 15 % less
time, one crop as much as before; and a clip of 1280 x 720 holds 2.8 MB instead of 44.

Shapes: T frames that are wanted, n of a block, (H, W) of a frame, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.reader import OpenVideo
from mmm.data.decode.video.validate import reasons

BLOCK = 3 * 2**19  # bytes of the frames of a block: with the crop of them and its sample it fits 2 MiB, a core's second cache


@runtime_checkable
class OneByOne(Protocol):
    """An open file that hands out frames as it decodes them; one of another backend comes as one block."""

    def each(self, frames: list[int], channels: int) -> Iterator[tuple[int, Pixels]]:
        """These frames, whose numbers ascend without repeats: the number, and uint8 (H, W, C) until the next is asked for."""
        ...


def blocks(video: OpenVideo, frames: Sequence[int] | NDArray[np.int64], channels: int) -> Iterator[tuple[list[int], Pixels]]:
    """Frames by number, each once, in the order in which they are decoded.

    Yields:
        The numbers, and uint8 (n, H, W, C), which the next block overwrites.

    Raises:
        IndexError: for a number that the video does not have.
        Unreadable: with the reason; some blocks may have come before.
    """
    wanted = np.unique(np.asarray(frames, dtype=np.int64))
    if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= len(video):
        raise IndexError(f"frames {wanted.tolist()} of a video of {len(video)}")
    with reasons("cannot be decoded"):
        if isinstance(video.video, OneByOne):
            yield from _gathered(video.video.each(wanted.tolist(), channels), len(wanted))
        else:
            yield wanted.tolist(), video.video.read(wanted.tolist(), channels)


def _gathered(frames: Iterator[tuple[int, Pixels]], total: int) -> Iterator[tuple[list[int], Pixels]]:
    numbers: list[int] = []
    block = np.empty(0, np.uint8)
    for number, pixels in frames:
        if block.size == 0:
            block = np.empty((min(total, max(1, BLOCK // pixels.size)), *pixels.shape), np.uint8)
        block[len(numbers)] = pixels
        numbers.append(number)
        if len(numbers) == len(block):
            yield numbers, block
            numbers = []
    if numbers:
        yield numbers, block[: len(numbers)]
