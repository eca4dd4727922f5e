"""Tests one promise of reliability, or all of them.

    python -m benchmarks.reliability kills --count 500 --out kills.json
    python -m benchmarks.reliability soak --minutes 30
    python -m benchmarks.reliability all --quick

Prints one JSON object per goal, with its results and a list of `failures`; the exit code is 1 if there is a failure. The docstring
of a goal's file in this folder describes what it tests. Needs Linux; expects two idle cores.
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

from benchmarks.reliability.environment import describe_environment
from benchmarks.reliability.harness import import_modules

GOALS = (
    *("kills", "crash_points", "damage", "restore", "elastic", "workers", "worker_death", "malformed_inputs", "ranks", "signals"),
    *("nonfinite", "disk_full", "identity", "lock", "hostile", "secrets", "cost", "soak"),
)


def run_goal(name: str, count: int | None, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """Returns the results of one goal. An exception counts as a failure of the goal.

    Args:
        count: number of trials. None: the goal's COUNT, or QUICK with `quick`.
    """
    start = time.monotonic()
    goal = importlib.import_module(f"benchmarks.reliability.{name}")
    count = (goal.QUICK if quick else goal.COUNT) if count is None else count
    with tempfile.TemporaryDirectory(prefix=f"reliability-{name}-") as work:
        try:
            result = goal.run(Path(work), count, random.Random(seed))
        except Exception:
            result = {"failures": [traceback.format_exc()]}
    seconds = round(time.monotonic() - start, 1)
    return {"goal": name, "count": count, "seed": seed, **result, "seconds": seconds, **describe_environment()}


def main() -> None:
    """Parses the command line, runs the goals, and prints the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("goal", choices=(*GOALS, "all"))
    parser.add_argument("--count", "--minutes", type=int, help="number of trials, or of minutes (soak); default: the goal's COUNT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="run few trials of each goal")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    logging.getLogger("mmm").setLevel(logging.ERROR)  # trainings write their messages into their own logs
    import_modules()
    names = GOALS if options.goal == "all" else (options.goal,)
    results = []
    for name in names:
        results.append(run_goal(name, options.count, options.seed, quick=options.quick))
        print(json.dumps(results[-1], indent=2), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(results if options.goal == "all" else results[0], indent=2) + "\n")
    sys.exit(1 if any(result["failures"] for result in results) else 0)


if __name__ == "__main__":
    main()
