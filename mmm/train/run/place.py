"""Which folder a run gets: a new one, or that of the run to go on with; nothing is written over."""

from __future__ import annotations

import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal

Resume = bool | Literal["auto"]  # auto: where the folder holds a run

# what a start makes before its first update; a folder with nothing else holds no run yet
EARLY = frozenset({"lock", ".lock", "environment.json", "config.yaml", "micro_batch.json", "bad_inputs.jsonl"})


def choose(path: Path | None, name: str, resume: Resume) -> Path:
    """The folder, made where it is new; refuses one that holds something else."""
    if path is None:
        if resume:
            raise ValueError("--resume goes on with the run of a folder; name it with --folder")
        return _next_free(name)
    holds_run = (path / "config.yaml").exists()
    if resume is True and not holds_run:
        raise ValueError(f"--resume: {path} holds no run; leave --resume out to start one there, or give --resume auto")
    if holds_run and has_trained(path) and not resume:
        raise ValueError(f"--folder {path} holds a run already; give another --folder, or --resume to go on with it")
    if path.exists() and not has_trained(path) and not _started_only(path):
        raise ValueError(f"--folder {path} exists and is not a run; give another")
    path.mkdir(parents=True, exist_ok=True)
    return path


def has_trained(path: Path) -> bool:
    """Whether a run's folder holds anything of an update: a line of metrics, or a checkpoint."""
    metrics = path / "metrics.jsonl"
    return (metrics.exists() and metrics.stat().st_size > 0) or any((path / "checkpoints").glob("step_*"))


def resume_command(folder: Path) -> str:
    """The command that goes on with a run from its folder, started the way this process was."""
    program, *argv = sys.argv
    task = [word for word in argv[:1] if not word.startswith("-")]  # `mmm TASK [MODEL] ...`, or a recipe's file
    command = ["mmm", *task] if task else ["python", program]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        command = ["accelerate", "launch", program, *task]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        command = ["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"], program, *task]
    files = [word for flag, file in pairwise(argv) if flag == "--use" for word in (flag, file)]
    return shlex.join([*command, "--folder", str(folder), "--resume", *files])


def _started_only(path: Path) -> bool:
    """Whether a folder holds no more than what a start makes before its first update."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir() if file.suffix != ".tmp"} - EARLY
    return names <= {"checkpoints", "pictures"} and not any(any((path / name).glob("*")) for name in names)


def _next_free(name: str) -> Path:
    number = 1
    while True:
        path = Path("runs") / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
