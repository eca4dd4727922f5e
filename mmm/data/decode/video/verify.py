"""Whether another library reads a file as PyAV does: checked once for each file in each process, before it is believed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mmm.data.decode.video.info import checksum
from mmm.data.decode.video.reader import Source, Video

if TYPE_CHECKING:
    from mmm.data.decode.video.pyav import AvVideo

logger = logging.getLogger(__name__)

CHECKED = 12  # frames that are compared

_exact: dict[object, bool] = {}  # of the libraries and files that this process has met


def open_checked(source: Source, name: str, opener: Callable[[Source, AvVideo], Video]) -> Video:
    """Opens a file with another library where it returns what PyAV returns, bit for bit; else with PyAV, and a line in the log.

    To know it, PyAV decodes the whole file, which shows damage, and some frames are compared, each got by a seek.

    Args:
        source: path or bytes.
        name: of the library.
        opener: opens a file with it, given the same file as PyAV has opened it.
    """
    from mmm.data.decode.video.pyav import AvVideo

    video = AvVideo(source)
    try:
        known = name, _identity(source)
        if known not in _exact:
            _exact[known] = _is_exact(source, video, opener)
            if not _exact[known]:  # one warning a process: a set of HEVC files would fill the log
                level = logging.WARNING if list(_exact.values()).count(False) == 1 else logging.INFO
                logger.log(level, "%s and others like it: %s is not exact, PyAV reads them instead", _title(source), name)
        if not _exact[known]:
            return video
        opened = opener(source, video)
    except BaseException:
        video.close()
        raise
    video.close()
    return opened


def _is_exact(source: Source, video: AvVideo, opener: Callable[[Source, AvVideo], Video]) -> bool:
    """Compares some frames, from the last to the first, so that each is looked for anew."""
    total = len(video.times)
    if video.packets.open_group or not video.packets.ordered:
        return False
    chosen = np.unique(np.linspace(0, total - 1, CHECKED).round().astype(int)).tolist()
    try:
        frames = enumerate(video.frames())
        sums = {number: checksum(video.convert(frame, 3)) for number, frame in frames if number in chosen}
        other = opener(source, video)
        try:
            return len(sums) == len(chosen) and all(
                checksum(other.read([number], 3)) == sums[number] for number in reversed(chosen)
            )
        finally:
            other.close()
    except Exception:  # damage, or what the library cannot read: PyAV says which, where it is met
        return False


def _identity(source: Source) -> object:
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    status = source.stat()
    return str(source), status.st_size, status.st_mtime_ns


def _title(source: Source) -> str:
    return f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source)
