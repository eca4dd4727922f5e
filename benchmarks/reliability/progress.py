"""Observes the progress of a training through its run folder, to disturb it at a random time or inside a save."""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.reliability.harness import ProcessGroup

SAVE_SECONDS = 0.012  # maximum duration of a save of these small models; a delay inside a save is drawn from this range
POLL_INTERVAL = 0.0003  # seconds between two checks for a save


def wait_random_time(run: ProcessGroup, rng: random.Random, seconds: float) -> None:
    """Waits a random time of at most `seconds`, or until the run ends."""
    end = time.monotonic() + rng.uniform(0, seconds)
    run.wait_until(lambda: time.monotonic() > end, 0.001)


def wait_for_save(run: ProcessGroup, folder: Path, rng: random.Random) -> None:
    """Waits until the next save begins, and then a random short time."""
    before = set(steps_being_saved(folder))
    if run.wait_until(lambda: set(steps_being_saved(folder)) - before, POLL_INTERVAL):
        time.sleep(rng.uniform(0, SAVE_SECONDS))


def wait_for_update(run: ProcessGroup, folder: Path) -> bool:
    """Waits until a started run has logged an update; returns False if the run ended before."""
    before = logged_lines(folder)
    return run.wait_until(lambda: logged_lines(folder) > before)


def steps_being_saved(folder: Path) -> list[int]:
    """Returns the steps of checkpoints that are being written.

    Temporary folders of checkpoints that are being deleted are older than the newest complete checkpoint, and do not count.
    """
    newest = max(saved_steps(folder), default=0)
    steps = [int(path.name.split("_")[1].split(".")[0]) for path in (folder / "checkpoints").glob("step_*.tmp")]
    return [step for step in steps if step > newest]


def is_deleting(folder: Path) -> bool:
    """Returns whether an old checkpoint is being deleted."""
    return any((folder / "checkpoints").glob("step_*.tmp")) and not steps_being_saved(folder)


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints."""
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*") if path.name[5:].isdecimal())


def logged_lines(folder: Path) -> int:
    """Returns the number of lines in metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
