"""Which folder a run gets: a new one, or that of the run to go on with; nothing is written over."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Resume = bool | Literal["auto"]  # auto: where the folder holds a run

# what a start makes before its config.yaml, with which a folder is a run
EARLY = frozenset({"lock", ".lock", "environment.json", "environment.json.tmp", "config.yaml.tmp", "checkpoints", "pictures"})


def choose(path: Path | None, name: str, resume: Resume) -> Path:
    """The folder, made where it is new; refuses one that holds something else."""
    if path is None:
        if resume:
            raise ValueError("--resume goes on with the run of a folder; name it with --folder")
        return _next_free(name)
    holds_run = (path / "config.yaml").exists()
    if resume is True and not holds_run:
        raise ValueError(f"--resume: {path} holds no run; leave --resume out to start one there, or give --resume auto")
    if holds_run and not resume:
        raise ValueError(f"--folder {path} holds a run already; give another --folder, or --resume to go on with it")
    if not holds_run and path.exists() and not _killed_early(path):
        raise ValueError(f"--folder {path} exists and is not a run; give another")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _killed_early(path: Path) -> bool:
    """Whether a folder holds no more than what a start makes before the run is one."""
    if not path.is_dir() or {file.name for file in path.iterdir()} - EARLY:
        return False
    return not any(any((path / name).glob("*")) for name in ("checkpoints", "pictures"))


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
