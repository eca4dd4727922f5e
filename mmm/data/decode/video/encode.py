"""Writes H.264 files from which clips are read fast: short groups of pictures, and a stream that is cheap to decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from mmm.core.checks import AboveZero, CheckedConfig, Limit, Positive
from mmm.data.decode.image import Pixels
from mmm.data.decode.video.info import open_file
from mmm.data.decode.video.reader import OpenVideo, Source
from mmm.data.decode.video.validate import reasons
from mmm.system.files import replacing

if TYPE_CHECKING:
    from av import VideoFrame

    from mmm.data.decode.video.pyav import AvVideo

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"]
MILLISECOND = Fraction(1, 1000)
COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")  # attributes of a frame that are kept


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(CheckedConfig):
    """Options of the encoding of videos for training."""

    short_side: Annotated[int, Limit("of at least 2", lambda value: value >= 2)] | None = 256
    """Short side of encoded videos in pixels, rounded to an even number. Smaller videos keep their size. None: all videos keep
    their size."""

    group: Positive = 12
    """Largest number of frames from one keyframe to the next. Fewer frames make reading a clip faster and the file larger."""

    crf: Annotated[int, Limit("from 0 to 51", lambda value: 0 <= value <= 51)] = 23
    """Constant rate factor of libx264, from 0 (lossless) to 51. At 18, a video looks like its source."""

    preset: Preset = "medium"
    """Preset of libx264. Slower presets make smaller files."""

    fast_decode: bool = True
    """Leave out CABAC, deblocking and weighted prediction, which are slow to decode: 1.7 times as many clips per second from 5
    % larger files."""

    fps: AboveZero = 30.0
    """Frames per second of a folder of frames."""


def encode(frames: Iterable[tuple[VideoFrame, int]], path: Path, config: EncodeConfig, unit: Fraction, rate: Fraction) -> int:
    """Writes frames into an MP4 file atomically.

    Args:
        frames: frames with their times, in multiples of `unit`.
        path: file to write.
        config: options of the encoder.
        unit: unit of the times, in seconds.
        rate: frames per second, on average.

    Returns:
        The number of frames.

    Raises:
        Unreadable: a frame cannot be resized. Errors of writing and encoding are raised unchanged.
    """
    import av

    count = 0
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = None
        for frame, moment in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options=_options(config))
                stream.height, stream.width = _size(frame.height, frame.width, config.short_side)
                stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", config.group
                stream.codec_context.time_base = unit
                for name in COLOURS:
                    setattr(stream.codec_context, name, getattr(frame, name))
            with reasons("a frame cannot be resized"):
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
    return count


def write_video(path: Path, clip: Iterable[Pixels], *, fps: float, config: EncodeConfig) -> int:
    """Writes images, uint8 (H, W, 3), as the frames of a video. Returns their number."""
    import av

    rate = Fraction(fps).limit_denominator(1001)
    frames = ((av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), i) for i, image in enumerate(clip))
    return encode(frames, path, config, 1 / rate, rate)


def reencode(source: Source, path: Path, config: EncodeConfig) -> dict[str, Any]:
    """Encodes a video or a folder of frames. The times of its frames are kept, sound is left out, and frames are rotated upright.

    Returns:
        The number of frames, and the bytes before and after.

    Raises:
        Unreadable: a frame cannot be decoded.
        ValueError: the video cannot be encoded or written; the message gives the reason.
    """
    if isinstance(source, Path) and source.is_dir():
        with OpenVideo(source) as video, _errors_of(path):
            images = (video.read([number])[0] for number in range(len(video)))
            count = write_video(path, images, fps=config.fps, config=config)
        before = sum(file.stat().st_size for file in source.iterdir() if file.is_file())
        return {"frames": count, "bytes_before": before, "bytes_after": path.stat().st_size}
    with closing(open_file(source)) as opened, _errors_of(path):
        unit = opened.stream.time_base if opened.packets.ordered and opened.stream.time_base else MILLISECOND
        rate = Fraction(opened.stream.average_rate or 30).limit_denominator(1001)
        count = encode(_decoded(opened, unit), path, config, unit, rate)
    before = len(source) if isinstance(source, bytes) else source.stat().st_size
    return {"frames": count, "bytes_before": before, "bytes_after": path.stat().st_size}


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Converts errors of encoding and writing a file to ValueError. Errors of decoding are Unreadable already."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def _decoded(opened: AvVideo, unit: Fraction) -> Iterator[tuple[VideoFrame, int]]:
    """Yields the upright frames of a video with their times in multiples of `unit`. Only errors of decoding become Unreadable."""
    count = np.arange(len(opened.times))
    rounded = np.round(opened.times / float(unit)).astype(np.int64)
    moments = (np.maximum.accumulate(rounded - count) + count).tolist()  # the encoder refuses a time that occurs twice
    with reasons("cannot be decoded"):
        yield from zip(_upright(opened.frames()), moments, strict=True)


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
    """Returns an even height and width with the short side at most `short_side`."""
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)
