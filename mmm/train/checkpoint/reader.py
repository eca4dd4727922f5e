"""Reads checkpoints: lists them, verifies them and loads their content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmm.train.checkpoint.shards import open_tensors

logger = logging.getLogger(__name__)

MANIFEST, STATE = "manifest.json", "state.json"
CHECKPOINTS, BEST = "checkpoints", "best"  # folders in a run folder: all checkpoints, and the one with the best held-back score


def found(folder: Path) -> list[Path]:
    """Returns the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and path.name.removeprefix("step_").isdecimal())


def step_of(checkpoint: Path) -> int:
    """Returns the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def step_at(path: Path, run: Path) -> int | None:
    """Returns the step of the checkpoint at a path in a run folder. None: there is no checkpoint at this path."""
    folder = checkpoint_at(path, run)
    return None if folder is None else step_of(folder)


def checkpoint_at(path: Path, run: Path) -> Path | None:
    """Returns the checkpoint at a path in a run folder: the run, a checkpoint or a file in one. None: there is none."""
    folder = path.parent if path.is_file() else path if path.name.startswith("step_") else checkpoint_of(path, run)
    return folder if folder is not None and folder.name.startswith("step_") else None


def checkpoint_of(path: Path, run: Path) -> Path | None:
    """Returns the checkpoint that is used for a run folder, or for its folder `checkpoints` or `best`. None: there is none.

    For a run folder this is the checkpoint with the best score on held-back samples, if the run keeps one; otherwise the newest.
    """
    if path.name in (CHECKPOINTS, BEST) and path.resolve() == (run / path.name).resolve():
        return newest(path)
    return newest(run / BEST) or newest(run / CHECKPOINTS)


def read(checkpoint: Path) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """Reads the tensors, by file and name, on the CPU, and the state. Only files in the manifest are read.

    A tensor that several processes wrote is joined when it is accessed, so that only one has to be in memory.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    state = json.loads((checkpoint / STATE).read_text())
    paths = [checkpoint / name for name in sorted(manifest["files"]) if name.endswith(".safetensors")]
    return open_tensors(paths, state.get("shards", {})), state


def newest(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint, or None if there is none. Damaged checkpoints are reported and skipped.

    Raises:
        ValueError: all checkpoints are damaged. The user must then decide whether to start again.
    """
    damaged = []
    for path in reversed(found(folder)):
        reason = damage(path)
        if reason is None:
            return path
        logger.warning("checkpoint %s is damaged and was skipped: %s", path, reason)
        damaged.append(f"{path.name} ({reason})")
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged: {'; '.join(damaged)}; start again with another --folder")
    return None


def damage(checkpoint: Path) -> str | None:
    """Describes the damage of a checkpoint and names the file. None: all files are unchanged."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        files, step = manifest["files"], manifest["step"]
        expected = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    if checkpoint.name != f"step_{step:08}":
        return f"{MANIFEST} is of step {step}"
    if elsewhere := [name for name in files if Path(name).name != name]:
        return f"{MANIFEST} names files elsewhere ({elsewhere[0]})"  # they are not opened: the manifest may be malicious
    if STATE not in files:
        return f"{MANIFEST} does not list {STATE}"
    wrong = (_wrong(checkpoint / name, size, digest) for name, size, digest in expected)
    return next((reason for reason in wrong if reason), None)


def sha256(path: Path) -> str:
    """Returns the hash of a file's content, as the manifest states it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} of {size} bytes"
    if sha256(path) != digest:
        return f"the content of {path.name} is not what was written"
    return None
