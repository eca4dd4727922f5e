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

from benchmarks.reliability.harness import run_jobs
from benchmarks.reliability.runs import STEPS, Variant, finish_and_compare, make_config, make_data, run_undisturbed

COUNT, QUICK = STEPS, 3


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` of the steps of each kind of run."""
    make_data(work)
    jobs = {}
    for medium in ("image", "video"):
        variant = Variant(medium, make_config(work, medium, save_every=1, keep_last=None, log_every=1), 1)
        steps = sorted(rng.sample(range(1, STEPS + 1), min(count, STEPS)))
        jobs[medium] = partial(_restore, work, variant, steps)
    results, failures = run_jobs(work, jobs)
    return {"runs": results, "failures": failures}


def _restore(work: Path, variant: Variant, steps: list[int]) -> dict[str, Any]:
    """Starts from each of these steps, in a folder with only the run's config, its metrics and that checkpoint."""
    source, failures, exact = work / f"{variant.name}_undisturbed", list[str](), 0
    expected = run_undisturbed(variant, source)
    for step in steps:
        folder, name = work / f"{variant.name}_{step}", f"step_{step:08d}"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("step_*"))
        shutil.copytree(source / "checkpoints" / name, folder / "checkpoints" / name)
        differences = finish_and_compare(variant, folder, expected)
        failures, exact = failures + differences, exact + (not differences)
        shutil.rmtree(folder, ignore_errors=True)
    return {"restores": len(steps), "bit-identical": exact, "failures": failures}
