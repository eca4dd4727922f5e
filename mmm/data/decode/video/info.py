"""What a video is, from its packets; of its frames only the first is decoded, which says how the picture is turned."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.reader import OpenVideo, Source
from mmm.data.decode.video.validate import check_file, reasons
from mmm.data.errors import Unreadable

if TYPE_CHECKING:
    from mmm.data.decode.video.pyav import AvVideo

CLIPS = 6  # clips that an inspection reads after the decode from the start


@dataclass(frozen=True)
class VideoInfo:
    """Facts about one video.

    Attributes:
        frames: their number.
        duration: in seconds, the last frame's own included.
        fps: frames a second, on average.
        variable: whether the intervals between its frames differ by more than a fifth of their mean.
        height, width: of a frame as it is to be shown, pixels.
        rotation: degrees by which the stored picture is turned to be shown.
        codec, container: FFmpeg's names.
        group: frames from one keyframe to the next, on average; the shorter, the faster a clip is read.
        open_group: whether frames are shown before the keyframe that they are stored after.
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


def probe(source: Source | str) -> VideoInfo:
    """Looks at a video; about a millisecond for 300 frames.

    Raises:
        Unreadable: with the reason.
    """
    from mmm.data.decode.video.pyav import AvVideo

    source = Path(source) if isinstance(source, str) else source
    with reasons("cannot be opened"):
        check_file(source)
        video = AvVideo(source)
    try:
        return describe(video)
    finally:
        video.close()


def inspect(source: Source) -> dict[str, Any]:
    """Decodes a whole video, then reads some clips as training reads them, and returns facts about it.

    Raises:
        Unreadable: if a frame cannot be decoded, or has other pixels after a seek than in a decode from the start.
    """
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


def _inspect_video(source: Source) -> dict[str, Any]:
    from mmm.data.decode.video.pyav import AvVideo

    with reasons("cannot be opened"):
        check_file(source)
        video = AvVideo(source)
    try:
        with reasons("cannot be decoded"):
            total = len(video.times)
            clips = _random_clips(total)
            chosen, sums, decoded = set(clips.ravel().tolist()), dict[int, int](), 0
            for decoded, frame in enumerate(video.frames(), 1):
                if decoded - 1 in chosen:
                    sums[decoded - 1] = checksum(video.convert(frame, 3))
            if decoded != total:
                raise Unreadable(f"only {decoded} of its {total} frames can be decoded")
            for clip in clips:
                numbers = np.unique(clip).tolist()
                for number, pixels in zip(numbers, video.read(numbers, 3), strict=True):
                    if checksum(pixels) != sums[number]:
                        raise Unreadable(f"frame {number} has other pixels after a seek than in a decode from the start")
        return asdict(describe(video))
    finally:
        video.close()


def _random_clips(total: int) -> NDArray[np.int64]:
    """Draws the frames of some clips, (CLIPS, 4), the same for every video of this length."""
    starts = np.random.default_rng(total).integers(0, total, (CLIPS, 1))
    return np.minimum(starts + 4 * np.arange(4), total - 1)


def checksum(pixels: Pixels) -> int:
    """Returns the CRC-32 of an image."""
    return zlib.crc32(np.ascontiguousarray(pixels))


def describe(video: AvVideo) -> VideoInfo:
    """The same, of a video that is open.

    Raises:
        Unreadable: with the reason.
    """
    with reasons("cannot be decoded"):
        first = next(video.frames(), None)
    if first is None:
        raise Unreadable("its first frame cannot be decoded")
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
