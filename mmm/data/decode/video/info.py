"""Facts about a video, and a thorough check of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.reader import FrameRange, OpenVideo, Source
from mmm.data.decode.video.validate import check_file, reasons
from mmm.data.errors import Unreadable

if TYPE_CHECKING:
    from av import VideoFrame

    from mmm.data.decode.video.pyav import AvVideo

CLIPS = 6  # clips that `inspect` reads after the decode from the start


@dataclass(frozen=True)
class VideoInfo:
    """Facts about one video.

    Attributes:
        frames: number of frames.
        duration: seconds, including the time for which the last frame is shown.
        fps: frames per second, on average.
        variable: whether the intervals between frames differ by more than a fifth of their mean.
        height, width: size of an upright frame in pixels.
        rotation: degrees by which a stored frame is rotated to be upright.
        codec, container: FFmpeg's names.
        group: frames from one keyframe to the next, on average; clips are read faster from short groups.
        open_group: whether a keyframe is followed by frames that are shown before it.
    """

    frames: int
    duration: float
    fps: float
    variable: bool
    height: int
    width: int
    rotation: int
    codec: str
    container: str
    group: float
    open_group: bool


def open_file(source: Source) -> AvVideo:
    """Opens a video file with PyAV. The errors of its methods are not converted.

    Raises:
        Unreadable: it cannot be opened; the message gives the reason.
    """
    from mmm.data.decode.video.pyav import AvVideo

    with reasons("cannot be opened"):
        check_file(source)
        return AvVideo(source)


@contextmanager
def open_av(source: Source) -> Iterator[AvVideo]:
    """Opens a video file with PyAV. Every error in the `with` block becomes Unreadable.

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    video = open_file(source)
    try:
        with reasons("cannot be decoded"):
            yield video
    finally:
        video.close()


def probe(source: Source | str) -> VideoInfo:
    """Returns facts about a video from its packets and its first frame; takes about a millisecond for 300 frames.

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    with open_av(Path(source) if isinstance(source, str) else source) as video:
        first = next(video.frames(), None)
        if first is None:
            raise Unreadable("its first frame cannot be decoded")
        return _info(video, first)


def inspect(source: Source | FrameRange) -> dict[str, Any]:
    """Decodes a whole video or range, then reads some clips as training reads them, and returns facts about it.

    Raises:
        Unreadable: a frame cannot be decoded, or has other pixels after a seek than in a decode from the start.
    """
    if isinstance(source, FrameRange):
        return _inspect_range(source)
    return _inspect_frames(source) if isinstance(source, Path) and source.is_dir() else _inspect_video(source)


def _inspect_frames(source: Path) -> dict[str, Any]:
    with OpenVideo(source) as video:
        shapes, failed = set(), dict[int, str]()
        for number in range(len(video)):
            try:
                shapes.add(video.read([number]).shape[1:3])
            except Unreadable as error:
                failed[number] = str(error)
        if failed:
            first = min(failed)
            raise Unreadable(f"{len(failed)} of its {len(video)} frames cannot be read; frame {first}: {failed[first]}"[:200])
        if len(shapes) > 1:
            raise Unreadable(f"its frames differ in size: {sorted(shapes)}"[:200])
        ((height, width),) = shapes
        return {"frames": len(video), "height": height, "width": width, "codec": "frames"}


def _inspect_range(source: FrameRange) -> dict[str, Any]:
    with OpenVideo(source) as video:
        sums, size = dict[int, int](), (0, 0)
        for numbers, block in video.blocks(range(len(video))):
            size = block.shape[1:3]
            sums |= {number: checksum(pixels) for number, pixels in zip(numbers, block, strict=True)}
        for clip in _random_clips(len(video)):
            _compare(clip, video.read, sums)
        return {"frames": len(video), "height": size[0], "width": size[1]}


def _compare(clip: NDArray[np.int64], read: Callable[[list[int]], Pixels], sums: dict[int, int]) -> None:
    """Raises Unreadable if frames of a clip have other pixels than those whose checksums are given."""
    numbers = np.unique(clip).tolist()
    for number, pixels in zip(numbers, read(numbers), strict=True):
        if checksum(pixels) != sums[number]:
            raise Unreadable(f"frame {number} has other pixels after a seek than in a decode from the start")


def _inspect_video(source: Source) -> dict[str, Any]:
    with open_av(source) as video:
        total = len(video.times)
        clips = _random_clips(total)
        chosen, sums, first, decoded = set(clips.ravel().tolist()), dict[int, int](), None, 0
        for frame in video.frames():
            first = first or frame
            if decoded in chosen:
                sums[decoded] = checksum(video.convert(frame, 3))
            decoded += 1
        if decoded != total or first is None:
            raise Unreadable(f"only {decoded} of its {total} frames can be decoded")
        for clip in clips:
            _compare(clip, partial(video.read, channels=3), sums)
        return asdict(_info(video, first))


def _random_clips(total: int) -> NDArray[np.int64]:
    """Draws the frames of some clips, (CLIPS, 4), the same for every video of this length."""
    starts = np.random.default_rng(total).integers(0, total, (CLIPS, 1))
    return np.minimum(starts + 4 * np.arange(4), total - 1)


def checksum(pixels: Pixels) -> int:
    """Returns the CRC-32 of an image."""
    return zlib.crc32(np.ascontiguousarray(pixels))


def _info(video: AvVideo, first: VideoFrame) -> VideoInfo:
    """Returns facts about an open video and its first frame."""
    times, packets = video.times, video.packets
    steps = np.diff(times)
    step = float(steps.mean()) if len(steps) else 1 / float(video.stream.average_rate or 1)
    turned = first.rotation % 180 != 0
    return VideoInfo(
        frames=len(times),
        duration=round(float(times[-1]) + step, 6),
        fps=round(1 / step, 6) if step > 0 else 0.0,
        variable=bool(len(steps) and np.abs(steps - step).max() > step / 5),
        height=first.width if turned else first.height,
        width=first.height if turned else first.width,
        rotation=first.rotation,
        codec=video.stream.codec_context.name,
        container=video.container.format.name,
        group=round(len(times) / max(1, len(packets.keys)), 2),
        open_group=packets.open_group,
    )
