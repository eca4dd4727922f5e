"""A video's packets through PyAV: what says, before anything is decoded, which frames there are and when each is shown."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av

from mmm.data.decode.limits import MAX_PIXELS
from mmm.data.decode.video.mp4_header import check_boxes
from mmm.data.decode.video.reader import Source
from mmm.data.decode.video.validate import check_size
from mmm.data.errors import Unreadable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video import VideoStream

# what holds a video; the rest of FFmpeg's list are devices and playlists, which would open other files (measured: a text file
# called .mp4 that names another file is played)
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,rm,ivf,gif,h264,hevc,m4v,mjpeg,dv,nut,live_flv"
# max_pixels: to open a file is to decode some of it, and a frame may be larger than the file's header says
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
SKIPPING = ("h264", "hevc")  # where frames that nothing refers to can be left out; AV1 lost wanted ones


@dataclass(frozen=True)
class Packets:
    """What the packets of a stream say of its frames.

    Attributes:
        stamps: when each frame is shown, in units of the stream, ascending.
        keys: the stamps of the keyframes, ascending.
        open_group: whether a frame is shown before the keyframe that it is stored after, as in open groups of pictures.
        ordered: whether a frame can be found by its stamp; else frames must be counted from the first.
    """

    stamps: list[int]
    keys: list[int]
    open_group: bool
    ordered: bool


def open_container(source: Source) -> InputContainer:
    """Opens a file for reading; playlists, other protocols, and headers that promise too much are refused."""
    check_boxes(source)
    try:
        if isinstance(source, bytes):
            return av.open(io.BytesIO(source), "r", options=OPTIONS)
        return av.open("file:" + os.path.abspath(source), "r", options=OPTIONS)
    except av.error.ArgumentError as error:  # so it refuses what is not in its list
        raise Unreadable("is no video of a known format") from error


def open_stream(container: InputContainer) -> VideoStream:
    """The first video stream, to be decoded in this thread.

    Raises:
        Unreadable: where there is none, or its frames are too large.
    """
    pictures = [stream for stream in container.streams.video if not int(stream.disposition) & av.stream.Disposition.attached_pic]
    if not pictures:
        raise Unreadable("has no video stream")
    stream = pictures[0]
    if stream.codec_context is None:
        raise Unreadable("nothing here decodes its codec")
    height, width = stream.codec_context.height, stream.codec_context.width
    if not height * width:  # so FFmpeg leaves them where a decoder refused them
        raise Unreadable(f"its frames have no size, or more pixels than the {MAX_PIXELS:,} that are decoded")
    check_size(height, width)
    stream.codec_context.options = {"max_pixels": OPTIONS["max_pixels"]}
    stream.thread_type = "NONE"  # measured faster on one core, and a decoder's own threads can wait for each other for ever
    return stream


def list_packets(container: InputContainer, stream: VideoStream) -> Packets:
    """Reads all packets, decoding none."""
    stamps: list[int] = []
    keys: list[int] = []
    complete, open_group = True, False
    for packet in decodable(container.demux(stream)):
        if packet.size == 0 or packet.is_discard:  # the end of the stream; what an edit list cuts off
            continue
        stamp, complete = (len(stamps), False) if packet.pts is None else (packet.pts, complete)
        open_group |= bool(keys) and stamp < keys[-1]
        if packet.is_keyframe:
            keys.append(stamp)
        stamps.append(stamp)
    # AVI stores no times of presentation: where frames are shown in another order than stored, those given here are wrong
    guessed = container.format.name == "avi" and (stream.codec_context.has_b_frames or stream.codec_context.name in SKIPPING)
    ordered = complete and not guessed and len(set(stamps)) == len(stamps) and bool(keys)
    return Packets(sorted(stamps), sorted(keys), open_group, ordered)


def decodable(packets: Iterable[Packet]) -> Iterator[Packet]:
    """The packets from the first keyframe on, without those shown before it: they refer to what is not there."""
    first: int | None = None
    started = False
    for packet in packets:
        if not started and packet.is_keyframe:
            started, first = True, packet.pts
        if started and (first is None or packet.pts is None or packet.pts >= first):
            yield packet
