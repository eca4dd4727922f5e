"""Frames of a video, by number or by time, exactly; from a path or from bytes, whatever decodes them.

Frames are numbered in the order in which they are shown, as a decode from the first to the last would give them. That no
backend may return other frames than these, and none for which it has no true pixels, is the contract of this package; a file
with which a backend cannot keep it is refused (`Unreadable`).

Shapes: N frames of a video, T frames that are wanted, (H, W) of a frame, upright, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mmm.core.registry import suggest
from mmm.data.decode.image import Pixels
from mmm.data.decode.video.validate import check_file, reasons
from mmm.data.transforms import resize as resizing

# seconds; a container that counts in milliseconds (Matroska) may say that a frame is shown this much later than it is
SLACK = 1e-3


class Video(Protocol):
    """A video that one backend has opened; `open_video` turns what it raises into `Unreadable`.

    Attributes:
        times: when each frame is shown, in seconds from the first, ascending, float64 (N,).
    """

    times: NDArray[np.float64]

    def read(self, frames: list[int], channels: int) -> Pixels:
        """These frames, whose numbers ascend without repeats. uint8 (T, H, W, C)."""
        ...

    def close(self) -> None: ...


Source = Path | bytes
BACKENDS: dict[str, Callable[[Source], Video]] = {}
"""What opens a video, by the name that `data.backend` takes."""


def backend(name: str) -> Callable[[Callable[[Source], Video]], Callable[[Source], Video]]:
    """A decorator that makes a function or class, from a path or bytes to a Video, a backend of this name."""

    def add(opener: Callable[[Source], Video]) -> Callable[[Source], Video]:
        BACKENDS[name] = opener
        return opener

    return add


class OpenVideo:
    """A video that is open for reading; use it in a `with`.

    Args:
        source: path of a video or of a folder of frames, or a video's bytes.
        name: of the backend; folders of frames need none and take `frames`.

    Raises:
        Unreadable: with the reason.
    """

    def __init__(self, source: Source | str, name: str = "av") -> None:
        source = Path(source) if isinstance(source, str) else source
        folder = isinstance(source, Path) and source.is_dir()
        opener = find_backend("frames" if folder else name)
        with reasons("cannot be opened"):
            check_file(source)
            self.video = opener(source)

    @property
    def times(self) -> NDArray[np.float64]:
        """When each frame is shown, in seconds from the first, float64 (N,)."""
        return self.video.times

    def __len__(self) -> int:
        return len(self.video.times)

    def read(self, frames: Sequence[int] | NDArray[np.int64], channels: int = 3) -> Pixels:
        """Frames by number, in any order; each is decoded once, however often it is asked for.

        Returns:
            uint8 (T, H, W, C).

        Raises:
            IndexError: for a number that the video does not have.
            Unreadable: with the reason.
        """
        wanted, place = np.unique(np.asarray(frames, dtype=np.int64), return_inverse=True)
        if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= len(self):
            raise IndexError(f"frames {list(frames)} of a video of {len(self)}")
        with reasons("cannot be decoded"):
            clip = self.video.read(wanted.tolist(), channels)
        return clip if len(place) == len(wanted) and (place[:-1] < place[1:]).all() else clip[place]

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.video.close()  # measured, PyAV without it: 159 KiB a clip and an open file each


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
        indices: numbers of the frames, in any order.
        times: instead, when they are shown, in seconds from the first; the frame that is seen then is taken. Without either, all.
        size: of a frame, height and width, or its short side; None leaves it. Pixels.
        channels: 3 is RGB, 1 is grey.
        backend: what decodes: `av`, `decord`, `torchcodec`, or one that was registered.

    Returns:
        uint8 (T, H, W, C).

    Raises:
        Unreadable: whatever is wrong with the input.
        IndexError: for a frame that it does not have.
    """
    with OpenVideo(source, backend) as video:
        if times is not None:
            assert indices is None
            indices = shown_at(video.times, np.asarray(times, dtype=np.float64)).tolist()
        clip = video.read(range(len(video)) if indices is None else indices, channels)
    return clip if size is None else resize(clip, size)


def shown_at(times: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """The numbers of the frames that are seen at these moments, seconds, of any shape; before the first it is the first."""
    return np.maximum(np.searchsorted(times, moments + SLACK, side="right") - 1, 0)


def resize(clip: Pixels, size: int | tuple[int, int]) -> Pixels:
    """Resizes all frames, bilinear and antialiased; a single number is the short side. uint8 (T, H, W, C) -> (T, h, w, C)."""
    height, width = clip.shape[1:3]
    if isinstance(size, int):
        short = min(height, width)
        size = (max(1, round(height * size / short)), max(1, round(width * size / short)))
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2)  # (T, C, H, W)
    small = resizing.resize(pixels, size, "bilinear")  # (T, C, h, w)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())  # (T, h, w, C)


def find_backend(name: str) -> Callable[[Source], Video]:
    """The backend of this name.

    Raises:
        ValueError: where there is none.
    """
    if name not in BACKENDS:
        raise ValueError(f"data.backend {name}: no such backend{suggest(name, BACKENDS)}")
    return BACKENDS[name]
