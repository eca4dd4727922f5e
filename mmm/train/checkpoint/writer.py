"""Writes checkpoint folders atomically: written under another name, hashed, flushed to the disk, then renamed.

    checkpoints/step_00001000/
        model.safetensors  optimizer.safetensors  [ema.safetensors]     tensors by name
        state.json                                                     everything else, as data
        manifest.json                                                  size and sha256 of each file above

A process that is killed leaves a `.tmp` folder, which is never read. The hashes detect damage on the disk: safetensors and torch
would load a tensor with a flipped bit without an error. No code is ever loaded.

Each process of a sharded model writes its own rows of every tensor, in `model-00001-of-00002.safetensors` and so on; `shards` in
state.json contains the number of rows of each. `shards.py` joins them; `reader.py` reads and verifies.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmm.train.checkpoint.reader import MANIFEST, STATE, damage, found, sha256, step_of
from mmm.train.checkpoint.reader import newest as newest
from mmm.train.checkpoint.reader import read as read
from mmm.train.checkpoint.shards import file_name

Files = dict[str, dict[str, Any]]  # bytes and sha256 of each file in a manifest, by name


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int | None,
    keep_every: int | None = None,
) -> Path:
    """Writes the checkpoint of a step, then prunes older ones.

    Args:
        folder: `checkpoints` of a run.
        tensors: tensors by file (without ending) and by name.
        state: values that JSON supports; floats are stored exactly.
        keep, keep_every: see `prune`.

    Returns:
        The checkpoint's folder. A complete checkpoint of this step is not written again.

    Raises:
        OSError: the checkpoint cannot be written, for instance because the disk is full. Its files are deleted; older checkpoints
            stay unchanged.
    """
    aside = begin(folder, step)
    if aside is not None:
        with or_nothing(aside):
            commit(aside, step, write_part(aside, tensors), state)
        prune(folder, keep, step, keep_every)
    return folder / f"step_{step:08d}"


def begin(folder: Path, step: int) -> Path | None:
    """Makes the temporary folder for the files. Returns None if there is a complete checkpoint of this step already."""
    final = folder / f"step_{step:08d}"
    if final.exists():
        if damage(final) is None:
            return None
        shutil.rmtree(final)  # it is damaged, and the run was resumed from an earlier checkpoint
    for remains in folder.glob("step_*.tmp"):  # files of a run that was killed while it wrote or deleted a checkpoint
        shutil.rmtree(remains, ignore_errors=True)
    aside = folder / f"{final.name}.tmp"
    aside.mkdir(parents=True)
    return aside


@contextmanager
def or_nothing(aside: Path) -> Iterator[None]:
    """Deletes the temporary folder if the `with` block fails, because the next checkpoint may need its space."""
    try:
        yield
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_part(aside: Path, tensors: Mapping[str, Mapping[str, Tensor]], part: int = 0, parts: int = 1) -> Files:
    """Writes and flushes the tensors of one process. All processes except the first then write a file for `found_part`."""
    files = {}
    for name, values in tensors.items():
        path = aside / file_name(name, part, parts)
        _save_tensors(path, {key: value.contiguous() for key, value in values.items()})
        files[path.name] = _entry(path)
        _flush(path)
    if part:
        _write_json(aside / f"part-{part}.json", files)
    return files


def found_part(aside: Path, part: int) -> Files | None:
    """Returns the files that another process wrote, or None if it has not written them yet."""
    try:
        found: Files = json.loads((aside / f"part-{part}.json").read_bytes())
    except (FileNotFoundError, ValueError):  # missing, or partly written
        return None
    return found


def commit(aside: Path, step: int, files: Files, state: Mapping[str, Any]) -> Path:
    """Completes a folder with all tensors: writes state and manifest, flushes all files, and renames the folder."""
    for notice in aside.glob("part-*.json"):
        notice.unlink()
    _write_json(aside / STATE, {"step": step, **state})
    _write_json(aside / MANIFEST, {"step": step, "files": {**files, STATE: _entry(aside / STATE)}})
    for path in (aside / STATE, aside / MANIFEST, aside):
        _flush(path)
    final = aside.rename(aside.with_suffix(""))
    _flush(final.parent)
    return final


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:  # the message of the system is in its text only
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def prune(folder: Path, keep: int | None, step: int, keep_every: int | None = None) -> None:
    """Deletes older checkpoints up to this step. Each is renamed first, so that no incomplete one remains if the process is killed.

    Args:
        keep: number of newest checkpoints that are kept. None: all.
        keep_every: checkpoints at multiples of this number of updates are never deleted.
    """
    past = [path for path in found(folder) if step_of(path) <= step]
    for path in past[:-keep] if keep is not None else []:
        if keep_every is None or step_of(path) % keep_every:
            shutil.rmtree(path.rename(path.with_name(f"{path.name}.tmp")))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk, so that they are not lost after a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
