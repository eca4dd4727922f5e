"""Videos that are damaged, unusual, or no videos, like the images of `malformed`, with at most eight frames each."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from malformed import HEIGHT, WIDTH, Case, Kind, Pixels, encoded, jpeg, overwritten, photograph
from numpy.typing import NDArray
from PIL import Image

VIDEOS: dict[str, Kind] = {}
FRAMES = 8


def video(function: Callable[[int], tuple[bytes, str | Pixels]]) -> Callable[[int], tuple[bytes, str | Pixels]]:
    """Registers a function from a seed to bytes, and to a reason or to frames, as a kind."""

    def kind(seed: int) -> Case:
        data, what = function(seed)
        reason, pixels = (what, None) if isinstance(what, str) else (None, what)
        return Case(lambda path: path.write_bytes(data), reason, pixels, f"{function.__name__}_{seed}.mp4")

    VIDEOS[function.__name__] = kind
    return function


def special_file(name: str, write: Callable[[Path], object], reason: str) -> None:
    """Registers a kind that is not a regular file."""
    VIDEOS[name] = lambda seed: Case(write, reason, None, f"{name}_{seed}.mp4")


def make_frames(seed: int, count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Returns frames of a window that moves over a photograph, (T, H, W, 3)."""
    whole = photograph(seed, height + count, width + 2 * count)
    return np.stack([whole[i : i + height, 2 * i : 2 * i + width] for i in range(count)])


def encode_frames(
    frames: Pixels,
    suffix: str = ".mp4",
    codec: str = "libx264",
    times: NDArray[np.int64] | None = None,
    *,
    pixels: str = "yuv444p",
    codec_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """Encodes frames almost without loss; `times` are their presentation times in milliseconds."""
    unit = Fraction(1, 30) if times is None else Fraction(1, 1000)
    chosen = {"crf": "4", "preset": "ultrafast"} if codec == "libx264" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video{suffix}"
        with av.open(str(path), "w", options=options) as file:
            stream: Any = file.add_stream(codec, rate=30, options=chosen | (codec_options or {}))
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            stream.codec_context.time_base = unit
            for i, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = (i if times is None else int(times[i])), unit
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path.read_bytes()


def patched(data: bytes, box: bytes, offset: int, layout: str, *values: int) -> bytes:
    """Changes the content of each box with a name; the offset counts from the end of the name."""
    found, at = bytearray(data), data.find(box)
    assert at > 0
    while at > 0:
        struct.pack_into(layout, found, at + 4 + offset, *values)
        at = data.find(box, at + 4)
    return bytes(found)


def stream_of(data: bytes) -> tuple[int, int]:
    """Returns the byte range of the frames in a file, without the first one, so that damage in it is read."""
    at = data.index(b"mdat")
    (size,) = struct.unpack_from(">I", data, at - 4)
    return at + 4 + size // 4, at - 4 + size


# not a video


@video
def empty(seed: int) -> tuple[bytes, str]:
    return b"", "the file is empty"


@video
def text(seed: int) -> tuple[bytes, str]:
    return f"video number {seed}\n".encode() * 200, "cannot be opened"


@video
def web_page(seed: int) -> tuple[bytes, str]:
    return b"<!DOCTYPE html><html><title>Sign in to confirm</title></html>", "cannot be opened"


@video
def playlist(seed: int) -> tuple[bytes, str]:
    """A playlist; FFmpeg would play the file that it names."""
    return b"ffconcat version 1.0\nfile empty_0.mp4\n", "not a video of a known format"


@video
def png_called_mp4(seed: int) -> tuple[bytes, str]:
    return encoded(photograph(seed), "PNG"), "not a video of a known format"


@video
def sound_only(seed: int) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.mp4"
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream("aac", rate=8000)
            waves = np.sin(np.arange(8000, dtype=np.float32)[None] * (seed + 1) / 100)
            frame = av.AudioFrame.from_ndarray(waves, format="fltp", layout="mono")
            frame.sample_rate = 8000
            file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path.read_bytes(), "no video stream"


@video
def no_frames(seed: int) -> tuple[bytes, str]:
    """A file with empty tables."""
    data = patched(encode_frames(make_frames(seed)), b"stsz", 4, ">II", 0, 0)
    return patched(patched(data, b"stts", 4, ">I", 0), b"stsc", 4, ">I", 0), "has no frames|cannot be opened|cannot be decoded"


# truncated and damaged


@video
def half_without_index(seed: int) -> tuple[bytes, str]:
    data = encode_frames(make_frames(seed))
    return data[: len(data) // 2], "cannot be opened"


@video
def half_with_index(seed: int) -> tuple[bytes, str]:
    data = encode_frames(make_frames(seed), movflags="faststart")
    return data[: len(data) // 2], "has no frames|cannot be|of its 8 frames|damaged"


@video
def zeros(seed: int) -> tuple[bytes, str]:
    return bytes(9000 + seed), "cannot be opened"


@video
def overwritten_stream(seed: int) -> tuple[bytes, str]:
    data = encode_frames(make_frames(seed))
    return overwritten(data, *stream_of(data), seed), "cannot be|of its 8 frames|damaged"


@video
def stream_with_a_hole(seed: int) -> tuple[bytes, str]:
    data = encode_frames(make_frames(seed))
    start, end = stream_of(data)
    return data[:start] + bytes(end - start) + data[end:], "cannot be|of its 8 frames|damaged"


@video
def unknown_codec(seed: int) -> tuple[bytes, str]:
    return encode_frames(make_frames(seed)).replace(b"avc1", b"zzzz").replace(
        b"avcC", b"zzzC"
    ), "no installed decoder supports its codec"


# too large


@video
def bomb_frames(seed: int) -> tuple[bytes, str]:
    """A file with a table of 400 bytes that announces six million frames."""
    data = patched(encode_frames(make_frames(seed)), b"stsz", 4, ">II", 1, 6_000_000 + seed)
    return patched(patched(data, b"stsc", 4, ">IIII", 1, 1, 6_000_000, 1), b"stts", 8, ">I", 6_000_000), "header declares 6,000"


@video
def bomb_fragment(seed: int) -> tuple[bytes, str]:
    data = encode_frames(make_frames(seed), movflags="frag_keyframe+empty_moov")
    return patched(data, b"trun", 0, ">II", 1, 5_000_000 + seed), "header declares 5,000"


@video
def bomb_size(seed: int) -> tuple[bytes, str]:
    data = encode_frames(make_frames(seed))
    return patched(data, b"avc1", 24, ">HH", 20_000, 20_000), "20000 x 20000 pixels, more than the 50,000,000"


@video
def bomb_size_mkv(seed: int) -> tuple[bytes, str]:
    """A Matroska file whose PixelWidth and PixelHeight are changed to 65,535, in the same number of bytes."""
    data = encode_frames(make_frames(seed, 2, 300, 300), ".mkv", "ffv1")
    for side in (b"\xb0\x82", b"\xba\x82"):
        data = data.replace(side + b"\x01\x2c", side + b"\xff\xff")
    return data, "more pixels than the 50,000,000|pixels, more than the 50,000,000"


# decoded, but often incorrectly


@video
def duration_of_hours(seed: int) -> tuple[bytes, Pixels]:
    """A file with all frames, whose header gives a duration of four hours."""
    frames = make_frames(seed)
    data = patched(encode_frames(frames), b"mvhd", 16, ">I", 4 * 3600 * 1000)
    return patched(data, b"mdhd", 16, ">I", 4 * 3600 * 15360), frames


@video
def one_frame(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed, 1)
    return encode_frames(frames), frames


def _turned(name: str, matrix: tuple[int, int, int, int], turn: int) -> None:
    def function(seed: int) -> tuple[bytes, Pixels]:
        frames, (a, b, c, d) = make_frames(seed), (value << 16 for value in matrix)
        return patched(encode_frames(frames), b"tkhd", 40, ">iiiii", a, b, 0, c, d), np.rot90(frames, turn, (1, 2))

    function.__name__ = name
    video(function)


_turned("turned_90", (0, 1, -1, 0), -1)
_turned("turned_180", (-1, 0, 0, -1), 2)
_turned("turned_270", (0, -1, 1, 0), 1)


@video
def variable_rate(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed)
    return encode_frames(frames, times=np.random.default_rng(seed).integers(10, 90, FRAMES).cumsum()), frames


@video
def odd_sides(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed, height=45, width=71)
    return encode_frames(frames), frames


@video
def sixteen_pixels(seed: int) -> tuple[bytes, Pixels]:
    """A file that decord cannot read."""
    frames = make_frames(seed, height=16, width=16)
    return encode_frames(frames), frames


@video
def mkv_called_mp4(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed)
    return encode_frames(frames, ".mkv"), frames


@video
def avi_called_mp4(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed)
    return encode_frames(frames, ".avi", "ffv1", pixels="yuv444p"), frames


@video
def fragmented(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed)
    return encode_frames(frames, movflags="frag_keyframe+empty_moov"), frames


@video
def ten_bits(seed: int) -> tuple[bytes, Pixels]:
    frames = make_frames(seed)
    return encode_frames(frames, pixels="yuv444p10le"), frames


@video
def jpeg_called_mp4(seed: int) -> tuple[bytes, str]:
    return jpeg(photograph(seed)), "not a video of a known format"


@video
def gif_called_mp4(seed: int) -> tuple[bytes, Pixels]:
    tables = make_frames(seed, 4) // 64 * 64
    pictures = [Image.fromarray(frame).quantize(256) for frame in tables]
    data = encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=40, disposal=2)
    return data, np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


# not regular files

special_file("pipe", os.mkfifo, "is not a regular file")
special_file("link_to_nothing", lambda path: path.symlink_to("nowhere.mp4"), "there is no such file")
special_file("link_to_itself", lambda path: path.symlink_to(path.name), "leads to itself")
special_file("link_to_a_device", lambda path: path.symlink_to("/dev/zero"), "is not a regular file")
