"""Finds gaps in an H.264 stream by the frame numbers in its slice headers (ITU-T H.264, sections 7.3.2 to 7.4.3).

FFmpeg conceals a missing reference frame with a copy of another one and reports nothing. The copy depends on the packets that the
decoder received, so the pixels of a frame depended on which other frames were read (measured: 55 of 600 clips of files that lacked
three packets). A missing packet to which no frame refers is not detected here, and changes no other frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from mmm.data.errors import Unreadable

if TYPE_CHECKING:
    from av.packet import Packet

SLICES, IDR, SPS, PPS = (1, 2, 5), 5, 7, 8  # types of units
# profiles whose parameter sets describe the chroma format
HIGH = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
SEARCHED = 1 << 16  # bytes of a packet that are searched for its first slice
PREFIX, SETS = 24, 1 << 10  # bytes of a slice, and of a parameter set, that are read


class Numbering(NamedTuple):
    """Facts of a sequence parameter set: bits of a frame number, whether gaps are allowed, whether colour planes are separate."""

    bits: int
    gaps: bool
    planes: bool


class FrameNumbers:
    """Follows the frame numbers of a stream.

    Args:
        extradata: the stream's header, in one of two formats: `avcC` (units after their length), or units after start codes.
    """

    def __init__(self, extradata: bytes | None) -> None:
        data = extradata or b""
        self.length = (data[4] & 3) + 1 if len(data) > 6 and data[0] == 1 else 0  # bytes of a unit's length; 0: start codes
        self.sequences: dict[int, Numbering] = {}
        self.pictures: dict[int, int] = {}  # sequence parameter set of each picture parameter set
        for unit in _header_units(data) if self.length else _start_code_units(data):
            self._keep(unit)

    def checked(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Yields all packets; the check begins at the first keyframe.

        Raises:
            Unreadable: a reference frame is missing; raised before the packet that follows it.
        """
        started, last = False, None
        for packet in packets:
            started = started or packet.is_keyframe
            if started and packet.size:
                try:
                    last = self._next(packet, last)
                except (ValueError, IndexError, KeyError):  # the header cannot be parsed, or its parameter set is unknown
                    last = None
            yield packet

    def _next(self, packet: Packet, last: int | None) -> int | None:
        """Returns the frame number of the last reference frame up to this packet."""
        for unit in self._units(memoryview(packet)):
            kind, reference = unit[0] & 31, unit[0] & 0x60
            if kind == IDR:
                return 0
            if kind in SLICES:
                sequence, number = self._number(unit)
                if last is not None and not sequence.gaps and (number - last) % (1 << sequence.bits) > 1:
                    when = "" if packet.pts is None else f" before {float(packet.pts * packet.time_base):.3f} s"
                    raise Unreadable(f"packets are missing{when}")
                return number if reference else last
            self._keep(unit)
        return last

    def _units(self, data: memoryview) -> Iterator[bytes]:
        """Yields the start of each unit of a packet."""
        if not self.length:
            yield from _start_code_units(bytes(data[:SEARCHED]))
            return
        at = 0
        while at + self.length < len(data):
            size, at = int.from_bytes(data[at : at + self.length]), at + self.length
            yield bytes(data[at : at + min(size, SETS)])
            at += size

    def _keep(self, unit: bytes) -> None:
        """Stores a parameter set."""
        if unit and unit[0] & 31 == SPS:
            identity, sequence = _sequence(unit)
            self.sequences[identity] = sequence
        elif unit and unit[0] & 31 == PPS:
            bits = Bits(unit[1:PREFIX])
            self.pictures[bits.golomb()] = bits.golomb()

    def _number(self, unit: bytes) -> tuple[Numbering, int]:
        """Reads the frame number of a slice."""
        bits = Bits(unit[1:PREFIX])
        bits.golomb()  # first macroblock
        bits.golomb()  # type of slice
        sequence = self.sequences[self.pictures[bits.golomb()]]
        if sequence.planes:
            bits.take(2)
        return sequence, bits.take(sequence.bits)


class Bits:
    """Reads the bits of a unit from its start.

    Args:
        data: the unit without its first byte; emulation prevention bytes are removed.
    """

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")
        self.text, self.at = f"{int.from_bytes(data):0{8 * len(data)}b}", 0

    def take(self, count: int) -> int:
        """Reads a number with this number of bits."""
        self.at += count
        return int(self.text[self.at - count : self.at], 2)

    def golomb(self) -> int:
        """Reads an unsigned Exp-Golomb code, ue(v)."""
        zeros = self.text.index("1", self.at) - self.at
        self.at += zeros
        return self.take(zeros + 1) - 1

    def signed(self) -> int:
        """Reads a signed Exp-Golomb code, se(v)."""
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -code // 2


def _sequence(unit: bytes) -> tuple[int, Numbering]:
    """Reads a sequence parameter set: its number, and its fields about frame numbers."""
    bits, planes = Bits(unit[4:]), False
    identity = bits.golomb()
    if unit[1] in HIGH:
        chroma = bits.golomb()
        planes = chroma == 3 and bool(bits.take(1))
        bits.golomb(), bits.golomb(), bits.take(1)  # bit depths; lossless mode
        if bits.take(1):
            for number in range(12 if chroma == 3 else 8):
                _skip_scaling_list(bits, 16 if number < 6 else 64)
    length = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1), bits.signed(), bits.signed()
        for _ in range(bits.golomb()):
            bits.signed()
    bits.golomb()  # reference frames
    return identity, Numbering(length, bool(bits.take(1)), planes)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    if not bits.take(1):
        return
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _header_units(data: bytes) -> Iterator[bytes]:
    """Yields the parameter sets of an `avcC` header."""
    at = 5
    for mask in (31, 255):  # sequence, then picture parameter sets
        count, at = data[at] & mask, at + 1
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2])
            yield data[at + 2 : at + 2 + size]
            at += 2 + size


def _start_code_units(data: bytes) -> Iterator[bytes]:
    """Yields the start of each unit behind a start code."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        yield data[at + 3 : at + 3 + SETS]
        at = data.find(b"\0\0\1", at + 3)
