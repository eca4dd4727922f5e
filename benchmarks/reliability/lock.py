"""R16: tests that only one of many simultaneous starts in one folder trains, and that the others name it. After kill -9 the next
start replaces the lock."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import LIMIT, Started, start
from benchmarks.reliability.moments import trains
from benchmarks.reliability.runs import Variant, config_of, finish, make_data, quicker, whole

COUNT, QUICK = 20, 5
LONG = 100_000  # updates: longer than the slowest start
ROUNDS = 3


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` simultaneous starts, in a new folder and after each kill -9 of the process that holds the lock."""
    make_data(work)
    short = Variant("image", config_of(work), 1)
    expected = whole(short, work / "whole")
    folder, wrong, owners = work / "contested", list[str](), 0
    for _ in range(ROUNDS):
        config = quicker(short.config, steps=LONG)
        started = [start(config, folder) for _ in range(count)]
        together = Started([one.pids[0] for one in started], started[0].log)
        together.until(lambda together=together: len(together.codes) >= count - 1 or together.poll())
        left = [pid for pid in together.pids if pid not in together.codes]
        said = together.said(10**6)
        wrong += [f"{len(left)} train: {sorted(together.codes.values())}: {said[-600:]}"] * (len(left) != 1)
        wrong += [f"ended with {code}" for code in together.codes.values() if code != 2]
        told = re.findall(r"in use by process (\d+) on (\S+?);", said)
        wrong += [f"{len(told)} of {count - 1} say who: {set(told)}"] * (
            told != [(str(left[0]), socket.gethostname())] * (count - 1)
        )
        if not trains(Started(left, together.log), folder):
            wrong.append(f"nobody trains: {together.said()}")
        together.kill()
        together.wait(LIMIT)
        owners += 1
        together.log.unlink(missing_ok=True)
    wrong += finish(Variant("", quicker(short.config), 1), work / "alone", expected)
    return {"starts at once": count, "taken over after kill -9": owners - 1, "wrong": wrong}
