"""Writing H.264 files that are fast to read clips from: short groups of pictures, and a stream that is cheap to decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.reader import OpenVideo, Source
from mmm.data.decode.video.validate import check_file, reasons

if TYPE_CHECKING:
    from av import VideoFrame

MILLISECOND = Fraction(1, 1000)
COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")  # said of a frame, and kept


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How videos are encoded for training."""

    short_side: int | None = 256
    """Pixels, to which larger videos are reduced; smaller ones are not enlarged; none keeps the size. Made even."""

    group: int = 12
    """Frames from one keyframe to the next, at most: the shorter, the faster a clip is read, and the larger the file."""

    crf: int = 23
    """Quality, from 0 (lossless) to 51; 18 cannot be told from the source."""

    preset: str = "medium"
    """libx264's: slower ones make smaller files."""

    fast_decode: bool = True
    """Leave out what is dear to decode (CABAC, deblocking, weighted prediction): 1.7 times the clips a second, 5 % larger"""

    fps: float = 30.0
    """Frames a second of a folder of frames, which does not say."""

    def check(self) -> None:
        """Raises ValueError, naming the field, for values that make no sense."""
        rules = {
            "short_side": (self.short_side is None or self.short_side >= 2, "give at least 2 pixels, or none"),
            "group": (self.group >= 1, "give at least 1"),
            "crf": (0 <= self.crf <= 51, "give a number from 0 to 51"),
            "fps": (self.fps > 0, "give a number above 0"),
        }
        for name, (fine, advice) in rules.items():
            if not fine:
                raise ValueError(f"{name} cannot be {getattr(self, name)}: {advice}")


def encode(frames: Iterable[tuple[VideoFrame, int]], path: Path, config: EncodeConfig, unit: Fraction, rate: Fraction) -> int:
    """Writes frames into an MP4 file, whole or not at all.

    Args:
        frames: with the time at which each is shown, in `unit`s.
        path: to write.
        config: how.
        unit: seconds.
        rate: frames a second, on average.

    Returns:
        how many frames were written.
    """
    import av

    aside = path.with_name(f".{path.name}.tmp")
    count = 0
    try:
        with av.open(str(aside), "w", format="mp4") as container:
            stream: Any = None
            for frame, moment in frames:
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate, options=_options(config))
                    stream.height, stream.width = _size(frame.height, frame.width, config.short_side)
                    stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", config.group
                    stream.codec_context.time_base = unit
                    for name in COLOURS:
                        setattr(stream.codec_context, name, getattr(frame, name))
                small = frame.reformat(
                    stream.width,
                    stream.height,
                    format="yuv420p",
                    interpolation="BICUBIC",
                    src_color_range=frame.color_range,
                    dst_color_range=frame.color_range,
                    threads=1,
                )
                small.pts, small.time_base, small.pict_type = moment, unit, 0  # the encoder chooses the keyframes
                container.mux(stream.encode(small))
                count += 1
            if stream is not None:
                container.mux(stream.encode())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def write_video(path: Path, clip: Iterable[Pixels], *, fps: float, config: EncodeConfig) -> int:
    """Writes pictures, uint8 (H, W, 3) each, as a video. Returns how many."""
    import av

    rate = Fraction(fps).limit_denominator(1001)
    frames = ((av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"), i) for i, picture in enumerate(clip))
    return encode(frames, path, config, 1 / rate, rate)


def reencode(source: Source, path: Path, config: EncodeConfig) -> dict[str, Any]:
    """Encodes a video or a folder of frames anew. The times of its frames are kept, its sound is not, and it is turned upright.

    Returns:
        its frames, and the bytes before and after.

    Raises:
        Unreadable: where a frame of it cannot be decoded.
    """
    if isinstance(source, Path) and source.is_dir():
        with OpenVideo(source) as video:
            pictures = (video.read([number])[0] for number in range(len(video)))
            count = write_video(path, pictures, fps=config.fps, config=config)
        before = sum(file.stat().st_size for file in source.iterdir() if file.is_file())
        return {"frames": count, "bytes_before": before, "bytes_after": path.stat().st_size}
    from mmm.data.decode.video.pyav import AvVideo

    with reasons("cannot be opened"):
        check_file(source)
        opened = AvVideo(source)
    try:
        unit = opened.stream.time_base if opened.packets.ordered and opened.stream.time_base else MILLISECOND
        rate = Fraction(opened.stream.average_rate or 30).limit_denominator(1001)
        moments = [round(float(time) / float(unit)) for time in opened.times]
        with reasons("cannot be decoded"):
            count = encode(zip(_upright(opened.frames()), moments, strict=True), path, config, unit, rate)
    finally:
        opened.close()
    before = len(source) if isinstance(source, bytes) else source.stat().st_size
    return {"frames": count, "bytes_before": before, "bytes_after": path.stat().st_size}


def _upright(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    import av

    for frame in frames:
        if frame.rotation:
            turned = np.rot90(frame.to_ndarray(format="rgb24").astype(np.uint8), frame.rotation // 90 % 4)
            yield av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
        else:
            yield frame


def _options(config: EncodeConfig) -> dict[str, str]:
    tuning = {"tune": "fastdecode"} if config.fast_decode else {}
    return {"crf": str(config.crf), "preset": config.preset, "threads": "1"} | tuning


def _size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Even, with the short side at most what is wanted."""
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)
