"""The bytes of one file, or why there are none: a pipe, a folder, a link to nothing, a permission that is missing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mmm.data.errors import Unreadable

MAX_BYTES = 2**30  # of a file that is read whole, as images are: a sparse file of a terabyte takes no room on the disk
# to open a pipe would wait for one who writes into it; O_BINARY: Windows
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ELOOP: "is a link that leads to itself",
    errno.EACCES: "permission denied",
    errno.ENXIO: "is not a regular file",  # a socket
}


def read_file(path: str | Path) -> bytes:
    """All of a file.

    Raises:
        Unreadable: with the reason.
    """
    try:
        descriptor = os.open(path, FLAGS)
    except (OSError, ValueError) as error:
        raise Unreadable(why(error)) from error
    try:
        status = os.fstat(descriptor)
        refuse_odd(status)
        refuse_large(status.st_size)
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def refuse_large(size: int) -> None:
    """Raises Unreadable for a file of more bytes than are read at once."""
    if size > MAX_BYTES:
        raise Unreadable(f"{size:,} bytes, more than the {MAX_BYTES:,} that are read")


def refuse_odd(status: os.stat_result) -> None:
    """Raises Unreadable for what is no file with something in it."""
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    if status.st_size == 0:
        raise Unreadable("the file is empty")


def why(error: OSError | ValueError) -> str:
    """Why a file cannot be opened, without its path."""
    if isinstance(error, OSError):
        return REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
    return "its path holds a null character"
