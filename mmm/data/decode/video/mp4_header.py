"""What an MP4 or MOV file says of itself, looked through before FFmpeg believes it.

FFmpeg makes a table of all frames that the header promises: 400 bytes of header that promise 60 million cost it 4 GB and 20 s
(measured), and frames of 8192 x 8192 0.7 s and 160 MB before a line of ours can ask for their size. About 0.1 ms a file.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mmm.data.decode.video.reader import Source
from mmm.data.decode.video.validate import check_size
from mmm.data.errors import Unreadable

STARTS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx")  # kinds of a file's first box
PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
MOST = 100_000  # boxes that are looked at; each takes at least 8 bytes of the file
PICTURE = 36  # bytes of a sample entry up to a picture's height and width


class Box(NamedTuple):
    """One box: its kind, and where its content starts and ends in the file."""

    kind: bytes
    start: int
    end: int


def check_boxes(source: Source) -> None:
    """Looks a file through, if it is one of these.

    Raises:
        Unreadable: where it promises more frames than it has bytes, or frames too large to decode.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb", buffering=1 << 14) as file:
        if file.read(8)[4:] not in STARTS:
            return
        total = file.seek(0, os.SEEK_END)
        promised = picture = 0
        for box in _boxes(file, total):
            if box.kind == b"hdlr":
                picture = _read(file, box, 8, 4) == b"vide"
            elif box.kind == b"stsd" and picture:
                _check_picture(file, box)
            elif box.kind in (b"stsz", b"stz2", b"trun"):
                promised += _frames(file, box)
                if promised > total:
                    raise Unreadable(f"its header promises {promised:,} frames in a file of {total:,} bytes")


def _boxes(file: BinaryIO, total: int) -> Iterator[Box]:
    """All boxes, a parent before its children, in the file's order."""
    open_until = [total]
    at = 0
    for _ in range(MOST):
        while open_until and at + 8 > open_until[-1]:
            at = open_until.pop()
        if not open_until:
            return
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        start = at + 8
        if size == 1 and len(head) == 16:
            size, start = struct.unpack(">Q", head[8:])[0], at + 16
        end = open_until[-1] if size == 0 else min(at + size, open_until[-1])
        if end < start:
            return  # FFmpeg will say what is wrong with it
        yield Box(kind, start, end)
        if kind in PARENTS:
            open_until.append(end)
            at = start
        else:
            at = end


def _read(file: BinaryIO, box: Box, offset: int, count: int) -> bytes:
    """Some bytes of a box's content, fewer where it ends before."""
    file.seek(box.start + offset)
    return file.read(max(0, min(count, box.end - box.start - offset)))


def _frames(file: BinaryIO, box: Box) -> int:
    """How many frames a table promises, or bytes of them, where it says how many one has."""
    head = _read(file, box, 4, 8)
    if len(head) < 8:
        return 0
    first, second = struct.unpack(">II", head)
    if box.kind == b"trun":
        return int(first)
    return int(second) * max(1, first if box.kind == b"stsz" else 1)


def _check_picture(file: BinaryIO, box: Box) -> None:
    """Of the first kind of picture in a track."""
    entry = _read(file, box, 8, PICTURE)
    if len(entry) == PICTURE:
        width, height = struct.unpack(">HH", entry[-4:])
        check_size(height, width)
