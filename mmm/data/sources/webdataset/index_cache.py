"""Indices of tars, made once for each new or changed tar and kept in the user's cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from mmm.data.loading.scan import map_inputs
from mmm.data.sources.webdataset.headers import Read
from mmm.data.sources.webdataset.index import Index, Selection, make_index
from mmm.system.files import digest, replacing, user_cache

VERSION = 2  # increase it when the index of an unchanged file changes
WORKERS = 16  # processes that make indices over a network
SHORT, LONG, FAR = 1 << 14, 1 << 22, 1 << 16  # bytes of a read after a jump of more than FAR, and after a shorter jump

CachedIndex = tuple[Any, dict[str, Any]]
"""An index as it is stored: its columns as an Arrow table, and its other fields."""


class TarFiles(Protocol):
    """The bytes of tars. `local.LocalFiles` and `mmm.data.sources.addresses.RemoteFiles` document the methods.

    Attributes:
        is_local: whether they are on a disk of this machine.
        addresses: their paths or addresses.
        checks: how a changed file is detected, for messages.
    """

    is_local: bool
    addresses: list[str]
    checks: str

    def stamps(self) -> list[tuple[int, str]]: ...

    def read(self, number: int, offset: int, size: int, /) -> bytes: ...

    def prefetch(self, ranges: list[tuple[int, int, int]], /) -> None: ...


def load_indices(files: TarFiles, selection: Selection) -> list[CachedIndex]:
    """Returns the index of each tar. Makes missing indices, and those of changed tars, and shows a progress bar.

    Raises:
        ValueError: a tar does not exist or cannot be read in place.
    """
    stamps, cache = files.stamps(), user_cache() / "tars"
    paths = [_path(cache, address, selection) for address in files.addresses]
    found = [_read(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    if None in found:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{digest(files.addresses)}.lock"):  # another process may be making them
            _make(files, selection, paths, stamps)
        found = [_read(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    return [index for index in found if index is not None]


def _make(files: TarFiles, selection: Selection, paths: list[Path], stamps: list[tuple[int, str]]) -> None:
    """Makes the missing indices in worker processes."""
    numbers = [number for number, path in enumerate(paths) if _read(path, stamps[number]) is None]

    def work(place: int) -> dict[str, Any]:
        number = numbers[place]
        read = partial(files.read, number)
        index = make_index(read if files.is_local else ReadAhead(read), stamps[number][0], selection)
        _write(paths[number], index, stamps[number])
        return {}

    def name(place: int) -> str:
        return files.addresses[numbers[place]]

    workers = None if files.is_local else min(len(numbers), WORKERS)
    # no timeout: a tar may take hours, and the requests of a remote one have timeouts
    for finding in map_inputs(name, work, len(numbers), workers=workers, title="indexing tars", timeout=None):
        if finding.reason is not None:
            raise ValueError(f"data.source {finding.name}: {finding.reason}")


class ReadAhead:
    """Reads a file at increasing positions with few requests: long requests if the positions are near, else short ones.

    Args:
        read: reads bytes of the file.
    """

    def __init__(self, read: Read) -> None:
        self.read, self.start, self.held = read, 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        end = self.start + len(self.held)
        if not self.start <= offset <= offset + size <= end:
            self.start, self.held = offset, self.read(offset, max(size, SHORT if offset > end + FAR else LONG))
        return self.held[offset - self.start :][:size]


def _path(folder: Path, address: str, selection: Selection) -> Path:
    """Returns the file of an index; different selections from a tar have different files."""
    return folder / f"{digest([VERSION, address, selection.medium.noun, selection.column, selection.label])}.parquet"


def _write(path: Path, index: Index, stamp: tuple[int, str]) -> None:
    """Writes an index atomically."""
    import pyarrow
    import pyarrow.parquet

    columns = asdict(index)
    facts = {"stamp": list(stamp), "fingerprint": index.fingerprint}
    facts |= {name: columns.pop(name) for name in ("skipped", "damage")}
    kinds = {"name": pyarrow.binary(), "offset": pyarrow.int64(), "size": pyarrow.int64(), "label": pyarrow.string()}
    table = pyarrow.table([pyarrow.array(columns[f"{name}s"], kind) for name, kind in kinds.items()], list(kinds))
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table.replace_schema_metadata({"mmm": json.dumps(facts)}), temporary)


def _read(path: Path, stamp: tuple[int, str]) -> CachedIndex | None:
    """Returns the stored index of the file with this stamp, or None."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        facts = json.loads(table.schema.metadata[b"mmm"])
        return (table, facts) if facts["stamp"] == list(stamp) else None
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
