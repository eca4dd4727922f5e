"""Files that stay complete if the process is killed or the disk is full: JSON lines, atomic replacement, user cache, and hashes."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Journal:
    """A file with one JSON object per line. A run appends lines, and a resume removes those after a step. It need not exist yet.

    Lines that cannot be written because the disk is full are kept in memory and written with the next line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []

    def append(self, line: Mapping[str, Any]) -> None:
        """Appends the lines that are kept in memory and a new one. A partly written line is removed, with a warning."""
        self.waiting.append(json.dumps(line) + "\n")
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self.waiting))
            self.waiting.clear()
        except OSError as error:
            logger.warning(
                "a line could not be written to %s; it will be written together with the next line: %s", self.path, error
            )
            with suppress(OSError):
                os.truncate(self.path, before)

    def lines(self) -> list[dict[str, Any]]:
        """Returns all lines, except an incomplete last line."""
        return [line for _, line in self._whole()]

    def cut(self, step: float = math.inf) -> None:
        """Removes the lines after a step, and an incomplete last line."""
        kept = "".join(text for text, line in self._whole() if step == math.inf or line.get("step", math.inf) <= step)
        if kept != self._text():
            replace_text(self.path, kept)

    def _whole(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the lines as text and as JSON objects."""
        read = ((text, _read(text)) for text in self._text().splitlines(keepends=True))
        return [(text, line) for text, line in read if line is not None]

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` for a file or folder, which replaces `path` at the end.

    If the process is killed or an error occurs, `path` is not changed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON atomically, and creates the folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_text(Path(path), json.dumps(value, indent=2) + "\n")


def user_cache() -> Path:
    """Returns the folder for data that can be computed again: `mmm` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmm"


def digest(parts: Iterable[object]) -> str:
    """Returns a hash of the texts of the parts, 16 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        state.update(f"{part}\n".encode(errors="surrogateescape"))
    return state.hexdigest()[:16]


def _read(line: str) -> dict[str, Any] | None:
    """Returns a line as a JSON object. None: the line is incomplete."""
    try:
        found = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
