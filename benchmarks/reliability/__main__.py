"""Tests one promise of reliability, or all of them.

    python -m benchmarks.reliability kills --count 500 --out kills.json
    python -m benchmarks.reliability soak --minutes 30
    python -m benchmarks.reliability all --quick

Prints one JSON object per goal, with its results and every failure under `wrong`; the exit code is 1 if there is a failure. The
docstring of a goal's file in this folder describes what it tests. Needs Linux; expects two idle cores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.reliability.circumstances import circumstances
from benchmarks.reliability.harness import warm

GOALS = (
    *("kills", "crash_points", "damage", "restore", "elastic", "workers", "worker_death", "zoo", "ranks", "signals", "nonfinite"),
    *("disk_full", "identity", "lock", "hostile", "secrets", "cost", "soak"),
)


def try_goal(name: str, count: int | None, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """Returns the results of one goal. An exception counts as a failure of the goal.

    Args:
        count: number of trials. None: the goal's COUNT, or QUICK with `quick`.
    """
    began = time.monotonic()
    goal = importlib.import_module(f"benchmarks.reliability.{name}")
    count = (goal.QUICK if quick else goal.COUNT) if count is None else count
    with tempfile.TemporaryDirectory(prefix=f"reliability-{name}-") as work:
        try:
            found = goal.run(Path(work), count, random.Random(seed))
        except Exception:
            found = {"wrong": [traceback.format_exc()]}
    seconds = round(time.monotonic() - began, 1)
    return {"goal": name, "count": count, "seed": seed, **found, "seconds": seconds, **circumstances()}


def main() -> None:
    """Parses the command line, runs the goals, and prints the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("goal", choices=(*GOALS, "all"))
    parser.add_argument("--count", "--minutes", type=int, help="how many; of soak: minutes; none: the goal's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few of each")
    parser.add_argument("--out", type=Path, help="a file for the JSON, beside the screen")
    given = parser.parse_args()
    logging.getLogger("mmm").setLevel(logging.ERROR)  # trainings write their messages into their own logs
    warm()
    names = GOALS if given.goal == "all" else (given.goal,)
    found = []
    for name in names:
        found.append(try_goal(name, given.count, given.seed, quick=given.quick))
        print(json.dumps(found[-1], indent=2), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found if given.goal == "all" else found[0], indent=2) + "\n")
    sys.exit(1 if any(one["wrong"] for one in found) else 0)


if __name__ == "__main__":
    main()
