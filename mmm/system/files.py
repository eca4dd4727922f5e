"""Files of one JSON object a line that a run appends to, and a resume cuts back to a step."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Journal:
    """One such file, which need not exist. What a full disk does not take waits for the next line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line, and those that wait; what a full disk took half is cut off, with a warning."""
        self.waiting.append(json.dumps(line) + "\n")
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self.waiting))
            self.waiting.clear()
        except OSError as error:
            logger.warning("a line of %s waits for the next: %s", self.path, error)
            with suppress(OSError):
                os.truncate(self.path, before)

    def lines(self) -> list[dict[str, Any]]:
        """All that is there, but for a line that a kill cut off."""
        return [line for _, line in self._whole()]

    def cut(self, step: float = math.inf) -> None:
        """Drops the lines after a step, and one that a kill cut off."""
        kept = "".join(text for text, line in self._whole() if step == math.inf or line.get("step", math.inf) <= step)
        if kept != self._text():
            replace_text(self.path, kept)

    def _whole(self) -> list[tuple[str, dict[str, Any]]]:
        """Lines as they stand and as they are read."""
        read = ((text, _read(text)) for text in self._text().splitlines(keepends=True))
        return [(text, line) for text, line in read if line is not None]

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""


def replace_text(path: Path, text: str) -> None:
    """Writes a small file anew; a kill leaves the old one or the new one."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _read(line: str) -> dict[str, Any] | None:
    """None for a line that is not whole."""
    try:
        found = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
