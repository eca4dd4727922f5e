"""The index of a tar: its samples, grouped as WebDataset groups members.

Members with the same path up to the first dot of the file's name are one sample. The text after that dot is a column, as in a
table: `0001.jpg`, `0001.cls`, `0001.json`. Only columns of images or videos are used, and those of `cls`, `txt` and `json` that
contain a label.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from mmm.data.errors import Unreadable
from mmm.data.media import Medium
from mmm.data.sources.webdataset.headers import Member, Read, Walk, show

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
KEY = re.compile(rb"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
TEXT_LABELS = ("cls", "txt")  # columns whose text is a label; other labels are fields of `json`
METADATA = frozenset({"cls", "txt", "json"})  # columns that are not counted as left out
MAX_LABEL = 1 << 8  # bytes of a text label
MAX_JSON = 1 << 22  # bytes of a json member
MAX_SAMPLE = (1 << 31) - (1 << 12)  # bytes of a sample; the operating system reads no more at once


class Selection(NamedTuple):
    """The columns to look for in a tar."""

    medium: Medium
    column: str | None
    label: str | None


@dataclass
class Index:
    """The samples of one tar.

    Attributes:
        names: the members' names, N of them.
        offsets, sizes: the positions of their bytes.
        labels: the text of each sample's label, or None if it has none.
        skipped: number of members that are left out, by reason.
        damage: why the tar could not be read to its end, or None.
    """

    names: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    damage: str | None = None

    @property
    def fingerprint(self) -> str:
        """A hash that changes with the samples, but not with their positions."""
        state = hashlib.sha256()
        for row in zip(self.names, self.sizes, self.labels, strict=True):
            state.update(b"%b\0%d\0%b\n" % (row[0], row[1], str(row[2]).encode(errors="replace")))
        return state.hexdigest()[:16]


def make_index(read: Read, total: int, selection: Selection) -> Index:
    """Reads the headers of one tar.

    Raises:
        Unreadable: the file is not a tar or is compressed, or several members of a sample could be its image or video.
    """
    start = read(0, 8)
    for magic, tool in COMPRESSED.items():
        if start.startswith(magic):
            raise Unreadable(f"is compressed, and cannot be read in place; unpack it once with {tool}, which leaves a .tar")
    walk = Walk(read, total)
    samples: dict[bytes, _Sample] = {}
    skipped = Counter[str]()
    for member in walk:
        key, column, reason = _parse_name(member.name)
        if reason is None:
            reason = samples.setdefault(key, _Sample()).add(column, member, selection)
        if reason is not None:
            skipped[reason] += 1
    if walk.damage and not walk.found:
        raise Unreadable("is not a tar")
    index = Index(damage=walk.damage)
    noun = selection.medium.noun
    for key, sample in samples.items():
        if len(sample.members) > 1:
            listed = ", ".join(sorted(sample.members))
            raise Unreadable(f"holds several {noun} of the sample {show(key)} ({listed}); name one with {selection.medium.flag}")
        for member in sample.members.values():
            index.names.append(member.name)
            index.offsets.append(member.offset)
            index.sizes.append(member.size)
            index.labels.append(_read_label(read, sample.label, selection, skipped))
        if not sample.members:
            skipped[f"samples without one of the {noun}"] += 1
    index.skipped = dict(skipped + walk.skipped)
    return index


class _Sample:
    """The members of one sample: the images or videos by column, and the member that holds the label."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.label: Member | None = None

    def add(self, column: str, member: Member, selection: Selection) -> str | None:
        """Adds a member, or returns the reason why it is left out."""
        suffix = column.rpartition(".")[2].lower()
        if f".{suffix}" in selection.medium.suffixes:
            if selection.column is not None and column != selection.column:
                return None
            if column in self.members:
                return "members with the name of an earlier one"
            if member.size > MAX_SAMPLE:
                return "members of more than 2 GiB"
            self.members[column] = member
        elif column == (selection.label if selection.label in TEXT_LABELS else "cls" if selection.label is None else "json"):
            self.label = self.label or member
        elif suffix not in METADATA:
            return f".{suffix}"
        return None


def _parse_name(name: bytes) -> tuple[bytes, str, str | None]:
    """Returns the key and the column of a member, or the reason why it is left out."""
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return b"", "", "names that lead out of the tar"
    parts = KEY.fullmatch(name)
    if parts is None:
        return b"", "", "hidden files, and names without an ending"
    return parts[1], parts[2].decode(errors="replace"), None


def _read_label(read: Read, member: Member | None, selection: Selection, skipped: Counter[str]) -> str | None:
    """Reads the label of a sample as text; a label that cannot be read is counted in `skipped`."""
    if member is None:
        return None
    try:
        if selection.label is None or selection.label in TEXT_LABELS:
            if member.size > MAX_LABEL:
                raise ValueError
            return read(member.offset, member.size).decode().strip()
        if member.size > MAX_JSON:
            raise ValueError
        value = json.loads(read(member.offset, member.size))[selection.label]
        if not isinstance(value, (int, str)):
            raise ValueError
        return str(int(value) if isinstance(value, bool) else value)[:MAX_LABEL]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        skipped["labels that cannot be read"] += 1
        return None
