"""R1: tests SIGKILL at random times, half of them inside a save, each followed by the same command until the run ends.

The runs train on images and videos, with one process and two, without data workers and with two, and use gradient accumulation,
drop path and an average of the weights. The files that a run leaves must be bit-identical to those of an undisturbed one.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import run_jobs, start
from benchmarks.reliability.progress import is_deleting, saved_steps, steps_being_saved, wait_for_save, wait_random_time
from benchmarks.reliability.runs import Variant, finish_and_compare, make_data, run_undisturbed, variants

COUNT, QUICK = 500, 16
KILLS_PER_RUN = 5  # kills before a run may end
MIN_SHARE_IN_SAVES = 0.2  # of all kills


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` kills, distributed evenly over the variants."""
    make_data(work)
    tested = variants(work)
    jobs = {
        variant.name: partial(_kill_runs, work, variant, count // len(tested) + (number < count % len(tested)), rng.getrandbits(32))
        for number, variant in enumerate(tested)
    }
    results, failures = run_jobs(work, jobs)
    total = sum((Counter(result.get("kills", {})) for result in results.values()), Counter[str]())
    if total["inside a save"] < MIN_SHARE_IN_SAVES * total.total():
        failures.append(f"only {total['inside a save']} of {total.total()} kills were inside a save")
    runs = sum(result.get("runs", 0) for result in results.values())
    exact = sum(result.get("bit-identical", 0) for result in results.values())
    return {
        "kills": total.total(),
        "times of kills": total,
        "runs": runs,
        "bit-identical": exact,
        "variants": results,
        "failures": failures,
    }


def _kill_runs(work: Path, variant: Variant, count: int, seed: int) -> dict[str, Any]:
    """Kills runs of one variant many times; each run finally ends."""
    rng, kills, failures, runs, exact = random.Random(seed), Counter[str](), list[str](), 0, 0
    began = time.monotonic()
    expected = run_undisturbed(variant, work / f"{variant.name}_undisturbed")
    undisturbed = time.monotonic() - began
    while kills.total() < count:
        folder = work / f"{variant.name}_{runs}"
        for _ in range(min(KILLS_PER_RUN, count - kills.total())):
            when, errors = _start_and_kill(variant, folder, rng, undisturbed, in_save=kills.total() % 2 == 1)
            failures += errors
            if when is None:
                break
            kills[when] += 1
        differences = finish_and_compare(variant, folder, expected)
        failures, runs, exact = failures + differences, runs + 1, exact + (not differences)
        shutil.rmtree(folder, ignore_errors=True)
    seconds = {"seconds undisturbed": round(undisturbed, 2), "seconds": round(time.monotonic() - began, 1)}
    return {"kills": kills, "runs": runs, "bit-identical": exact, **seconds, "failures": failures}


def _start_and_kill(
    variant: Variant, folder: Path, rng: random.Random, seconds: float, *, in_save: bool
) -> tuple[str | None, list[str]]:
    """Starts a run and kills it.

    Args:
        seconds: duration of the undisturbed run.
        in_save: whether to kill inside a save.

    Returns:
        What the run was doing when it was killed (None: it had ended before), and the errors.
    """
    steps = variant.config.train.steps or 1
    left = 1 - max(saved_steps(folder), default=0) / steps
    started = start(variant.config, folder, variant.processes)
    if in_save:
        wait_for_save(started, folder, rng)
    else:
        wait_random_time(started, rng, seconds * (0.3 + 0.7 * left))
    started.kill()
    codes = started.wait()
    if -signal.SIGKILL in codes:
        return "inside a save" if steps_being_saved(folder) else "while deleting" if is_deleting(folder) else "elsewhere", []
    return None, [f"{folder.name} ended with {codes}: {started.output()}"] * any(codes)
