"""R4: tests a run of 40 updates with a checkpoint after each, and starts from each checkpoint: results are bit-identical.

The runs train on images and on videos, with drop path, gradient accumulation, an average of the weights and several epochs. No
exceptions are allowed.
"""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import side_by_side
from benchmarks.reliability.runs import STEPS, Variant, config_of, finish, make_data, whole

COUNT, QUICK = STEPS, 3


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` of the steps of each kind of run."""
    make_data(work)
    jobs = {}
    for medium in ("image", "video"):
        variant = Variant(medium, config_of(work, medium, save_every=1, keep_last=None, log_every=1), 1)
        steps = sorted(draw.sample(range(1, STEPS + 1), min(count, STEPS)))
        jobs[medium] = partial(restore, work, variant, steps)
    found = side_by_side(work, jobs)
    return {"restores": found, "wrong": [line for one in found.values() for line in one["wrong"]]}


def restore(work: Path, variant: Variant, steps: list[int]) -> dict[str, Any]:
    """Starts from each of these steps, in a folder with only the run's config, its metrics and that checkpoint."""
    source, wrong, exact = work / f"{variant.name}_whole", list[str](), 0
    expected = whole(variant, source)
    for step in steps:
        folder, name = work / f"{variant.name}_{step}", f"step_{step:08d}"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("step_*"))
        shutil.copytree(source / "checkpoints" / name, folder / "checkpoints" / name)
        amiss = finish(variant, folder, expected)
        wrong, exact = wrong + amiss, exact + (not amiss)
        shutil.rmtree(folder, ignore_errors=True)
    return {"from": len(steps), "bit-identical": exact, "wrong": wrong}
