"""R20: tests random faults, one after another, for a given time: kills, signals, dead data workers, a damaged newest checkpoint, a
full disk, another number of data workers. Every run ends with results bit-identical to the undisturbed run. At the same time
another training continues through many deaths of its data workers; its memory and its number of file handles must stay constant.
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

from benchmarks.reliability.damage import harms
from benchmarks.reliability.disk_full import LIMITS, no_room
from benchmarks.reliability.harness import Started, side_by_side, start
from benchmarks.reliability.moments import at_random, inside_a_save, lines, saved, trains
from benchmarks.reliability.runs import STEPS, Variant, finish, make_data, quicker, variants, whole
from benchmarks.reliability.worker_death import kill_a_worker
from mmm.train.checkpoint.writer import damage

COUNT, QUICK = 30, 1  # minutes
SLOPE = 1.0  # maximum growth in MiB per thousand updates
SETTLED = 0.3  # share of the long training's time after which its memory is measured
LIVES = 6  # maximum number of faults per run

Fault = Callable[[Variant, Path, random.Random], None]


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Runs the tests for `count` minutes."""
    make_data(work)
    end = time.monotonic() + 60 * count
    jobs = {
        "faults": partial(_faults, work, draw.getrandbits(32), end),
        "witness": partial(_witness, work, draw.getrandbits(32), end),
    }
    found = side_by_side(work, jobs)
    return {**found, "wrong": [line for one in found.values() for line in one.pop("wrong")]}


def _faults(work: Path, seed: int, end: float) -> dict[str, Any]:
    draw, tally, wrong, exact = random.Random(seed), Counter[str](), list[str](), 0
    chosen = variants(work)
    expected: dict[str, Any] = {}
    while time.monotonic() < end:
        variant = draw.choice(chosen)
        if variant.name not in expected:
            expected[variant.name] = whole(variant, work / f"{variant.name}_whole")
        folder = work / f"run_{tally.total()}"
        for _ in range(draw.randint(1, LIVES)):
            name = draw.choice(list(FAULTS))
            FAULTS[name](variant, folder, draw)
            tally[name] += 1
        amiss = finish(variant, folder, expected[variant.name])
        wrong, exact = wrong + amiss, exact + (not amiss)
        shutil.rmtree(folder, ignore_errors=True)
    return {"faults": tally, "bit-identical runs": exact, "wrong": wrong}


def _kill(variant: Variant, folder: Path, draw: random.Random) -> None:
    started = start(variant.config, folder, variant.processes)
    inside_a_save(started, folder, draw) if draw.random() < 0.5 else at_random(started, draw, 2.0)
    started.kill()
    started.wait()


def _signal(variant: Variant, folder: Path, draw: random.Random) -> None:
    started = start(variant.config, folder, variant.processes)
    if trains(started, folder):
        started.kill(draw.choice(started.pids), number=draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))
    started.wait()


def _kill_worker(variant: Variant, folder: Path, draw: random.Random) -> None:
    workers = replace(variant.config, data=replace(variant.config.data, workers=2))
    started = start(workers, folder, variant.processes)
    if trains(started, folder):
        kill_a_worker(draw.choice(started.pids), draw)
        at_random(started, draw, 0.3)
    started.kill(number=signal.SIGTERM)
    started.wait()


def _damage(variant: Variant, folder: Path, draw: random.Random) -> None:
    """Damages the newest checkpoint if there is another one and if it is not already damaged."""
    steps = saved(folder)
    newest = folder / "checkpoints" / f"step_{steps[-1] if steps else 0:08d}"
    if len(steps) > 1 and damage(newest) is None:
        file = draw.choice(sorted(newest.glob("*.safetensors")))
        harmed = draw.choice(list(harms(file.read_bytes(), [b"", b"x"], draw).values()))
        file.unlink() if harmed is None else file.write_bytes(harmed)


def _full_disk(variant: Variant, folder: Path, draw: random.Random) -> None:
    first = draw.randrange(1, STEPS)
    started = start(variant.config, folder, variant.processes, no_room(draw.choice(LIMITS), first, draw.randint(first, STEPS)))
    at_random(started, draw, 3.0)
    started.kill()
    started.wait()


FAULTS: dict[str, Fault] = {
    "kill": _kill,
    "signal": _signal,
    "worker killed": _kill_worker,
    "newest checkpoint damaged": _damage,
    "full disk": _full_disk,
}


def _witness(work: Path, seed: int, end: float) -> dict[str, Any]:
    """Runs one training during which data workers are killed."""
    draw, seen, deaths = random.Random(seed), list[tuple[int, int, int]](), 0
    config = quicker(variants(work)[1].config, steps=10_000_000, save_every=50, log_every=10, final_learning_rate=0.1)
    folder = work / "witness_run"
    started = start(config, folder)
    if not trains(started, folder):
        return {"wrong": [f"the witness ended: {started.said()}"]}
    process = psutil.Process(started.pids[0])
    while time.monotonic() < end and not started.poll():
        at_random(started, draw, 4.0)
        deaths += kill_a_worker(process.pid, draw)
        trains(started, folder)  # so that the workers have been started again
        with suppress(psutil.Error):  # the training may have ended; `_judge` reports it
            seen.append((lines(folder) * 10, process.memory_info().rss, process.num_fds()))
    return _judge(started, seen, deaths)


def _judge(started: Started, seen: list[tuple[int, int, int]], deaths: int) -> dict[str, Any]:
    if started.poll():
        return {"wrong": [f"the witness ended with {started.codes}: {started.said()}"]}
    started.kill(number=signal.SIGTERM)
    codes = started.wait()
    wrong = [f"the witness ended with {codes}"] * (codes != [143])
    steps, memory, handles = np.array(seen[int(SETTLED * len(seen)) :], dtype=float).reshape(-1, 3).T
    if len(steps) < 3:
        return {"worker deaths": deaths, "wrong": [*wrong, "too short to say anything of memory"]}
    slope = float(np.polyfit(steps / 1000, memory / 2**20, 1)[0])
    figures = {"updates": int(steps[-1]), "worker deaths": deaths, "MiB a thousand updates": round(slope, 3)}
    figures |= {"MiB": round(memory[-1] / 2**20), "file handles": sorted(set(handles.astype(int).tolist()))}
    wrong += [f"memory grows by {slope:.2f} MiB a thousand updates"] * int(slope > SLOPE and memory[-1] - memory[0] > 16 * 2**20)
    third = -(-len(handles) // 3)  # medians, because single values change with the workers
    early, late = float(np.median(handles[:third])), float(np.median(handles[-third:]))
    wrong += [f"file handles grow from {early:g} to {late:g}"] * (late > early + 4)
    return {**figures, "wrong": wrong}
