"""Hostile inputs: each consists of a few files and the call that a user would make with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Act = Callable[[], Any]


@dataclass(frozen=True)
class Place:
    """The folders of an input.

    Attributes:
        root: folder of the input.
        bait: a folder outside with files that must not be opened: picture.png, text.txt, film.mp4.
        canary: a file that only planted code would create.
    """

    root: Path
    bait: Path
    canary: Path

    @property
    def command(self) -> str:
        """A shell command that creates the canary."""
        return f"touch {self.canary}"

    @property
    def code(self) -> str:
        """Python code that creates the canary."""
        return f"open({str(self.canary)!r}, 'w').close()"

    def put(self, name: str, content: str | bytes) -> Path:
        """Writes a file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def picture(self, name: str) -> Path:
        """Writes a valid image below the root, so that the root is a valid source."""
        path = self.put(name, b"")
        Image.fromarray(np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)).save(path, format="PNG")
        return path


CASES: dict[str, Callable[[Place], Act]] = {}


def hostile(plant: Callable[[Place], Act]) -> Callable[[Place], Act]:
    """Registers an input under its function's name."""
    CASES[plant.__name__] = plant
    return plant


def reduction(module: str, name: str, *words: str) -> bytes:
    """Returns a pickle that calls a function with text arguments."""
    called = b"c" + module.encode() + b"\n" + name.encode() + b"\n("
    return called + b"".join(b"V" + word.encode("raw_unicode_escape") + b"\n" for word in words) + b"tR."


def system(place: Place) -> bytes:
    """Returns the simplest hostile pickle, which runs a shell command."""
    return reduction("posix", "system", place.command)
