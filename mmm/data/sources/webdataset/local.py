"""Tars on a disk of this machine, read in place by offset. See `index_cache.TarFiles`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmm.data.errors import Unreadable

MAX_OPEN = 64  # files that a process keeps open


class LocalFiles:
    """Files on a disk, by number.

    Args:
        paths: paths of the files, sorted; at least one.
    """

    is_local = True
    checks = "size and time of change are compared when a file is opened"

    def __init__(self, paths: Sequence[Path]) -> None:
        self.addresses = [str(path.resolve()) for path in paths]
        self._stamps: list[tuple[int, str]] = []
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # another process opens its own files

    def stamps(self) -> list[tuple[int, str]]:
        """Returns the size of each file in bytes, and the time of its last change."""
        self._stamps = [_stamp(os.stat(address)) for address in self.addresses]
        return self._stamps

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Reads bytes of a file; fewer at its end.

        Raises:
            Unreadable: the file has changed since it was indexed, or the disk fails.
        """
        try:
            return _read_at(self._file(number), size, offset)
        except OSError as error:
            raise Unreadable(f"the tar cannot be read: {error.strerror}") from error

    def prefetch(self, ranges: list[tuple[int, int, int]]) -> None:
        """Does nothing: a local disk needs no prefetching."""

    def _file(self, number: int) -> int:
        """Returns the descriptor of a file, and closes the file that was opened first if too many are open."""
        if number not in self._open:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            self._open[number] = os.open(self.addresses[number], flags)
        if _stamp(os.fstat(self._open[number])) != self._stamps[number]:
            raise Unreadable("the tar was changed after it was indexed; start again")
        return self._open[number]


def _stamp(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, str(status.st_mtime_ns)


def _read_at(file: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    os.lseek(file, offset, os.SEEK_SET)  # on Windows, where processes do not share open files
    return os.read(file, size)
