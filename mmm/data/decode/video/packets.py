"""Lists the packets of a video with PyAV: the frames, their times, and the keyframes, where decoding can start.

Listing packets reads the whole file: about 1 ms for 300 frames, but 370 ms and 159 MB for an hour. The frames of a clip alone need
16 ms and 0.6 MB. The lists of long videos are therefore cached, in the memory of each process and in the user's cache.
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from mmm.data.decode.files import MAX_PIXELS
from mmm.data.decode.video.mp4_header import check_boxes
from mmm.data.decode.video.reader import Source
from mmm.data.decode.video.validate import check_size
from mmm.data.errors import Unreadable
from mmm.system.files import digest, replacing, user_cache

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video import VideoStream

# containers of videos; FFmpeg's other formats are devices and playlists, which would open other files (measured: a text file called
# .mp4 that names another file is played)
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,rm,ivf,gif,h264,hevc,m4v,mjpeg,dv,nut,live_flv"
# max_pixels: opening a file decodes some of it, and a frame may be larger than the file's header says
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
VERSION = 1, av.library_versions["libavformat"]  # increase it when the list of an unchanged file changes
LONG = 1000  # number of frames from which a list is cached: making it (7 ms) takes longer than reading it (1 ms)
CACHED = 64  # lists that a process holds in memory, 0.9 MB for an hour of video
SKIPPING = ("h264", "hevc")  # codecs whose frames can be skipped if no frame refers to them; with AV1, requested frames were lost

logger = logging.getLogger(__name__)


@dataclass
class Packets:
    """The frames of a stream, by its packets.

    Attributes:
        stamps: the presentation time of each frame in units of the stream, ascending, int64 (N,).
        keys: the stamps of the keyframes, ascending, int64 (K,), including those before the first frame that is shown.
        open_group: whether a keyframe is followed by frames that are shown before it, as in open groups of pictures.
        ordered: whether a frame can be found by its stamp; else frames must be counted from the first.
    """

    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]
    open_group: bool
    ordered: bool


def open_container(source: Source) -> InputContainer:
    """Opens a file for reading. Raises Unreadable for playlists, other protocols, and headers that declare too many or too large
    frames."""
    check_boxes(source)
    try:
        if isinstance(source, bytes):
            return av.open(io.BytesIO(source), "r", options=OPTIONS)
        return av.open("file:" + os.path.abspath(source), "r", options=OPTIONS)
    except av.error.ArgumentError as error:  # the format is not in CONTAINERS
        raise Unreadable("is not a video of a known format") from error


def open_stream(container: InputContainer) -> VideoStream:
    """Returns the first video stream, set to decode in this thread.

    Raises:
        Unreadable: there is none, or its frames are too large.
    """
    videos = [stream for stream in container.streams.video if not int(stream.disposition) & av.stream.Disposition.attached_pic]
    if not videos:
        raise Unreadable("has no video stream")
    stream = videos[0]
    if stream.codec_context is None:
        raise Unreadable("no installed decoder supports its codec")
    height, width = stream.codec_context.height, stream.codec_context.width
    if not height * width:  # a decoder refused them
        raise Unreadable(f"its frames have no size, or more pixels than the {MAX_PIXELS:,} that are decoded")
    check_size(height, width)
    stream.codec_context.options = {"max_pixels": OPTIONS["max_pixels"]}
    stream.thread_type = "NONE"  # faster on one core, and the threads of a decoder can deadlock
    return stream


_memory: dict[tuple[object, ...], Packets] = {}


def find_packets(source: Source, container: InputContainer, stream: VideoStream) -> Packets:
    """Returns the packets from memory or from the user's cache, if the file has not changed since; else lists them."""
    if isinstance(source, bytes):
        return list_packets(container, stream)
    status = source.stat()
    identity = VERSION, os.path.abspath(source), status.st_size, status.st_mtime_ns, stream.index
    packets = _memory.get(identity) or _read(identity)
    if packets is None:
        packets = list_packets(container, stream)
        if len(packets.stamps) < LONG:
            return packets
        _write(identity, packets)
    while len(_memory) >= CACHED:
        _memory.pop(next(iter(_memory)))
    _memory[identity] = packets
    return packets


def list_packets(container: InputContainer, stream: VideoStream) -> Packets:
    """Reads all packets and decodes none."""
    stamps: list[int] = []
    keys: list[int] = []
    complete, open_group = True, False
    for packet in decodable(container.demux(stream)):
        if packet.size == 0:  # the end of the stream
            continue
        stamp, complete = (len(stamps), False) if packet.pts is None else (packet.pts, complete)
        open_group |= bool(keys) and stamp < keys[-1]
        if packet.is_keyframe:
            keys.append(stamp)
        if not packet.is_discard:  # frames that an edit list cuts off are decoded, but not shown
            stamps.append(stamp)
    # AVI stores no presentation times: if frames are shown in another order than stored, the times here are wrong
    guessed = container.format.name == "avi" and (stream.codec_context.has_b_frames or stream.codec_context.name in SKIPPING)
    ordered = complete and not guessed and len(set(stamps)) == len(stamps) and bool(keys)
    return Packets(np.array(sorted(stamps), np.int64), np.array(sorted(keys), np.int64), open_group, ordered)


def _path(identity: tuple[object, ...]) -> Path:
    return user_cache() / "videos" / f"{digest(identity)}.npz"


def _read(identity: tuple[object, ...]) -> Packets | None:
    """Returns the packets from the cache; None if they are absent or the file is damaged."""
    try:
        with np.load(_path(identity), allow_pickle=False) as file:
            open_group, ordered = file["flags"].tolist()
            return Packets(file["steps"].cumsum(), file["keys"], open_group, ordered)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _write(identity: tuple[object, ...], packets: Packets) -> None:
    """Writes packets to the cache atomically. Without a cache, each process lists them once."""
    path = _path(identity)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            steps = np.diff(packets.stamps, prepend=0)  # equal steps in most videos, which compress to a few bytes
            np.savez_compressed(file, steps=steps, keys=packets.keys, flags=[packets.open_group, packets.ordered])
    except OSError as error:
        logger.debug("%s: %s", path, error)


def decodable(packets: Iterable[Packet]) -> Iterator[Packet]:
    """Yields the packets from the first keyframe on, without those shown before it, which refer to missing frames."""
    first: int | None = None
    started = False
    for packet in packets:
        if not started and packet.is_keyframe:
            started, first = True, packet.pts
        if started and (first is None or packet.pts is None or packet.pts >= first):
            yield packet
