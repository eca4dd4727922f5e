"""Reads whole files, and limits the size of files and images. Pipes, folders and broken links are refused with a clear
reason."""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path

from mmm.data.errors import Unreadable

MAX_BYTES = 2**30  # largest size of a file that is read whole; a sparse file of a terabyte takes no space on the disk
MAX_PIXELS = 50_000_000  # largest number of pixels of an image: a PNG of 100 KB can expand to 1.6 GB (measured: 12 s in Pillow)
# opening a pipe without O_NONBLOCK waits for a writer; O_BINARY is for Windows
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ELOOP: "is a link that leads to itself",
    errno.EACCES: "permission denied",
    errno.ENXIO: "is not a regular file",  # a socket
}


def read_file(path: str | Path) -> bytes:
    """Reads a whole file.

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    try:
        descriptor = os.open(path, FLAGS)
    except (OSError, ValueError) as error:
        raise Unreadable(open_error(error)) from error
    try:
        status = os.fstat(descriptor)
        check_regular(status)
        check_size(status.st_size)
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def check_regular(status: os.stat_result) -> None:
    """Raises Unreadable for anything but a regular file with content."""
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    if status.st_size == 0:
        raise Unreadable("the file is empty")


def check_size(size: int) -> None:
    """Raises Unreadable for a file with too many bytes."""
    if size > MAX_BYTES:
        raise Unreadable(f"{size:,} bytes, more than the {MAX_BYTES:,} that are read")


def check_pixels(height: int, width: int) -> None:
    """Raises Unreadable for an image with too many pixels; callers read the size from its header."""
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{height} x {width} pixels, more than the {MAX_PIXELS:,} that are decoded")


def check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    """Raises Unreadable for an image or a frame that has too many pixels after it is resized. Both sizes are height and width."""
    if math.prod(resized) > MAX_PIXELS:
        whole, large = (f"{height} x {width}" for height, width in (size, resized))
        raise Unreadable(f"{whole} pixels become {large} when they are resized, more than the limit of {MAX_PIXELS:,} pixels")


def open_error(error: OSError | ValueError) -> str:
    """Returns the reason why a file cannot be opened, without its path."""
    if isinstance(error, OSError):
        return REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
    return "its path contains a null character"
