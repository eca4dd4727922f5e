"""Reads videos with PyAV: frames are selected exactly, by their presentation time.

The packets are listed first, without decoding, to get the keyframes and the time of every frame (`packets.py`). Frames are then
decoded from the last keyframe at or before the first requested frame. They are selected by their time, never by counting from a
constant rate. Measured (340 x 256, groups of 12 frames, 16 frames of stride 4, one core): 1.35 to 1.6 times as many clips per
second as decord, and correct frames where decord's are wrong (open groups of pictures).

A packet marked as a keyframe may be a recovery point of H.264 with intra refresh, after which frames are incomplete for a
while. Decoding therefore starts at a keyframe only if the first decoded frame is a keyframe, else at an earlier one.

Damage is reported. FFmpeg conceals the broken parts of a frame and marks it; such a frame and all later ones are refused.
Measured: FFmpeg noticed 160 of 240 H.264 and MPEG-4 files with one to three flipped bits, and all 160 are refused. A flipped
bit that leaves a valid stream with other pixels (almost all in HEVC) could only be found by a checksum of the file.

If packets are missing, a frame is refused, or its pixels do not depend on the other frames that are read. H.264: gaps are found by
the numbers of the frames (`h264.py`). HEVC: FFmpeg returns no frames whose references are missing. For both, the returned frames
therefore equal those of the complete file. VP8, VP9, AV1, MPEG-2, MPEG-4, FLV and WMV: the stream does not show that a packet is
missing. The frames after it, up to the next keyframe, differ from those of the complete file, but are always the same (measured: 40
files each that lacked three packets, 12 of VP8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from av import codecs_available
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.h264 import FrameNumbers
from mmm.data.decode.video.packets import SKIPPING, decodable, find_packets, open_container, open_stream
from mmm.data.decode.video.reader import Source
from mmm.data.errors import Unreadable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video import VideoFrame, VideoStream

FORMATS = {1: "gray", 3: "rgb24"}
BACK = (0, 1, 3, 7)  # keyframes by which a seek is moved back until it lands early enough; in MPEG-TS seeks land late


class AvVideo:
    """One open file. See `mmm.data.decode.video.reader.Video`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.container = open_container(source)
        try:
            self.stream = open_stream(self.container)
            self.packets = find_packets(source, self.container, self.stream)
            if not len(self.packets.stamps):
                raise Unreadable("has no frames")
        except BaseException:
            self.container.close()
            raise
        unit = float(self.stream.time_base or Fraction(1, 30))
        self.times = (self.packets.stamps - self.packets.stamps[0]) * unit
        self._pixels = VideoReformatter()  # one for all frames: to_ndarray of PyAV takes 0.31 ms per frame, this 0.06

    def close(self) -> None:
        self.container.close()

    def read(self, frames: list[int], channels: int) -> Pixels:
        clip: Pixels | None = None
        place = {number: i for i, number in enumerate(frames)}
        for number, pixels in self.each(frames, channels):
            if clip is None:
                clip = np.empty((len(frames), *pixels.shape), np.uint8)
            clip[place[number]] = pixels
        assert clip is not None
        return clip

    def each(self, frames: list[int], channels: int) -> Iterator[tuple[int, Pixels]]:
        """Yields each frame as it is decoded: its number, and uint8 (H, W, C), valid until the next."""
        if channels not in FORMATS:
            raise Unreadable(f"data.channels is {channels}; videos have 1 (grey) or 3")
        missing, shape = set(frames), None
        for number, frame in self._by_stamp(frames) if self.packets.ordered else self._by_count(frames):
            pixels = self.convert(frame, channels)  # (H, W, C)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise Unreadable(f"the size of its frames changes, from {shape[:2]} to {pixels.shape[:2]}")
            missing.remove(number)
            yield number, pixels
        if missing:
            raise Unreadable(f"frame {min(missing)} of {len(self.times)} cannot be decoded")

    def frames(self) -> Iterator[VideoFrame]:
        """Decodes all frames from the first to the last.

        Raises:
            Unreadable: a frame is damaged. Errors of PyAV are raised unchanged.
        """
        with open_container(self.source) as container:
            stream = open_stream(container)
            yield from _decode(stream, _packets(container, stream), None)

    def _by_stamp(self, frames: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decodes frames in runs of adjacent groups of pictures, each run from the keyframe before it."""
        stamps = self.packets.stamps[frames]
        groups = np.searchsorted(self.packets.keys, stamps, side="right")
        for run in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(groups) > 1) + 1):
            yield from self._run({int(stamps[place]): frames[place] for place in run})

    def _run(self, run: dict[int, int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decodes the frames of one run, {stamp: number}. Frames that are not found after a keyframe are decoded from the
        start."""
        requested, stamps = dict(run), set(run)
        decoded = self._from_key(min(run), stamps)
        if decoded is not None:
            yield from _pick(decoded, requested)
        if requested:
            with open_container(self.source) as container:
                stream = open_stream(container)
                yield from _pick(_decode(stream, _packets(container, stream), stamps), requested)

    def _from_key(self, first: int, requested: set[int]) -> Iterator[VideoFrame] | None:
        """Decodes from a keyframe at or before a stamp; returns None if no seek lands there.

        Keyframes from which decoding does not start with a keyframe are dropped from the list.
        """
        while True:
            keys = self.packets.keys
            group = int(np.searchsorted(keys, first, side="right")) - 1
            packets = self._seek(group)
            landed = next(packets, None)
            if landed is None or landed.pts is None:
                return None
            frames = _decode(self.stream, chain([landed], packets), requested)
            place = int(np.searchsorted(keys, landed.pts))
            if place == 0:  # the start of the file: there is nothing earlier
                return frames
            head = next(frames, None)
            if head is not None and head.key_frame:
                return chain([head], frames)
            self.packets.keys = np.delete(keys, slice(place, group + 1))

    def _seek(self, group: int) -> Iterator[Packet]:
        """Returns the packets from a keyframe or an earlier one on; none if no seek lands there."""
        keys = self.packets.keys
        for back in BACK[: group + 1]:
            self.container.seek(int(keys[max(0, group - back)]), stream=self.stream, backward=True)
            packets = _packets(self.container, self.stream)
            landed = next(packets, None)
            if landed is not None and landed.pts is not None and landed.pts <= keys[group]:
                return chain([landed], packets)
        return iter(())

    def _by_count(self, frames: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decodes frames of a file without usable stamps, by counting from the first."""
        requested = set(frames)
        for number, frame in enumerate(self.frames()):
            if number in requested:
                yield number, frame
            if number == frames[-1]:
                return

    def convert(self, frame: VideoFrame, channels: int) -> Pixels:
        """Converts a frame to uint8 (H, W, C), upright: a view of PyAV's memory, which the next call overwrites."""
        plane = self._pixels.reformat(frame, format=FORMATS[channels], threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # (H, bytes), padded on the right
        pixels: Pixels = rows[: frame.height, : frame.width * channels].reshape(frame.height, frame.width, channels)
        return np.rot90(pixels, frame.rotation // 90 % 4) if frame.rotation else pixels


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Returns the packets to decode from the container's position on."""
    packets: Iterable[Packet] = container.demux(stream)
    if stream.codec_context.name == "h264":
        packets = FrameNumbers(stream.codec_context.extradata).checked(packets)
    return decodable(packets)


def _decode(stream: VideoStream, packets: Iterable[Packet], requested: set[int] | None) -> Iterator[VideoFrame]:
    """Decodes packets. Skips frames that are not requested and to which no frame refers (12 to 36 % faster)."""
    context = stream.codec_context
    for packet in packets:
        if context.name == "vp8" and packet.is_keyframe:
            context = _libvpx(context, packet)
        if requested is not None and context.name in SKIPPING:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in requested else "NONREF"
        for frame in context.decode(packet if packet.size else None):
            if frame.is_corrupt:  # leading frames of an open group of pictures are not among them: `decodable` left them out
                when = "" if frame.pts is None else f" at {frame.time:.3f} s"
                raise Unreadable(f"a frame{when} is damaged")
            yield frame


def _libvpx(context: VideoCodecContext, packet: Packet) -> VideoCodecContext:
    """Returns libvpx's decoder for the packets from a keyframe on, if this FFmpeg has it.

    FFmpeg's own decoder of VP8 reads memory that it has not written if packets are missing: 3 to 10 % of the frames of such files
    depended on which other frames were read. Both decode complete files to the same bits. A rotated stream keeps FFmpeg's decoder,
    because only that one reports the rotation.
    """
    if "libvpx" not in codecs_available or any(frame.rotation for frame in context.decode(packet)):
        return context
    new = VideoCodecContext.create("libvpx", "r")
    new.options, new.thread_type = context.options, "NONE"
    return new


def _pick(frames: Iterable[VideoFrame], requested: dict[int, int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yields the requested frames, {stamp: number}, and removes them from `requested`, until it is empty."""
    for frame in frames:
        if frame.pts in requested:
            yield requested.pop(frame.pts), frame
        if not requested:
            return
