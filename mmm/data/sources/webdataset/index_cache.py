"""Indices of tars, made once for each new or changed tar and kept in the user's cache."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from mmm.data.loading.scan import map_inputs
from mmm.data.sources.webdataset.headers import Read
from mmm.data.sources.webdataset.index import Choice, Index, make_index
from mmm.system.files import digest, user_cache

VERSION = 1  # to be raised where an index says something else of the same file
WORKERS = 16  # processes that wait for a network
SHORT, LONG, FAR = 1 << 14, 1 << 22, 1 << 16  # bytes of a stretch after a jump of more than FAR, and of one after a nearer one

Kept = tuple[Any, dict[str, Any]]
"""An index as it is kept: its columns as an Arrow table, and what else is known."""


class Files(Protocol):
    """Tars somewhere. `mmm.data.sources.webdataset.local` and `mmm.data.sources.webdataset.remote` document the methods."""

    here: bool
    addresses: list[str]
    checks: str  # what tells that a file has changed

    def stamps(self) -> list[tuple[int, str]]: ...

    def read(self, number: int, offset: int, size: int, /) -> bytes: ...

    def prefetch(self, wanted: list[tuple[int, int, int]], /) -> None: ...


def indices(files: Files, choice: Choice) -> list[Kept]:
    """The index of each tar; those that are missing, or of a tar that has changed, are made, behind a progress bar.

    Raises:
        ValueError: a tar cannot be had, or cannot be read in place.
    """
    stamps, cache = files.stamps(), user_cache() / "tars"
    paths = [_file(cache, address, choice) for address in files.addresses]
    found = [_kept(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    if None in found:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{digest(files.addresses)}.lock"):  # another process may be at it, and then this one waits
            _make(files, choice, paths, stamps)
        found = [_kept(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    return [index for index in found if index is not None]


def _make(files: Files, choice: Choice, paths: list[Path], stamps: list[tuple[int, str]]) -> None:
    """Walks over the tars that have no index, in worker processes."""
    numbers = [number for number, path in enumerate(paths) if _kept(path, stamps[number]) is None]

    def work(place: int) -> dict[str, Any]:
        number = numbers[place]
        read = partial(files.read, number)
        index = make_index(read if files.here else Stretches(read), stamps[number][0], choice)
        _keep(paths[number], index, stamps[number])
        return {}

    workers = None if files.here else min(len(numbers), WORKERS)

    def name(place: int) -> str:
        return files.addresses[numbers[place]]

    for finding in map_inputs(name, work, len(numbers), workers=workers, title="indexing tars"):
        if finding.reason is not None:
            raise ValueError(f"data.source {finding.name}: {finding.reason}")


class Stretches:
    """Reads a file here and there, ever further on, by few requests: long ones where the places are near, else short ones.

    Args:
        read: of the file.
    """

    def __init__(self, read: Read) -> None:
        self.read, self.start, self.held = read, 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        end = self.start + len(self.held)
        if not self.start <= offset <= offset + size <= end:
            self.start, self.held = offset, self.read(offset, max(size, SHORT if offset > end + FAR else LONG))
        return self.held[offset - self.start :][:size]


def _file(folder: Path, address: str, choice: Choice) -> Path:
    """Where the index of a tar is kept: one file for each thing that may be looked for in it."""
    return folder / f"{digest([VERSION, address, choice.medium.noun, choice.column, choice.label])}.parquet"


def _keep(path: Path, index: Index, stamp: tuple[int, str]) -> None:
    """Writes an index; whoever reads sees all of it or nothing."""
    import pyarrow
    import pyarrow.parquet

    columns = asdict(index)
    facts = {"stamp": list(stamp), "fingerprint": index.fingerprint, "left": columns.pop("left"), "lost": columns.pop("lost")}
    kinds = {"name": pyarrow.binary(), "offset": pyarrow.int64(), "size": pyarrow.int64(), "label": pyarrow.string()}
    table = pyarrow.table([pyarrow.array(columns[f"{name}s"], kind) for name, kind in kinds.items()], list(kinds))
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    pyarrow.parquet.write_table(table.replace_schema_metadata({"mmm": json.dumps(facts)}), aside)
    aside.replace(path)


def _kept(path: Path, stamp: tuple[int, str]) -> Kept | None:
    """The kept index of the very file that has this stamp, its columns as an Arrow table and the rest; None where there is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        facts = json.loads(table.schema.metadata[b"mmm"])
        return (table, facts) if facts["stamp"] == list(stamp) else None
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
