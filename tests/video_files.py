"""Small video files of many kinds, made when needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
FRAMES, HEIGHT, WIDTH = 40, 64, 96


def pictures(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Iterable[Pixels]:
    """Yields frames of a moving texture, all different."""
    texture = np.random.default_rng(seed).integers(0, 256, (height + 40, width + 80, 3), dtype=np.uint8)
    texture = texture[::4, ::4].repeat(4, 0).repeat(4, 1)
    for i in range(count):
        top, left = i % 40, 2 * i % 80
        yield np.ascontiguousarray(texture[top : top + height, left : left + width])


def write(
    path: Path,
    codec: str = "libx264",
    *,
    group: int = 12,
    options: dict[str, str] | None = None,
    count: int = FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    container: str | None = None,
) -> Path:
    """Encodes `pictures`; `times` are their presentation times in milliseconds."""
    unit = Fraction(1, 30) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size, stream.codec_context.time_base = group, unit
        for i, picture in enumerate(pictures(count, *size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (i if times is None else times[i]), unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def remux(
    source: Path,
    path: Path,
    drop: Callable[[int], bool] = lambda number: False,
    container: str | None = None,
    stamps: Sequence[int] | None = None,
) -> Path:
    """Copies packets into another file, except for those whose number `drop` selects. `stamps` are their new times, in units of
    the source."""
    with av.open(str(source)) as old, av.open(str(path), "w", format=container) as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(packet for packet in old.demux(video=0) if packet.dts is not None):
            if not drop(number):
                packet.stream = stream
                if stamps is not None:
                    packet.pts = packet.dts = stamps[number]
                new.mux(packet)
    return path


def sound(path: Path) -> Path:
    """Writes a file with sound and no video."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def flipped(path: Path, source: Path, seed: int, bits: int = 3) -> Path:
    """Writes a copy with some bits of the stream flipped."""
    data, generator = bytearray(source.read_bytes()), np.random.default_rng(seed)
    start = data.find(b"mdat") + 1000
    for place in generator.integers(start, len(data) - 2000, bits):
        data[place] ^= 1 << int(generator.integers(8))
    path.write_bytes(data)
    return path


def all_frames(path: Path) -> list[Pixels]:
    """Decodes a file from the first frame to the last, upright: the reference."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4) for frame in file.decode(stream)]


def rotated(source: Path, path: Path) -> Path:
    """Writes a copy that is shown rotated by 90 degrees."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        stream.set_display_rotation(90)
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path


def make_videos(folder: Path) -> dict[str, Path]:
    """Writes readable files; returns them by kind. Kinds that this PyAV cannot encode are left out."""
    intervals = np.random.default_rng(1).integers(10, 90, FRAMES)
    closed = write(folder / "closed.mp4", options={"crf": "23", "preset": "veryfast"})
    x264 = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"
    x265 = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:log-level=none:bframes=4"
    opened = write(folder / "open.mp4", options={"x264-params": x264})
    videos = {
        "closed": closed,
        "open": opened,
        "long_group": write(folder / "long.mp4", group=250),
        "short_group": write(folder / "short.mp4", group=3),
        "variable_rate": write(folder / "variable.mp4", times=np.cumsum(intervals).tolist()),
        "late_start": write(folder / "late.mkv", times=(5000 + 33 * np.arange(FRAMES)).tolist()),
        "one_frame": write(folder / "one.mp4", count=1),
        "odd_size": write(folder / "odd.mp4", size=(45, 71), pixels="yuv444p", count=20),
        "ten_bit": write(folder / "ten.mp4", pixels="yuv420p10le", count=20),
        "interlaced": write(folder / "interlaced.mp4", options={"x264-params": "tff=1"}),
        "h264_avi": write(folder / "h264.avi"),
        "mpeg4_avi": write(folder / "mpeg4.avi", "mpeg4"),
        "mpeg_ts": write(folder / "closed.ts", container="mpegts"),
        "mpeg_ps": write(folder / "two.mpg", "mpeg2video", options={"bf": "2"}, container="mpeg"),
        "raw": remux(write(folder / "for_raw.mp4"), folder / "raw.h264", container="h264"),
        "no_first_key": remux(closed, folder / "no_first_key.mp4", lambda number: number == 0),
        "cut_in_open_group": remux(opened, folder / "cut.mp4", lambda number: number < 12),
    }
    others = {
        "hevc_open": ("hevc.mp4", "libx265", {"x265-params": x265, "preset": "ultrafast"}),
        "vp8": ("vp8.webm", "libvpx", {"deadline": "realtime", "cpu-used": "8"}),
        "vp9": ("vp9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        "av1": ("av1.mp4", "libsvtav1", {"preset": "13"}),
        "wmv": ("wmv.wmv", "wmv2", {}),
    }
    with ordinary_priority():
        for kind, (name, codec, options) in others.items():
            if codec in av.codecs_available:
                videos[kind] = write(folder / name, codec, options=options)
    if "vp8" in videos:
        videos["vp8_rotated"] = rotated(videos["vp8"], folder / "rotated.mkv")
    return videos


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Restores the scheduling policy: SVT-AV1, run as root, gives its caller real-time priority permanently."""
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    try:
        yield
    finally:
        if before is not None:
            os.sched_setscheduler(0, before, os.sched_param(0))


def trimmed(source: Path, path: Path, start: int) -> Path:
    """Copies a file from frame `start` on without encoding, like `ffmpeg -ss` and phones: the packets from the keyframe before it
    remain, and an edit list hides them."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        moment = sorted(packet.pts for packet in packets)[start]
        first = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= moment)
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - moment, packet.dts - moment, stream
            new.mux(packet)
    return path
