"""Files of one JSON object a line, each with its step, that a run appends to and a resume cuts back."""

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
            with self.path.open("a") as file:
                file.write("".join(self.waiting))
            self.waiting.clear()
        except OSError as error:
            logger.warning("a line of %s waits for the next: %s", self.path, error)
            with suppress(OSError):
                os.truncate(self.path, before)

    def cut(self, step: int) -> None:
        """Drops the lines after a step, and one that a kill cut off."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines(keepends=True) if _step_of(line) <= step]
        replace_text(self.path, "".join(kept))


def replace_text(path: Path, text: str) -> None:
    """Writes a small file anew; a kill leaves the old one or the new one."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text)
    os.replace(aside, path)


def _step_of(line: str) -> float:
    """The step of a line; infinity where it cannot be read."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
