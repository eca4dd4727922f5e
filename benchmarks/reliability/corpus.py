"""Hostile inputs: each consists of a few files and the call that a user would make with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Action = Callable[[], Any]


@dataclass(frozen=True)
class Workspace:
    """The folders of an input.

    Attributes:
        root: folder of the input.
        canaries: a folder outside the root with files that must not be opened: image.png, text.txt, video.mp4.
        marker: a file that only code in the input would create.
    """

    root: Path
    canaries: Path
    marker: Path

    @property
    def command(self) -> str:
        """A shell command that creates the marker."""
        return f"touch {self.marker}"

    @property
    def code(self) -> str:
        """Python code that creates the marker."""
        return f"open({str(self.marker)!r}, 'w').close()"

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes a file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_image(self, name: str) -> Path:
        """Writes a valid image below the root, so that the root is a valid source."""
        path = self.write(name, b"")
        Image.fromarray(np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)).save(path, format="PNG")
        return path


CASES: dict[str, Callable[[Workspace], Action]] = {}


def hostile(function: Callable[[Workspace], Action]) -> Callable[[Workspace], Action]:
    """Registers an input under its function's name. The function writes the files, and returns the call that a user would make."""
    CASES[function.__name__] = function
    return function


def pickle_calling(module: str, name: str, *words: str) -> bytes:
    """Returns a pickle that calls a function with text arguments."""
    function = b"c" + module.encode() + b"\n" + name.encode() + b"\n("
    return function + b"".join(b"V" + word.encode("raw_unicode_escape") + b"\n" for word in words) + b"tR."


def shell_pickle(workspace: Workspace) -> bytes:
    """Returns the simplest hostile pickle, which runs a shell command."""
    return pickle_calling("posix", "system", workspace.command)
