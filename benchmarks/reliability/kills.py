"""R1: tests SIGKILL at random moments, half of them inside a save, each followed by the same command until the run ends.

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

from benchmarks.reliability.harness import side_by_side, start
from benchmarks.reliability.moments import asides, at_random, deleting, inside_a_save, saved
from benchmarks.reliability.runs import Variant, finish, make_data, variants, whole

COUNT, QUICK = 500, 16
LIVES = 5  # number of kills before a run may end
INSIDE = 0.2  # minimum share of all kills that must fall into a save


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` kills, distributed evenly over the variants."""
    make_data(work)
    chosen = variants(work)
    jobs = {
        variant.name: partial(kill, work, variant, count // len(chosen) + (place < count % len(chosen)), draw.getrandbits(32))
        for place, variant in enumerate(chosen)
    }
    found = side_by_side(work, jobs)
    total = sum((Counter(one.get("kills", {})) for one in found.values()), Counter[str]())
    wrong = [line for one in found.values() for line in one["wrong"]]
    if total["inside a save"] < INSIDE * total.total():
        wrong.append(f"only {total['inside a save']} of {total.total()} kills fell into a save")
    runs = sum(one.get("runs", 0) for one in found.values())
    exact = sum(one.get("exact", 0) for one in found.values())
    return {"kills": total.total(), "where": total, "runs": runs, "bit-identical": exact, "variants": found, "wrong": wrong}


def kill(work: Path, variant: Variant, count: int, seed: int) -> dict[str, Any]:
    """Kills runs of one variant many times; each run finally ends."""
    draw, where, wrong, runs, began = random.Random(seed), Counter[str](), list[str](), 0, time.monotonic()
    expected = whole(variant, work / f"{variant.name}_whole")
    seconds = time.monotonic() - began
    exact = 0
    while where.total() < count:
        folder = work / f"{variant.name}_{runs}"
        for _ in range(min(LIVES, count - where.total())):
            place, said = _life(variant, folder, draw, seconds, save=where.total() % 2 == 1)
            where.update([place] if place else [])
            wrong += said
            if not place:
                break
        amiss = finish(variant, folder, expected)
        wrong, runs, exact = wrong + amiss, runs + 1, exact + (not amiss)
        shutil.rmtree(folder, ignore_errors=True)
    spent = round(time.monotonic() - began, 1)
    return {"kills": where, "runs": runs, "exact": exact, "undisturbed": round(seconds, 2), "seconds": spent, "wrong": wrong}


def _life(variant: Variant, folder: Path, draw: random.Random, seconds: float, *, save: bool) -> tuple[str | None, list[str]]:
    """Starts and kills a run. Returns the moment of the kill (None: the run ended earlier) and the errors."""
    steps = variant.config.train.steps or 1
    left = 1 - max(saved(folder), default=0) / steps
    started = start(variant.config, folder, variant.processes)
    if save:
        inside_a_save(started, folder, draw)
    else:
        at_random(started, draw, seconds * (0.3 + 0.7 * left))
    started.kill()
    codes = started.wait()
    if -signal.SIGKILL in codes:
        return "inside a save" if asides(folder) else "while deleting" if deleting(folder) else "elsewhere", []
    return None, [f"{folder.name} ended with {codes}: {started.said()}"] * any(codes)
