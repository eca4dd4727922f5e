"""Refuses unsuitable video files before they are opened, and converts the errors of decoders to one line."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmm.data.decode.files import MAX_PIXELS, check_regular, open_error
from mmm.data.errors import Unreadable


def check_size(height: int, width: int) -> None:
    """Raises Unreadable if the header declares frames that are too large to decode."""
    if height * width > MAX_PIXELS:
        raise Unreadable(f"its frames have {height} x {width} pixels, more than the {MAX_PIXELS:,} that are decoded")


def check_file(source: Path | bytes) -> None:
    """Raises Unreadable for an empty or missing file, and for a pipe, a device or a link that leads nowhere."""
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("the file is empty")
        return
    try:
        status = source.stat()
    except (OSError, ValueError) as error:
        raise Unreadable(open_error(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        check_regular(status)  # reading a pipe would block forever


@contextmanager
def reasons(failure: str) -> Iterator[None]:
    """Converts any exception of a decoder to Unreadable, with `failure` and a reason that is the same in every run."""
    try:
        yield
    except (Unreadable, ImportError):
        raise
    except Exception as error:
        raise Unreadable(f"{failure}: {_reason(error)}"[:200]) from error


def _reason(error: Any) -> str:
    if getattr(error, "strerror", None):
        return str(error.strerror)  # PyAV's own text ends with the path
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
