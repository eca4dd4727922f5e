"""Frames of a video by number or by time, exactly, from a path or from bytes, with any of several backends.

Frames are numbered in the order in which they are shown, as in a decode from the first to the last. A backend must return
exactly these frames with exactly these pixels; a file for which it cannot do this is refused (`Unreadable`).

Shapes: N frames of a video, T requested frames, n frames of a block, (H, W) of an upright frame, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from mmm.core.checks import suggest
from mmm.data.decode.image import Pixels
from mmm.data.decode.video.validate import check_file, reasons
from mmm.data.errors import Unreadable
from mmm.data.transforms import resize as resizing

# seconds; a container that counts in milliseconds (Matroska) may store a time that is too late by this much
SLACK = 1e-3
# bytes of the frames of a block: together with a crop and the sample that is made from it, they fit into the second-level cache of
# a core, 2 MiB. Compared with reading whole clips (on one of two busy cores), four crops per decode took 3 to 15 % less time, one
# crop took the same time, and a clip of 1280 x 720 needed 2.8 MB of memory instead of 44.
BLOCK = 3 * 2**19


class Video(Protocol):
    """A video opened by one backend. `OpenVideo` converts its errors to `Unreadable`.

    Attributes:
        times: time of each frame in seconds from the first, ascending, float64 (N,).
    """

    times: NDArray[np.float64]

    def read(self, frames: list[int], channels: int) -> Pixels:
        """Decodes frames whose numbers ascend without repeats. uint8 (T, H, W, C)."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class StreamingVideo(Protocol):
    """A video of a backend that returns frames as it decodes them."""

    def each(self, frames: list[int], channels: int) -> Iterator[tuple[int, Pixels]]:
        """Decodes frames whose numbers ascend without repeats. Yields the number, and uint8 (H, W, C), valid until the next."""
        ...


@runtime_checkable
class NumberedVideo(Protocol):
    """A video whose frames have stored numbers, for instance those in file names.

    Attributes:
        numbers: int64 (N,), ascending.
    """

    numbers: NDArray[np.int64]


Source = Path | bytes


@dataclass(frozen=True)
class FrameRange:
    """A part of a video, which is read like a separate video.

    Attributes:
        source: the video.
        start: the first frame: counted from 0 in a file, or the number in the frame's name in a folder of frames.
        count: the number of frames, fewer if the video ends earlier. None: all that follow.
    """

    source: Source
    start: int
    count: int | None = None

    def bounds(self, video: Video) -> tuple[int, int]:
        """Returns the index of the first frame in an open video, and the index after the last one.

        Raises:
            Unreadable: the video has none of the frames.
        """
        total = len(video.times)
        numbers = video.numbers if isinstance(video, NumberedVideo) else np.arange(total)
        last = int(numbers[-1])
        first, stop = np.searchsorted(numbers, (self.start, last + 1 if self.count is None else self.start + self.count)).tolist()
        if first >= stop:
            end = "" if self.count is None else f" to {self.start + self.count - 1}"
            raise Unreadable(f"has no frames {self.start}{end}; its {total} frames have the numbers {int(numbers[0])} to {last}")
        return first, stop


BACKENDS: dict[str, Callable[[Source], Video]] = {}
"""Functions that open a video, by name (the value of `data.backend`)."""


def backend(name: str) -> Callable[[Callable[[Source], Video]], Callable[[Source], Video]]:
    """Registers a function or class that opens a path or bytes as a Video."""

    def add(opener: Callable[[Source], Video]) -> Callable[[Source], Video]:
        BACKENDS[name] = opener
        return opener

    return add


def find_backend(name: str) -> Callable[[Source], Video]:
    """Returns the backend of this name.

    Raises:
        ValueError: there is no backend of this name.
    """
    if name not in BACKENDS:
        raise ValueError(f"data.backend {name}: no such backend{suggest(name, BACKENDS)}")
    return BACKENDS[name]


class OpenVideo:
    """A video that is open for reading; use it in a `with` statement.

    Args:
        source: path of a video or of a folder of frames, a video's bytes, or a range of frames.
        name: name of the backend; a folder of frames is always read by `frames`.

    Attributes:
        times: time of each frame in seconds from the first, float64 (N,).

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """

    def __init__(self, source: Source | FrameRange | str, name: str = "av") -> None:
        part = source if isinstance(source, FrameRange) else None
        source = source.source if isinstance(source, FrameRange) else source
        source = Path(source) if isinstance(source, str) else source
        folder = isinstance(source, Path) and source.is_dir()
        opener = find_backend("frames" if folder else name)
        with reasons("cannot be opened"):
            check_file(source)
            self.video = opener(source)
        self.first, self.times = 0, self.video.times
        if part is not None:
            try:
                self.first, stop = part.bounds(self.video)
            except BaseException:
                self.video.close()
                raise
            self.times = self.video.times[self.first : stop] - self.video.times[self.first]

    def __len__(self) -> int:
        return len(self.times)

    def read(self, frames: Sequence[int] | NDArray[np.int64], channels: int = 3) -> Pixels:
        """Decodes frames by number, in any order; a frame that is requested twice is decoded once.

        Returns:
            uint8 (T, H, W, C).

        Raises:
            IndexError: the video has no frame of this number.
            Unreadable: reading fails; the message gives the reason.
        """
        requested, place = self._unique(frames)
        with reasons("cannot be decoded"):
            clip = self.video.read([number + self.first for number in requested], channels)
        return clip if len(place) == len(requested) and (place[:-1] < place[1:]).all() else clip[place]

    def blocks(self, frames: Sequence[int] | NDArray[np.int64], channels: int = 3) -> Iterator[tuple[list[int], Pixels]]:
        """Decodes frames by number, each once, in blocks that stay in a processor's cache until they are cropped.

        Yields:
            The numbers, ascending, and uint8 (n, H, W, C), which the next block overwrites.

        Raises:
            IndexError: the video has no frame of this number.
            Unreadable: reading fails, possibly after some blocks; the message gives the reason.
        """
        requested, _ = self._unique(frames)
        stored = [number + self.first for number in requested]
        with reasons("cannot be decoded"):
            if not isinstance(self.video, StreamingVideo):
                yield requested, self.video.read(stored, channels)
                return
            numbers: list[int] = []
            block = np.empty(0, np.uint8)
            for number, pixels in self.video.each(stored, channels):
                if block.size == 0:
                    block = np.empty((min(len(requested), max(1, BLOCK // pixels.size)), *pixels.shape), np.uint8)
                block[len(numbers)] = pixels
                numbers.append(number - self.first)
                if len(numbers) == len(block):
                    yield numbers, block
                    numbers = []
            if numbers:
                yield numbers, block[: len(numbers)]

    def _unique(self, frames: Sequence[int] | NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
        """Returns the distinct numbers, ascending, and the index in them of each requested number."""
        requested, place = np.unique(np.asarray(frames, dtype=np.int64), return_inverse=True)
        if len(requested) == 0 or requested[0] < 0 or requested[-1] >= len(self):
            raise IndexError(f"frames {list(frames)} of a video of {len(self)}")
        return requested.tolist(), place

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.video.close()  # without this, PyAV kept 159 KiB and an open file for each clip


def read_clip(
    source: Source | str,
    indices: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
    *,
    channels: int = 3,
    backend: str = "av",
) -> Pixels:
    """Reads frames of one video.

    Args:
        source: path of a video or of a folder of frames, or a video's bytes.
        indices: numbers of the frames, in any order. None: all.
        times: times in seconds from the first frame, instead of numbers. Each selects the frame that is visible at this time.
        size: height and width of the frames, or their short side, in pixels. None: those of the video.
        channels: 3 is RGB, 1 is grey.
        backend: `av`, `decord`, `torchcodec`, or a registered one.

    Returns:
        uint8 (T, H, W, C).

    Raises:
        Unreadable: reading fails; the message gives the reason.
        IndexError: the video does not have the frame.
    """
    with OpenVideo(source, backend) as video:
        if times is not None:
            assert indices is None
            indices = frames_at(video.times, np.asarray(times, dtype=np.float64)).tolist()
        clip = video.read(range(len(video)) if indices is None else indices, channels)
    return clip if size is None else resize(clip, size)


def frames_at(times: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the numbers of the frames that are visible at times in seconds, of any shape; 0 before the first frame."""
    return np.maximum(np.searchsorted(times, moments + SLACK, side="right") - 1, 0)


def resize(clip: Pixels, size: int | tuple[int, int]) -> Pixels:
    """Resizes all frames, bilinear and antialiased; one number is the short side. uint8 (T, H, W, C) -> (T, h, w, C)."""
    height, width = clip.shape[1:3]
    if isinstance(size, int):
        short = min(height, width)
        size = (max(1, round(height * size / short)), max(1, round(width * size / short)))
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2)  # (T, C, H, W)
    small = resizing.resize(pixels, size, "bilinear")  # (T, C, h, w)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())  # (T, h, w, C)
