"""R16: tests that only one of many simultaneous starts in one folder trains, and that the others name it. After kill -9 the next
start replaces the lock."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import ProcessGroup, start
from benchmarks.reliability.progress import wait_for_update
from benchmarks.reliability.runs import make_config, make_data

COUNT, QUICK = 20, 5
STEPS = 100_000  # more than a run makes before the slowest start
ROUNDS = 3


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` simultaneous starts, in a new folder and after each kill -9 of the process that holds the lock."""
    make_data(work)
    config, folder, failures = make_config(work, steps=STEPS), work / "contested", list[str]()
    for _ in range(ROUNDS):
        started = [start(config, folder) for _ in range(count)]
        group = ProcessGroup([one.pids[0] for one in started], started[0].log)
        group.wait_until(lambda group=group: len(group.codes) >= count - 1 or group.poll())
        alive = [pid for pid in group.pids if pid not in group.codes]
        output = group.output(10**6)
        failures += [f"{len(alive)} train: {sorted(group.codes.values())}: {output[-600:]}"] * (len(alive) != 1)
        failures += [f"ended with {code}" for code in group.codes.values() if code != 2]
        named = re.findall(r"in use by process (\d+) on (\S+?);", output)
        if named != [(str(pid), socket.gethostname()) for pid in alive] * (count - 1):
            failures.append(f"{len(named)} of {count - 1} name the owner of the lock: {set(named)}")
        if not wait_for_update(ProcessGroup(alive, group.log), folder):
            failures.append(f"no process trains: {group.output()}")
        group.kill()
        group.wait()
        group.log.unlink(missing_ok=True)
    return {"simultaneous starts": count, "locks replaced after kill -9": ROUNDS - 1, "failures": failures}
