"""Why a video is not read: what is refused before it is opened, and one line for whatever a decoder raises."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmm.data.decode.files import MAX_PIXELS, check_regular, open_error
from mmm.data.errors import Unreadable


def check_size(height: int, width: int) -> None:
    """Raises Unreadable for frames too large to decode, from the header."""
    if height * width > MAX_PIXELS:
        raise Unreadable(f"its frames have {height} x {width} pixels, more than the {MAX_PIXELS:,} that are decoded")


def check_file(source: Path | bytes) -> None:
    """Raises Unreadable for what need not be opened to be refused."""
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("the file is empty")
        return
    try:
        status = source.stat()
    except (OSError, ValueError) as error:
        raise Unreadable(open_error(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        check_regular(status)  # a pipe would be waited for, for ever


@contextmanager
def reasons(failure: str) -> Iterator[None]:
    """Turns what other people's decoders raise, which is anything, into Unreadable: what failed, and why, without what varies."""
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
