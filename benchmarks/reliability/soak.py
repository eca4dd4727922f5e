"""R20: tests random faults, one after another, for a given time: kills, signals, dead data workers, a damaged newest checkpoint, a
full disk, another number of data workers. Every run ends with results bit-identical to the undisturbed run. At the same time one
long training continues through many deaths of its data workers; its memory and its number of file handles must stay constant.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.reliability.damage import damaged_versions, replace_file
from benchmarks.reliability.disk_full import LIMITS, limit_file_size
from benchmarks.reliability.harness import ProcessGroup, run_jobs, start
from benchmarks.reliability.progress import logged_lines, saved_steps, wait_for_save, wait_for_update, wait_random_time
from benchmarks.reliability.runs import STEPS, Variant, finish_and_compare, make_config, make_data, run_undisturbed, variants
from benchmarks.reliability.worker_death import kill_a_worker
from mmm.train.checkpoint.writer import damage

COUNT, QUICK = 30, 1  # minutes
MAX_GROWTH = 1.0  # MiB per thousand updates
WARMUP = 0.3  # share of the long training's time after which its memory is measured
MAX_FAULTS = 6  # per run
LOG_EVERY = 10  # updates of the long training between two lines of metrics

Fault = Callable[[Variant, Path, random.Random], None]


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Runs the tests for `count` minutes."""
    make_data(work)
    end = time.monotonic() + 60 * count
    jobs = {
        "faults": partial(_make_faults, work, rng.getrandbits(32), end),
        "long training": partial(_train_long, work, rng.getrandbits(32), end),
    }
    results, failures = run_jobs(work, jobs)
    return {**results, "failures": failures}


def _make_faults(work: Path, seed: int, end: float) -> dict[str, Any]:
    """Disturbs one run after another."""
    rng, counts, failures, exact = random.Random(seed), Counter[str](), list[str](), 0
    tested = variants(work)
    expected: dict[str, Any] = {}
    while time.monotonic() < end:
        variant = rng.choice(tested)
        if variant.name not in expected:
            expected[variant.name] = run_undisturbed(variant, work / f"{variant.name}_undisturbed")
        folder = work / f"run_{counts.total()}"
        for _ in range(rng.randint(1, MAX_FAULTS)):
            name = rng.choice(list(FAULTS))
            FAULTS[name](variant, folder, rng)
            counts[name] += 1
        differences = finish_and_compare(variant, folder, expected[variant.name])
        failures, exact = failures + differences, exact + (not differences)
        shutil.rmtree(folder, ignore_errors=True)
    return {"faults": counts, "bit-identical runs": exact, "failures": failures}


def _kill(variant: Variant, folder: Path, rng: random.Random) -> None:
    started = start(variant.config, folder, variant.processes)
    wait_for_save(started, folder, rng) if rng.random() < 0.5 else wait_random_time(started, rng, 2.0)
    started.kill()
    started.wait()


def _signal(variant: Variant, folder: Path, rng: random.Random) -> None:
    started = start(variant.config, folder, variant.processes)
    if wait_for_update(started, folder):
        started.kill(rng.choice(started.pids), number=rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))
    started.wait()


def _kill_worker(variant: Variant, folder: Path, rng: random.Random) -> None:
    with_workers = replace(variant.config, data=replace(variant.config.data, workers=2))
    started = start(with_workers, folder, variant.processes)
    if wait_for_update(started, folder):
        kill_a_worker(rng.choice(started.pids), rng)
        wait_random_time(started, rng, 0.3)
    started.kill(number=signal.SIGTERM)
    started.wait()


def _damage(variant: Variant, folder: Path, rng: random.Random) -> None:
    """Damages the newest checkpoint if there is another one and if it is not already damaged."""
    steps = saved_steps(folder)
    newest = folder / "checkpoints" / f"step_{steps[-1] if steps else 0:08d}"
    if len(steps) > 1 and damage(newest) is None:
        file = rng.choice(sorted(newest.glob("*.safetensors")))
        replace_file(file, rng.choice(list(damaged_versions(file.read_bytes(), [b"", b"x"], rng).values())))


def _full_disk(variant: Variant, folder: Path, rng: random.Random) -> None:
    first = rng.randrange(1, STEPS)
    patch = limit_file_size(rng.choice(LIMITS), first, rng.randint(first, STEPS))
    started = start(variant.config, folder, variant.processes, patch)
    wait_random_time(started, rng, 3.0)
    started.kill()
    started.wait()


FAULTS: dict[str, Fault] = {
    "kill": _kill,
    "signal": _signal,
    "worker killed": _kill_worker,
    "newest checkpoint damaged": _damage,
    "full disk": _full_disk,
}


def _train_long(work: Path, seed: int, end: float) -> dict[str, Any]:
    """Runs one training during which data workers are killed, and measures its memory and file handles."""
    rng, measured, deaths = random.Random(seed), list[tuple[int, int, int]](), 0
    train = {"steps": 10_000_000, "save_every": 50, "log_every": LOG_EVERY, "final_learning_rate": 0.1}
    folder = work / "long_run"
    started = start(make_config(work, workers=2, **train), folder)
    if not wait_for_update(started, folder):
        return {"failures": [f"the long training ended: {started.output()}"]}
    process = psutil.Process(started.pids[0])
    while time.monotonic() < end and not started.poll():
        wait_random_time(started, rng, 4.0)
        deaths += kill_a_worker(process.pid, rng)
        wait_for_update(started, folder)  # so that the workers have been started again
        with suppress(psutil.Error):  # the training may have ended; `_check_long_run` reports it
            measured.append((logged_lines(folder) * LOG_EVERY, process.memory_info().rss, process.num_fds()))
    return _check_long_run(started, measured, deaths)


def _check_long_run(started: ProcessGroup, measured: list[tuple[int, int, int]], deaths: int) -> dict[str, Any]:
    """Ends the training, and returns the growth of its memory and file handles.

    Args:
        measured: updates, bytes of memory and file handles, at several times.
    """
    if started.poll():
        return {"failures": [f"the long training ended with {started.codes}: {started.output()}"]}
    started.kill(number=signal.SIGTERM)
    codes = started.wait()
    failures = [f"the long training ended with {codes}"] * (codes != [143])
    steps, memory, handles = np.array(measured[int(WARMUP * len(measured)) :], dtype=float).reshape(-1, 3).T
    if len(steps) < 3:
        return {"worker deaths": deaths, "failures": [*failures, "too few measurements of the memory"]}
    growth = float(np.polyfit(steps / 1000, memory / 2**20, 1)[0])
    figures = {"updates": int(steps[-1]), "worker deaths": deaths, "MiB per thousand updates": round(growth, 3)}
    figures |= {"MiB": round(memory[-1] / 2**20), "file handles": sorted(set(handles.astype(int).tolist()))}
    if growth > MAX_GROWTH and memory[-1] - memory[0] > 16 * 2**20:
        failures.append(f"memory grows by {growth:.2f} MiB per thousand updates")
    third = -(-len(handles) // 3)  # medians, because single values change with the workers
    early, late = float(np.median(handles[:third])), float(np.median(handles[-third:]))
    failures += [f"file handles grow from {early:g} to {late:g}"] * (late > early + 4)
    return {**figures, "failures": failures}
