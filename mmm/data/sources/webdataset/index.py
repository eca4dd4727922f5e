"""What a tar holds: its samples, as WebDataset groups members into them.

Members whose path is the same up to the first dot of the file's name are one sample; what follows that dot is a column, as in a
table: `0001.jpg`, `0001.cls`, `0001.json`. Only columns of images or videos, and of those `cls`, `txt` and `json` that a label is
read from, are looked at.
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
WORDS = ("cls", "txt")  # columns that are a label as they stand; others are fields of `json`
BESIDE = frozenset({"cls", "txt", "json"})  # that are no loss where nothing asks for them
LABEL = 1 << 8  # bytes of a label that stands alone
DOCUMENT = 1 << 22  # bytes of a json member
LARGEST = (1 << 31) - (1 << 12)  # bytes of a sample; the system reads no more at once


class Choice(NamedTuple):
    """What is looked for in a tar."""

    medium: Medium
    column: str | None
    label: str | None


@dataclass
class Index:
    """The samples of one tar.

    Attributes:
        names: of the members, N of them.
        offsets, sizes: of their bytes.
        labels: as text, or None where a sample has none.
        left: how many of what were left out.
        lost: why the tar could not be walked to its end, or None.
    """

    names: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    lost: str | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with the samples, not with where they lie."""
        state = hashlib.sha256()
        for row in zip(self.names, self.sizes, self.labels, strict=True):
            state.update(b"%b\0%d\0%b\n" % (row[0], row[1], str(row[2]).encode(errors="replace")))
        return state.hexdigest()[:16]


def make_index(read: Read, total: int, choice: Choice) -> Index:
    """Walks over one tar.

    Raises:
        Unreadable: it is none, is compressed, or leaves open what its samples are.
    """
    start = read(0, 8)
    for magic, tool in COMPRESSED.items():
        if start.startswith(magic):
            raise Unreadable(f"is compressed, and cannot be read in place; unpack it once with {tool}, which leaves a .tar")
    walk = Walk(read, total)
    samples: dict[bytes, _Sample] = {}
    left = Counter[str]()
    for member in walk:
        key, column, reason = _place(member.name)
        if reason is None:
            reason = samples.setdefault(key, _Sample()).take(column, member, choice)
        if reason is not None:
            left[reason] += 1
    if walk.lost and not walk.found:
        raise Unreadable("is no tar")
    index = Index(lost=walk.lost)
    for key, sample in samples.items():
        if len(sample.found) > 1:
            listed = ", ".join(sorted(sample.found))
            raise Unreadable(
                f"holds several {choice.medium.noun} of the sample {show(key)} ({listed}); name one with {choice.medium.flag}"
            )
        for member in sample.found.values():
            index.names.append(member.name)
            index.offsets.append(member.offset)
            index.sizes.append(member.size)
            index.labels.append(_label(read, sample.label, choice, left))
        if not sample.found:
            left[f"samples without one of the {choice.medium.noun}"] += 1
    index.left = dict(left + walk.left)
    return index


class _Sample:
    """The members of a sample that matter: by column what it may be, and what holds its label."""

    def __init__(self) -> None:
        self.found: dict[str, Member] = {}
        self.label: Member | None = None

    def take(self, column: str, member: Member, choice: Choice) -> str | None:
        """Takes a member, or says why not."""
        suffix = column.rpartition(".")[2].lower()
        if f".{suffix}" in choice.medium.suffixes:
            if choice.column is not None and column != choice.column:
                return None
            if column in self.found:
                return "members whose name came before"
            if member.size > LARGEST:
                return "members of more than 2 GiB"
            self.found[column] = member
        elif column == (choice.label if choice.label in WORDS else "cls" if choice.label is None else "json"):
            self.label = self.label or member
        elif suffix not in BESIDE:
            return f".{suffix}"
        return None


def _place(name: bytes) -> tuple[bytes, str, str | None]:
    """The key and the column of a member, and else why it is none."""
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return b"", "", "names that lead out of the tar"
    parts = KEY.fullmatch(name)
    if parts is None:
        return b"", "", "hidden files, and names without an ending"
    return parts[1], parts[2].decode(errors="replace"), None


def _label(read: Read, member: Member | None, choice: Choice, left: Counter[str]) -> str | None:
    """A sample's label as text; what cannot be read is counted."""
    if member is None:
        return None
    try:
        if choice.label is None or choice.label in WORDS:
            if member.size > LABEL:
                raise ValueError
            return read(member.offset, member.size).decode().strip()
        if member.size > DOCUMENT:
            raise ValueError
        value = json.loads(read(member.offset, member.size))[choice.label]
        if not isinstance(value, (int, str)):
            raise ValueError
        return str(int(value) if isinstance(value, bool) else value)[:LABEL]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        left["labels that cannot be read"] += 1
        return None
