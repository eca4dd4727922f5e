"""R10: tests runs, on images and on videos, in which a random data worker is killed many times. It is replaced, its samples are
delivered again, and the run ends with bit-identical results.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reliability.harness import run_jobs, start
from benchmarks.reliability.progress import logged_lines
from benchmarks.reliability.runs import Variant, compare, make_config, make_data, run_undisturbed

COUNT, QUICK = 50, 6
MAX_INTERVAL = 20  # updates between two deaths
MIN_STEPS = 400  # so that starting the workers takes less time than the run


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` deaths, half of them in a run that reads images."""
    make_data(work)
    jobs = {}
    for medium in ("image", "video"):
        steps = max(MIN_STEPS, MAX_INTERVAL * (count // 2 + 2))
        config = make_config(work, medium, 2, steps=steps, save_every=1000, log_every=1)
        jobs[medium] = partial(_kill_workers, work, Variant(medium, config, 1), count // 2, rng.getrandbits(32))
    results, failures = run_jobs(work, jobs)
    return {"deaths": sum(result.get("deaths", 0) for result in results.values()), "runs": results, "failures": failures}


def _kill_workers(work: Path, variant: Variant, count: int, seed: int) -> dict[str, Any]:
    rng, deaths = random.Random(seed), 0
    expected, folder = run_undisturbed(variant, work / f"{variant.name}_undisturbed"), work / f"{variant.name}_killed"
    started = start(variant.config, folder)
    while deaths < count and not started.poll():
        lines = logged_lines(folder) + rng.randint(1, MAX_INTERVAL)
        started.wait_until(lambda lines=lines: logged_lines(folder) >= lines)
        deaths += kill_a_worker(started.pids[0], rng)
        time.sleep(rng.uniform(0, 0.02))
    if any(codes := started.wait()):
        return {"deaths": deaths, "failures": [f"{variant.name} ended with {codes}: {started.output()}"]}
    failures = [f"{variant.name}: the run ended after {deaths} of {count} deaths"] * (deaths < count)
    return {"deaths": deaths, "failures": failures + compare(variant, folder, expected)}


def kill_a_worker(trainer: int, rng: random.Random) -> bool:
    """Kills a data worker of a training process, and returns whether there was one."""
    with suppress(psutil.Error):
        if children := psutil.Process(trainer).children():
            rng.choice(children).send_signal(signal.SIGKILL)
            return True
    return False
