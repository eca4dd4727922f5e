"""R12: tests SIGTERM, SIGINT and SIGUSR1 to rank 0, to another rank or to all, once or twice, at random times, inside saves and
while a run waits for data. The current update is saved, all processes end with 143 in time, and no update is lost.
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

from benchmarks.reliability.harness import Sabotage, side_by_side, start
from benchmarks.reliability.moments import inside_a_save, saved, trains
from benchmarks.reliability.runs import Variant, config_of, finish, make_data, whole
from mmm.data.datasets.images import Images

COUNT, QUICK = 100, 8
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STEPS = 300
IN_TIME = 5.0  # seconds for the current update, its save and the end of the processes
WAIT = 0.05  # seconds that a simulated slow disk adds to each image


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` signals, half of them on a run with one process and half on a run with two, with slow data workers."""
    make_data(work)
    config = config_of(work, steps=STEPS, save_every=10, log_every=7)
    slow = config_of(work, workers=2, steps=STEPS, save_every=10, log_every=7)
    chosen = [Variant("one", config, 1), Variant("two", slow, 2)]
    jobs = {variant.name: partial(signal_runs, work, variant, count // 2, draw.getrandbits(32)) for variant in chosen}
    found = side_by_side(work, jobs)
    wrong = [line for one in found.values() for line in one.pop("wrong")]
    return {"signals": sum(one.get("signals", 0) for one in found.values()), "runs": found, "wrong": wrong}


def signal_runs(work: Path, variant: Variant, count: int, seed: int) -> dict[str, Any]:
    """Sends many signals, to one run after another."""
    draw, wrong, times, runs = random.Random(seed), list[str](), list[float](), 0
    expected = whole(variant, work / f"{variant.name}_whole")
    while len(times) < count:
        folder = work / f"{variant.name}_{runs}"
        for _ in range(count - len(times)):
            took, said = _stop(variant, folder, draw)
            wrong += said
            if took is None:
                break
            times.append(took)
        wrong += finish(variant, folder, expected)
        runs += 1
        shutil.rmtree(folder, ignore_errors=True)
    ordered = sorted(times)
    middle, longest = ordered[len(ordered) // 2], ordered[-1]
    return {"signals": len(times), "runs": runs, "median seconds": round(middle, 2), "longest": round(longest, 2), "wrong": wrong}


def _stop(variant: Variant, folder: Path, draw: random.Random) -> tuple[float | None, list[str]]:
    """Sends a signal to one start. Returns the time until it ended (None: it ended earlier) and the errors."""
    moment = draw.choice(("any", "save", "data"))
    started = start(variant.config, folder, variant.processes, _slow_disk() if moment == "data" else None)
    said = len(started.said(10**6))
    if not trains(started, folder):
        return None, []
    time.sleep(draw.uniform(0, 0.3))
    if moment == "save":
        inside_a_save(started, folder, draw)
    if started.poll():
        return None, []
    began = time.monotonic()
    for _ in range(draw.randint(1, 2)):
        started.kill(*draw.choice([[pid] for pid in started.pids] + [started.pids]), number=draw.choice(SIGNALS))
    codes, took = started.wait(), time.monotonic() - began
    if not any(codes):
        return None, []
    stopped = re.findall(r"stopping after step (\d+)", started.said(10**6)[said:])
    if not stopped and saved(folder)[-1:] == [STEPS]:
        return None, []  # the training had already ended when the signal came
    fine = codes == [143] * variant.processes and took < IN_TIME
    if fine and (not stopped or saved(folder)[-1:] == [int(stopped[-1])]):
        return took, []
    return took, [f"{folder.name}, {moment}: {codes} after {took:.1f} s, newest {saved(folder)[-1:]}: {started.said()}"]


def _slow_disk() -> Sabotage:
    """Delays every image."""

    def sabotage(rank: int) -> None:
        read = Images.read

        def late(self: Images, index: int, size_hint: int | None = None) -> Any:
            time.sleep(WAIT)
            return read(self, index, size_hint)

        Images.read = late  # type: ignore[method-assign]

    return sabotage
