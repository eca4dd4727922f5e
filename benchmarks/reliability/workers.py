"""R6: tests that a run with 0, 1, 2 and 4 randomly delayed data workers has identical samples, masks, pixels and results."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import side_by_side, start
from benchmarks.reliability.runs import STEPS, Variant, config_of, differs, make_data, result
from benchmarks.reliability.spies import both, spy, told
from mmm.data.datasets.images import Images

COUNT, QUICK = 12, 3  # runs with a number of workers above 0
LATE = 0.004  # maximum seconds of delay per image


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` runs, with 1, 2 and 4 workers in turn."""
    make_data(work)
    config = config_of(work)
    first = start(config, work / "none", 1, spy(work / "none_notes"))
    if any(codes := first.wait()):
        raise RuntimeError(f"the run without workers ended with {codes}: {first.said()}")
    expected, seen = result(work / "none", STEPS), told(work / "none_notes")
    jobs = {}
    for place in range(count):
        workers = (1, 2, 4)[place % 3]
        variant = Variant(f"{workers}_{place}", replace(config, data=replace(config.data, workers=workers)), 1)
        jobs[variant.name] = partial(_with_workers, work, variant, expected, seen, draw.getrandbits(32))
    found = side_by_side(work, jobs)
    return {"runs": len(found), "wrong": [line for one in found.values() for line in one["wrong"]]}


def _with_workers(work: Path, variant: Variant, expected: dict[str, Any], seen: dict[int, Any], seed: int) -> dict[str, Any]:
    folder, notes = work / variant.name, work / f"{variant.name}_notes"
    started = start(variant.config, folder, 1, both(spy(notes), partial(_late, seed)))
    if any(codes := started.wait()):
        return {"wrong": [f"{variant.name} ended with {codes}: {started.said()}"]}
    other = [f"{variant.name}, step {step}: other samples, masks or pixels" for step in seen if told(notes).get(step) != seen[step]]
    return {"wrong": other[:3] + differs(folder, expected, variant)}


def _late(seed: int, rank: int) -> None:
    """Delays every image by a random time."""
    read, draw = Images.read, random.Random(seed)

    def late(self: Images, index: int, size_hint: int | None = None) -> Any:
        time.sleep(draw.uniform(0, LATE))
        return read(self, index, size_hint)

    Images.read = late  # type: ignore[method-assign]
