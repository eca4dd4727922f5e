"""What lies in a folder, whatever it is: links to nothing, links that lead to themselves, names that are no text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def folders_in(root: Path) -> list[str]:
    """Names of the sub-folders that are not hidden, sorted."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if _is(entry.is_dir) and not entry.name.startswith((".", "__")))


def files_below(root: Path, below: str = "", seen: frozenset[str] = frozenset(), *, every: bool = False) -> Iterator[str]:
    """Regular files below a root as relative paths with `/`; links are followed, circles of them are not.

    Args:
        root: where to look.
        below: the folder within it, with `/` at its end.
        seen: folders above.
        every: also what can only be refused, and so be counted: pipes, links to nothing.

    Raises:
        ValueError: where a folder cannot be listed.
    """
    here = root / below
    real = os.path.realpath(here)
    if real in seen:
        return
    try:
        entries = os.scandir(here)
    except OSError as error:
        raise ValueError(f"data.source {here} cannot be listed: {error.strerror}") from error
    with entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if _is(entry.is_dir):
                yield from files_below(root, f"{below}{entry.name}/", seen | {real}, every=every)
            elif every or _is(entry.is_file):
                yield below + entry.name


def printable(name: str) -> str:
    """A name that fits into one line of UTF-8: bytes of another encoding, and line breaks, are written as \\x0a."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link that leads to itself
        return False


def size_of(path: Path) -> int:
    """Bytes; -1 of what leads nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
