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

from benchmarks.reliability.harness import side_by_side, start
from benchmarks.reliability.moments import lines
from benchmarks.reliability.runs import Variant, config_of, differs, make_data, whole

COUNT, QUICK = 50, 6
BETWEEN = 20  # updates between two deaths
LEAST = 400  # minimum updates of a run, so that starting the workers takes less time than the run


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` deaths, half of them in a run that reads images."""
    make_data(work)
    jobs = {}
    for medium in ("image", "video"):
        steps = max(LEAST, BETWEEN * (count // 2 + 2))
        config = config_of(work, medium, 2, steps=steps, save_every=1000, log_every=1)
        jobs[medium] = partial(_deaths, work, Variant(medium, config, 1), count // 2, draw.getrandbits(32))
    found = side_by_side(work, jobs)
    wrong = [line for one in found.values() for line in one.pop("wrong")]
    return {"deaths": sum(one.get("deaths", 0) for one in found.values()), "runs": found, "wrong": wrong}


def _deaths(work: Path, variant: Variant, count: int, seed: int) -> dict[str, Any]:
    draw, deaths = random.Random(seed), 0
    expected, folder = whole(variant, work / f"{variant.name}_whole"), work / f"{variant.name}_killed"
    started = start(variant.config, folder)
    while deaths < count and not started.poll():
        goal = lines(folder) + draw.randint(1, BETWEEN)
        started.until(lambda goal=goal: lines(folder) >= goal)
        deaths += kill_a_worker(started.pids[0], draw)
        time.sleep(draw.uniform(0, 0.02))
    if any(codes := started.wait()):
        return {"deaths": deaths, "wrong": [f"{variant.name} ended with {codes}: {started.said()}"]}
    short = [f"{variant.name}: the run ended after {deaths} of {count} deaths"] * (deaths < count)
    return {"deaths": deaths, "wrong": short + differs(folder, expected, variant)}


def kill_a_worker(trainer: int, draw: random.Random) -> bool:
    """Kills a worker, and returns whether there was one."""
    with suppress(psutil.Error):
        if children := psutil.Process(trainer).children():
            draw.choice(children).send_signal(signal.SIGKILL)
            return True
    return False
