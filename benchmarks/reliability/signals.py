"""R12: tests SIGTERM, SIGINT and SIGUSR1 to rank 0, to another rank or to all, once or twice, at random times, inside saves and
while a run waits for data. The current update is saved, all processes end with exit code 143 in time, and no update is lost.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import run_jobs, start
from benchmarks.reliability.progress import saved_steps, wait_for_save, wait_for_update
from benchmarks.reliability.runs import Variant, finish_and_compare, make_config, make_data, run_undisturbed
from benchmarks.reliability.workers import delay_images

COUNT, QUICK = 100, 8
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STEPS = 300
MAX_SECONDS = 5.0  # for the current update, its save and the end of the processes
DELAY = 0.05  # seconds that a simulated slow disk adds to each image


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` signals, half of them on a run with one process and half on a run with two, with slow data workers."""
    make_data(work)
    config = make_config(work, steps=STEPS, save_every=10, log_every=7)
    with_workers = make_config(work, workers=2, steps=STEPS, save_every=10, log_every=7)
    tested = [Variant("one", config, 1), Variant("two", with_workers, 2)]
    jobs = {variant.name: partial(_signal_runs, work, variant, count // 2, rng.getrandbits(32)) for variant in tested}
    results, failures = run_jobs(work, jobs)
    return {"signals": sum(result.get("signals", 0) for result in results.values()), "runs": results, "failures": failures}


def _signal_runs(work: Path, variant: Variant, count: int, seed: int) -> dict[str, Any]:
    """Sends many signals, to one run after another."""
    rng, failures, times, runs = random.Random(seed), list[str](), list[float](), 0
    expected = run_undisturbed(variant, work / f"{variant.name}_undisturbed")
    while len(times) < count:
        folder = work / f"{variant.name}_{runs}"
        for _ in range(count - len(times)):
            seconds, errors = _start_and_signal(variant, folder, rng)
            failures += errors
            if seconds is None:
                break
            times.append(seconds)
        failures += finish_and_compare(variant, folder, expected)
        runs += 1
        shutil.rmtree(folder, ignore_errors=True)
    figures = {"median seconds": round(sorted(times)[len(times) // 2], 2), "longest seconds": round(max(times), 2)}
    return {"signals": len(times), "runs": runs, **figures, "failures": failures}


def _start_and_signal(variant: Variant, folder: Path, rng: random.Random) -> tuple[float | None, list[str]]:
    """Starts a run and sends it a signal.

    Returns:
        The seconds until all processes ended (None: the run had ended before the signal), and the errors.
    """
    when = rng.choice(("any", "save", "data"))
    started = start(variant.config, folder, variant.processes, delay_images(lambda: DELAY) if when == "data" else None)
    previous = len(started.output(10**6))
    if not wait_for_update(started, folder):
        return None, []
    time.sleep(rng.uniform(0, 0.3))
    if when == "save":
        wait_for_save(started, folder, rng)
    if started.poll():
        return None, []
    began = time.monotonic()
    for _ in range(rng.randint(1, 2)):
        started.kill(*rng.choice([[pid] for pid in started.pids] + [started.pids]), number=rng.choice(SIGNALS))
    codes, seconds = started.wait(), time.monotonic() - began
    if not any(codes):
        return None, []
    stopped, newest = re.findall(r"stopping after step (\d+)", started.output(10**6)[previous:]), saved_steps(folder)[-1:]
    if not stopped and newest == [STEPS]:
        return None, []  # the training had already ended when the signal came
    in_time = codes == [143] * variant.processes and seconds < MAX_SECONDS
    if in_time and (not stopped or newest == [int(stopped[-1])]):
        return seconds, []
    return seconds, [f"{folder.name}, {when}: {codes} after {seconds:.1f} s, newest {newest}: {started.output()}"]
