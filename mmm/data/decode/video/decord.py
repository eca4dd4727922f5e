"""Reads videos with decord if it returns the same frames as PyAV; PyAV reads the other files.

decord 0.6 returns other frames than requested, without an error, on open groups of pictures (measured: 7 clips of 12 of HEVC files;
H.264 too), on H.264 in AVI, on MPEG-TS, MPEG-PS and ASF, and on damaged streams (12 frames of 15); other colours for 10-bit and
interlaced video; and uninitialised memory for the last frame of some AVIs.
"""

from __future__ import annotations

import io

import decord
import numpy as np

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.pyav import AvVideo
from mmm.data.decode.video.reader import Source, Video
from mmm.data.decode.video.verify import open_verified
from mmm.data.errors import Unreadable


class DecordVideo:
    """One open file that decord reads correctly. See `mmm.data.decode.video.reader.Video`."""

    def __init__(self, source: Source, exact: AvVideo) -> None:
        self.times = exact.times
        self.reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)
        if len(self.reader) != len(self.times):
            raise Unreadable(f"decord counts {len(self.reader)} of its {len(self.times)} frames")

    def read(self, frames: list[int], channels: int) -> Pixels:
        if channels != 3:
            raise Unreadable(f"data.channels is {channels}; decord reads 3 only, and data.backend av also reads 1")
        batch = self.reader.get_batch(frames)
        clip: Pixels = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # another type if a bridge is set
        return clip

    def close(self) -> None:
        del self.reader


def open_decord(source: Source) -> Video:
    """Opens a file with decord, or with PyAV if decord is not exact."""
    decord.logging.set_level(decord.logging.QUIET)  # otherwise its FFmpeg writes a line for each frame of some files
    return open_verified(source, "decord", DecordVideo)
