"""Verifies that another library reads a file as PyAV does, once for each file in each process, before it is used."""

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

COMPARED = 12  # number of frames that are compared

_exact: dict[object, bool] = {}  # results of this process, by library and file


def open_verified(source: Source, name: str, opener: Callable[[Source, AvVideo], Video]) -> Video:
    """Opens a file with another library if its frames equal PyAV's bit for bit. Otherwise opens it with PyAV and logs this.

    PyAV decodes the whole file once, which reveals damage. Some frames are then compared, each after a seek.

    Args:
        source: path or bytes.
        name: name of the library.
        opener: opens a file with the library; its second argument is the file as opened by PyAV.
    """
    from mmm.data.decode.video.pyav import AvVideo

    video = AvVideo(source)
    try:
        key = name, _identity(source)
        if key not in _exact:
            _exact[key] = _is_exact(source, video, opener)
            if not _exact[key]:  # one warning per process: a set of HEVC files would fill the log
                level = logging.WARNING if list(_exact.values()).count(False) == 1 else logging.INFO
                logger.log(level, "%s and similar files: %s does not read them exactly, so PyAV reads them", _title(source), name)
        if not _exact[key]:
            return video
        opened = opener(source, video)
    except BaseException:
        video.close()
        raise
    video.close()
    return opened


def _is_exact(source: Source, video: AvVideo, opener: Callable[[Source, AvVideo], Video]) -> bool:
    """Compares some frames, from the last to the first, so that each needs a seek."""
    total = len(video.times)
    if video.packets.open_group or not video.packets.ordered:
        return False
    chosen = np.unique(np.linspace(0, total - 1, COMPARED).round().astype(int)).tolist()
    try:
        sums = {number: checksum(video.convert(frame, 3)) for number, frame in enumerate(video.frames()) if number in chosen}
        other = opener(source, video)
        try:
            same = (checksum(other.read([number], 3)) == sums[number] for number in reversed(chosen))
            return len(sums) == len(chosen) and all(same)
        finally:
            other.close()
    except Exception:  # the file is damaged, or the library cannot read it: PyAV reports damage when it reads the file
        return False


def _identity(source: Source) -> object:
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    status = source.stat()
    return str(source), status.st_size, status.st_mtime_ns


def _title(source: Source) -> str:
    return f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source)
