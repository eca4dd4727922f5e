"""Videos through decord, where it returns what PyAV returns; PyAV reads the others.

decord 0.6 returns other frames than those asked for, without an error, on open groups of pictures (measured: 7 clips of 12 of
HEVC files; H.264 too), on H.264 in AVI, on MPEG-TS, MPEG-PS and ASF, and on damaged streams (12 frames of 15); other colours for
10-bit and interlaced video; and memory that was never written for the last frame of some AVIs. So each process decodes a file
whole with PyAV when it first meets it, which shows damage, and compares a few of decord's frames, each got by a seek: one bit
that differs, and PyAV reads the file, with a line in the log. A file costs this once a process.
"""

from __future__ import annotations

import hashlib
import io
import logging
import zlib

import decord
import numpy as np

from mmm.data.bad_inputs import Unreadable
from mmm.data.decode import Pixels
from mmm.data.video.av_reader import AvVideo
from mmm.data.video.reader import Source, Video

logger = logging.getLogger(__name__)

CHECKED = 12  # frames that are compared

_trusted: dict[object, bool] = {}  # of the files that this process has met


class DecordVideo:
    """One open file that decord reads rightly. See `mmm.data.video.reader.Video`."""

    def __init__(self, source: Source, exact: AvVideo) -> None:
        self.times = exact.times
        self.reader = _open(source)

    def read(self, frames: list[int], channels: int) -> Pixels:
        if channels != 3:
            raise Unreadable(f"data.channels is {channels}; decord reads 3, data.backend av also 1")
        return _read(self.reader, frames)

    def close(self) -> None:
        del self.reader


def open_decord(source: Source) -> Video:
    """Opens a file with decord, or with PyAV where decord is not exact."""
    decord.logging.set_level(decord.logging.QUIET)  # else its FFmpeg writes a line for every frame of some files
    video = AvVideo(source)
    try:
        name = _identity(source)
        if name not in _trusted:
            _trusted[name] = _same(source, video)
            if not _trusted[name]:  # one warning a process: a set of HEVC files would fill the log
                level = logging.WARNING if list(_trusted.values()).count(False) == 1 else logging.INFO
                logger.log(level, "%s and others like it: decord is not exact, PyAV reads them instead", _title(source))
        if not _trusted[name]:
            return video
        opened = DecordVideo(source, video)
    except BaseException:
        video.close()
        raise
    video.close()
    return opened


def _open(source: Source) -> decord.VideoReader:
    return decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)


def _read(reader: decord.VideoReader, frames: list[int]) -> Pixels:
    """uint8 (T, H, W, C)."""
    batch = reader.get_batch(frames)
    clip: Pixels = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # another type where a bridge is set
    return clip


def _identity(source: Source) -> object:
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    status = source.stat()
    return str(source), status.st_size, status.st_mtime_ns


def _title(source: Source) -> str:
    return f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _same(source: Source, video: AvVideo) -> bool:
    """Decodes all of a file with PyAV, and compares some frames with decord's, from the last to the first, to make it seek."""
    total = len(video.times)
    if video.packets.open_group or not video.packets.ordered:
        return False
    chosen = np.unique(np.linspace(0, total - 1, CHECKED).round().astype(int)).tolist()
    try:
        frames = enumerate(video.frames())
        sums = {number: zlib.crc32(np.ascontiguousarray(video.convert(frame, 3))) for number, frame in frames if number in chosen}
        reader = _open(source)
        if len(sums) != len(chosen) or len(reader) != total:
            return False
        return all(zlib.crc32(_read(reader, [number])) == sums[number] for number in reversed(chosen))
    except Exception:  # damage, or what decord cannot read: PyAV says which, where it is met
        return False
