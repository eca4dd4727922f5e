"""Checkpoint folders that are whole or not there: written aside, hashed, made durable, then renamed.

    checkpoints/step_00001000/
        model.safetensors  optimizer.safetensors  [ema.safetensors]     tensors by name
        state.json                                                     everything else, as data
        manifest.json                                                  size and sha256 of each file above

What a kill can leave is a `.tmp` folder, which nobody reads; what a disk can do to a file is found by its hash: one flipped
bit in a tensor loads without an error in safetensors and torch alike. No code is ever loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)

MANIFEST, STATE = "manifest.json", "state.json"


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int | None) -> Path:
    """Writes the checkpoint of a step, then prunes older ones.

    Args:
        folder: `checkpoints` of a run.
        tensors: by file (without ending), then by name.
        state: what JSON can hold; floats come back as they were.
        keep: how many to keep; none: all.

    Returns:
        The checkpoint's folder. One of this step that is whole already stays as it is.

    Raises:
        OSError: it cannot be written, because the disk is full for instance. The ones before are as they were, and what was
            written of this one is deleted.
    """
    final = folder / f"step_{step:08d}"
    if final.exists():
        if damage(final) is None:
            return final
        shutil.rmtree(final)  # found damaged, and trained again from the one before
    for remains in folder.glob("step_*.tmp"):  # of a run that was killed while it wrote or deleted
        shutil.rmtree(remains, ignore_errors=True)
    aside = folder / f"{final.name}.tmp"
    try:
        _write_aside(aside, step, tensors, state)
        aside.rename(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)  # it takes room that the next one may need
        raise
    _flush(folder)
    prune(folder, keep, step)
    return final


def _write_aside(aside: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """All files of a checkpoint, in a folder that nobody reads, and durable."""
    aside.mkdir(parents=True)
    for name, values in tensors.items():
        _save_tensors(aside / f"{name}.safetensors", {key: value.contiguous() for key, value in values.items()})
    _write_json(aside / STATE, {"step": step, **state})
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(aside.iterdir())}
    _write_json(aside / MANIFEST, {"step": step, "files": files})
    for path in (*aside.iterdir(), aside):
        _flush(path)


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:  # what the system said is in its text only
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def read(checkpoint: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors, by file and name, on the CPU; and the state."""
    tensors = {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    return tensors, json.loads((checkpoint / STATE).read_text())


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or none where none was ever written. What is damaged is named and passed over.

    Raises:
        ValueError: there are checkpoints and all are damaged. To start from nothing then is for the user to decide.
    """
    damaged = []
    for path in reversed(found(folder)):
        reason = damage(path)
        if reason is None:
            return path
        logger.warning("checkpoint %s is damaged and passed over: %s", path, reason)
        damaged.append(f"{path.name} ({reason})")
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged: {'; '.join(damaged)}; start again with another --folder")
    return None


def found(folder: Path) -> list[Path]:
    """The checkpoints that were renamed into place, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and path.name.removeprefix("step_").isdecimal())


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; none where all is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        files, step = manifest["files"], manifest["step"]
        expected = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if checkpoint.name != f"step_{step:08}":
        return f"{MANIFEST} is of step {step}"
    if STATE not in files:
        return f"{MANIFEST} does not list {STATE}"
    wrong = (_wrong(checkpoint / name, size, digest) for name, size, digest in expected)
    return next((reason for reason in wrong if reason), None)


def prune(folder: Path, keep: int | None, step: int) -> None:
    """Deletes all but the newest `keep` checkpoints up to this step; renamed first, so that a kill leaves none half there."""
    if keep is None:
        return
    past = [path for path in found(folder) if int(path.name.removeprefix("step_")) <= step]
    for path in past[:-keep]:
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.tmp")))


def _wrong(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} of {size} bytes"
    if _sha256(path) != digest:
        return f"the content of {path.name} is not what was written"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _flush(path: Path) -> None:
    """Makes a file, or a folder's list of names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
