"""Files at addresses, read in place: the base of all protocols, and the protocols that fsspec opens (hf://, s3://, gs://, ...).

The libraries of fsspec use the credentials that they find: the login of huggingface_hub, the files and environment variables of AWS
and Google. The samples of a batch are requested together, which hides the latency. Only the indices of tars are kept on disk.
Failed requests are repeated after increasing pauses.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmm.data.decode.files import MAX_BYTES, check_size
from mmm.data.errors import Unreadable
from mmm.data.sources.base import Column
from mmm.data.sources.folder import printable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# paths that are left out; some object stores list folders as files whose names end with /
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)|/$")
PARALLEL = 16  # requests of a process at once
PAUSES = (0, 0, 1, 2, 4, 8, 16, 30)  # seconds before each try; the second has no pause, because servers close idle connections
# allowed protocols; others of fsspec read local files or chain protocols
PROTOCOLS = frozenset(
    {"hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hdfs", "webhdfs", "sftp", "ssh"} | {"memory"}
)

Stamp = tuple[int, str]
"""The size of a file in bytes, and a text that changes with its content."""


def opens(address: str) -> bool:
    """True if an address is opened by fsspec."""
    return urlsplit(address).scheme in PROTOCOLS and "::" not in address


def file_system(address: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of an address in this process, and the path in it.

    Raises:
        ValueError: a library is not installed or has no credentials.
    """
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
    except Exception as error:  # ImportError names the library; each library has its own errors
        raise ValueError(f"data.source {address}: {_line(error)}") from error
    return system, str(path)


def list_files(address: str) -> tuple[dict[str, int], str | None]:
    """Lists the files at an address: all files below a folder, the files that match a glob, or one file.

    Returns:
        The full addresses of the files, sorted, with their sizes in bytes; and the address of the folder, ending with `/`, or None.

    Raises:
        ValueError: there is no file, or the address cannot be listed.
    """
    system, path = file_system(address)
    try:
        system.invalidate_cache()
        is_glob = any(mark in path for mark in "*?[")
        is_folder = not is_glob and system.isdir(path)
        if is_glob or is_folder:
            found = (system.glob if is_glob else system.find)(path, detail=True)
        else:
            found = {path: system.info(path)}
    except Exception as error:
        raise ValueError(f"data.source {address} cannot be listed: {_line(error)}") from error
    files = {
        system.unstrip_protocol(name): int(info["size"] or 0) for name, info in sorted(found.items()) if info["type"] == "file"
    }
    if not files:
        raise ValueError(f"data.source {address}: there is no file at this address")
    return files, system.unstrip_protocol(path).rstrip("/") + "/" if is_folder else None


class RemoteFiles:
    """Files at addresses, by number. Subclasses implement `fetch_once`.

    Args:
        addresses: addresses of the files.
    """

    is_local = False
    checks = "every answer's size and ETag are compared"

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._stamps: dict[int, Stamp] = {}
        self._local: _OfProcess | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_local": None}

    def fetch_once(self, number: int, offset: int, size: int) -> tuple[bytes, Stamp]:
        """Requests bytes of a file, and its current stamp, once.

        Raises:
            OSError: another try may succeed.
            Unreadable: no other try will succeed.
        """
        raise NotImplementedError

    def stamps(self) -> list[Stamp]:
        """Returns the stamp of each file.

        Raises:
            ValueError: a file cannot be read.
        """

        def ask(number: int) -> Stamp:
            try:
                return self._ask(number, 0, 1)[1]
            except Unreadable as error:
                raise ValueError(f"data.source {self.addresses[number]}: {error}") from error

        with ThreadPoolExecutor(PARALLEL) as threads:  # the threads end here, before data workers are forked
            found = list(threads.map(ask, range(len(self.addresses))))
        self._stamps = dict(enumerate(found))
        return found

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Reads bytes of a file; fewer at its end.

        Raises:
            Unreadable: the bytes do not arrive, or the file has changed since it was indexed.
        """
        coming = self.local.coming.pop((number, offset, size), None)
        return self._fetch(number, offset, size) if coming is None else coming.result()

    def prefetch(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Requests the ranges that are read next (number, offset, size) in parallel. Drops earlier ones that were never
        read."""
        local = self.local
        for left in local.coming.values():
            left.cancel()
        local.coming = {one: local.threads.submit(self._fetch, *one) for one in ranges}

    def _fetch(self, number: int, offset: int, size: int) -> bytes:
        size = min(size, self._stamps[number][0] - offset)
        if size <= 0:
            return b""
        content, stamp = self._ask(number, offset, size)
        if stamp != self._stamps[number]:
            raise Unreadable("the file was changed after it was indexed; start again")
        return content

    def _ask(self, number: int, offset: int, size: int) -> tuple[bytes, Stamp]:
        """Repeats a request until it is answered."""
        reason = ""
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self.fetch_once(number, offset, size)
            except OSError as error:
                reason = f"{type(error).__name__}: {error}"
        raise Unreadable(f"did not arrive in {len(PAUSES)} tries; the last error was {reason}"[:200])

    @property
    def local(self) -> _OfProcess:
        """Returns the state of this process. A forked worker does not share connections with its parent."""
        if self._local is None or self._local.process != os.getpid():
            self._local = _OfProcess()
        return self._local


class _OfProcess:
    """The connections and requests of one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.coming: dict[tuple[int, int, int], Future[bytes]] = {}
        self.checked: dict[int, Stamp] = {}  # stamps that this process has looked up
        self.thread = threading.local()

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(PARALLEL)


class FsspecFiles(RemoteFiles):
    """Files at addresses that fsspec opens.

    Args:
        addresses: addresses of the files.
        sizes: their sizes in bytes, if listed; the files are then not checked one by one for changes.
    """

    checks = "size and checksum are compared when a process first reads a file"

    def __init__(self, addresses: Sequence[str], sizes: Sequence[int] | None = None) -> None:
        super().__init__(addresses)
        self.listed = sizes is not None
        self._stamps = {number: (size, "") for number, size in enumerate(sizes or ())}

    def stamps(self) -> list[Stamp]:
        """See `RemoteFiles.stamps`."""
        self.local.checked.clear()
        return super().stamps()

    def fetch_once(self, number: int, offset: int, size: int) -> tuple[bytes, Stamp]:
        """See `RemoteFiles.fetch_once`."""
        from fsspec import AbstractFileSystem

        checked, (system, path) = self.local.checked, file_system(self.addresses[number])
        try:
            if self.listed:
                stamp = self._stamps[number]
            elif number in checked:
                stamp = checked[number]
            else:
                system.invalidate_cache(path)
                stamp = checked[number] = int(system.info(path)["size"]), system.ukey(path)
            # a file system without range requests opens the file, and would read ahead
            options = {"cache_type": "none"} if type(system).cat_file is AbstractFileSystem.cat_file else {}
            return bytes(system.cat_file(path, start=offset, end=offset + size, **options)), stamp
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise Unreadable(_line(error)) from error
        except OSError:
            raise
        except Exception as error:  # each library has its own errors, and repeats requests itself
            raise Unreadable(_line(error)) from error


class RemoteTree:
    """A folder at an address; see `mmm.data.sources.folder.LocalTree`.

    Args:
        root: its address, which ends in `/`.
        sizes: sizes of the files below it in bytes, by their full addresses, sorted.
    """

    def __init__(self, root: str, sizes: Mapping[str, int]) -> None:
        self.root = root
        below = {address.removeprefix(root): size for address, size in sizes.items()}
        self.sizes = {path: size for path, size in below.items() if not HIDDEN.search(path)}

    def __str__(self) -> str:
        return self.root

    def folders(self, below: str = "") -> list[str]:
        """Lists the names of the folders in a folder, sorted."""
        paths = (path.removeprefix(below) for path in self.sizes if path.startswith(below))
        return sorted({path.split("/", 1)[0] for path in paths if "/" in path})

    def files(self, below: str = "") -> Iterator[str]:
        """Lists all files below a folder, by their paths from it."""
        return (path.removeprefix(below) for path in self.sizes if path.startswith(below))

    def size(self, path: str) -> int:
        """Returns the size of a file in bytes."""
        return self.sizes[path]

    def column(self, below: str, paths: Sequence[str]) -> Column:
        """Returns files below a folder as samples."""
        return RemoteColumn(self.root, [below + path for path in paths], [self.sizes[below + path] for path in paths])


class RemoteColumn:
    """Files at addresses as samples, each read whole.

    Args:
        root: the common start of all addresses.
        paths: the rest of each address.
        sizes: sizes of the files in bytes.
    """

    def __init__(self, root: str, paths: Sequence[str], sizes: Sequence[int]) -> None:
        self.root, self.sizes = root, sizes
        self.files = FsspecFiles([root + path for path in paths], sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> bytes:
        return self.files.read(*self._place(row))

    def prefetch(self, rows: list[int]) -> None:
        """Requests the files that are read next, all at once."""
        self.files.prefetch([self._place(row) for row in rows if self.sizes[row] <= MAX_BYTES])

    def name(self, row: int) -> str:
        return printable(self.files.addresses[row].removeprefix(self.root))

    def _place(self, row: int) -> tuple[int, int, int]:
        check_size(self.sizes[row])
        return row, 0, self.sizes[row]


def _line(error: Exception) -> str:
    """Converts an error to one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
