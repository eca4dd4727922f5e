"""A run: one folder that holds all that one training produced.

    config.yaml         enough to repeat it
    environment.json    with what, where and by which commands, one entry a start
    metrics.jsonl       one line a log line or evaluation
    skipped.jsonl       the updates that were left out, and their samples; only where there were any
    checkpoints/        see `checkpoint.py`
    pictures/

In metrics.jsonl times stand under "clock" only; the rest of a line is the same however often the run was stopped and resumed.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mmm.train.environment import describe_environment
from mmm.train.interval import Skipped
from mmm.train.lock import RunLock
from mmm.train.processes import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# what depends on the machine's mood and not on the run; kept apart so that two runs' lines can be compared
CLOCK = ("samples_per_second", "seconds")


class RunFolder:
    """The folder of a run that is in progress; use it as a context manager, so that its lock is released."""

    def __init__(self, path: Path, lock: RunLock | None) -> None:
        """Use `open`. `lock`: of the main process, the one that writes; none in the others."""
        self.path, self.lock = path, lock
        self._waiting: dict[Path, list[str]] = {}

    @classmethod
    def open(cls, path: str | Path | None, name: str, config: Any, *, accelerator: Accelerator, resume: bool = False) -> RunFolder:
        """Makes a folder for a new run, or opens that of a run to go on with.

        Args:
            path: of the folder; none: runs/NAME-N with the next free N.
            name: of the task.
            config: of the task, saved as config.yaml where there is none yet.
            resume: go on with the run that the folder holds.

        Raises:
            ValueError: the folder is in use, or holds what must not be written over, or has nothing to resume.
        """
        held: list[RunLock] = []

        def make() -> str:
            folder = _choose(None if path is None else Path(path), name, resume)
            held.append(RunLock(folder))
            _fill(folder, config, accelerator)
            return str(folder)

        try:
            return cls(Path(on_main(accelerator, make)), held[0] if held else None)
        except (ValueError, OSError):
            for lock in held:
                lock.release()
            raise

    @property
    def checkpoints(self) -> Path:
        """Where `Training.save` writes."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Where tasks draw."""
        return self.path / "pictures"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _skipped(self) -> Path:
        return self.path / "skipped.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line, from the main process. A number that is not finite becomes null, for JSON has none such."""
        if self.lock is None:
            return
        line: dict[str, Any] = {"step": step}
        clock = {name: value for name, value in metrics.items() if name in CLOCK}
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items() if name not in CLOCK}
        self._append(self._metrics, line | ({"clock": clock} if clock else {}))

    def note_skipped(self, skipped: Iterable[Skipped]) -> None:
        """Appends the updates that were left out, from the main process."""
        for one in skipped if self.lock is not None else ():
            self._append(self._skipped, asdict(one))

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        """What a full disk does not take waits for the next line; what it took half is cut off."""
        waiting = self._waiting.setdefault(path, [])
        waiting.append(json.dumps(line) + "\n")
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write("".join(waiting))
            waiting.clear()
        except OSError as error:
            logger.warning("a line of %s waits for the next: %s", path, error)
            if path.exists():
                os.truncate(path, before)

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after a step, before a resume from it writes them again; a line that a kill cut off goes too.

        For this to give the lines of an uninterrupted run, a task saves as the last thing it does in a step.
        """
        # an update that was left out is named as counted from 0
        for path, last in ((self._metrics, step), (self._skipped, step - 1)) if self.lock is not None else ():
            if path.exists():
                kept = [line for line in path.read_text().splitlines(keepends=True) if _step_of(line) <= last]
                aside = path.with_suffix(".tmp")
                aside.write_text("".join(kept))
                os.replace(aside, path)

    def close(self) -> None:
        """Releases the folder."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _choose(path: Path | None, name: str, resume: bool) -> Path:
    """The folder, made where it is new; refuses one that holds something else."""
    if path is None:
        if resume:
            raise ValueError("--resume goes on with a run; name its folder with --folder")
        return _next_free(name)
    holds_run = (path / "config.yaml").exists()
    if resume and not holds_run:
        raise ValueError(f"--resume: {path} holds no run; leave --resume out to start one there")
    if holds_run and not resume:
        raise ValueError(f"--folder {path} holds a run already; give another --folder, or --resume to go on with it")
    # a start that was killed early leaves its lock and nothing else
    if not holds_run and path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {"lock", ".lock"}):
        raise ValueError(f"--folder {path} exists and is not a run; give another")
    path.mkdir(parents=True, exist_ok=True)
    return path


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


def _fill(folder: Path, config: Any, accelerator: Accelerator) -> None:
    from mmm.config import save

    for name in ("checkpoints", "pictures"):
        (folder / name).mkdir(exist_ok=True)
    record = folder / "environment.json"
    starts = json.loads(record.read_text()) if record.exists() else []
    record.write_text(json.dumps([*starts, describe_environment(accelerator)], indent=2) + "\n")
    if not (folder / "config.yaml").exists():
        save(config, folder / "config.yaml")  # last: what has it is a run


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity where it cannot be read."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
