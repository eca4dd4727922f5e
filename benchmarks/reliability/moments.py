"""Moments at which a run is disturbed: at a random time, or inside a save, which is detected by its temporary folder."""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.reliability.harness import Started

SAVE = 0.012  # maximum seconds of a save of these small models; the moment of a kill inside it is drawn from this range
GLANCE = 0.0003  # seconds between two checks


def at_random(run: Started, draw: random.Random, seconds: float) -> None:
    """Waits a random time of at most `seconds`, or until the run ends."""
    end = time.monotonic() + draw.uniform(0, seconds)
    run.until(lambda: time.monotonic() > end, 0.001)


def inside_a_save(run: Started, folder: Path, draw: random.Random) -> None:
    """Waits until the next save begins, and then a random short time."""
    before = set(asides(folder))
    if run.until(lambda: set(asides(folder)) - before, GLANCE):
        time.sleep(draw.uniform(0, SAVE))


def asides(folder: Path) -> list[int]:
    """Returns the steps of checkpoints that are being written. Those that are being deleted are older than a complete one."""
    checkpoints = folder / "checkpoints"
    whole = max(saved(folder), default=0)
    steps = [int(path.name.split("_")[1].split(".")[0]) for path in checkpoints.glob("step_*.tmp")]
    return [step for step in steps if step > whole]


def deleting(folder: Path) -> bool:
    """Returns whether an old checkpoint is being deleted."""
    return any((folder / "checkpoints").glob("step_*.tmp")) and not asides(folder)


def saved(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints."""
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*") if path.name[5:].isdecimal())


def lines(folder: Path) -> int:
    """Returns the number of lines of metrics."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def trains(run: Started, folder: Path) -> bool:
    """Waits until this start has made at least one update; returns False if it ended before."""
    before = lines(folder)
    return run.until(lambda: lines(folder) > before)
