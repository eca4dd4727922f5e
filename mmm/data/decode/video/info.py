"""What a video is, from its packets; of its frames only the first is decoded, which says how the picture is turned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmm.data.decode.video.reader import OpenVideo, Source
from mmm.data.decode.video.validate import check_file, reasons
from mmm.data.errors import Unreadable

if TYPE_CHECKING:
    from mmm.data.decode.video.pyav import AvVideo


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
    """Decodes all of a video, and says what it is; of a folder of frames, how many they are.

    Raises:
        Unreadable: at the first thing that is wrong with it.
    """
    return _inspect_frames(source) if isinstance(source, Path) and source.is_dir() else _inspect_video(source)


def _inspect_frames(source: Path) -> dict[str, Any]:
    with OpenVideo(source) as video:
        shapes = {video.read([number]).shape[1:3] for number in range(len(video))}
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
            decoded = sum(1 for _ in video.frames())
        facts = describe(video)
    finally:
        video.close()
    if decoded != facts.frames:
        raise Unreadable(f"only {decoded} of its {facts.frames} frames can be decoded")
    return asdict(facts)


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
