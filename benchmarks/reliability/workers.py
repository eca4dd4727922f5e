"""R6: tests that a run with 0, 1, 2 and 4 randomly delayed data workers has identical samples, masks, pixels and results."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import Patch, run_jobs, start
from benchmarks.reliability.recorders import combine, read_samples, record_samples
from benchmarks.reliability.runs import Variant, compare, make_config, make_data, run_undisturbed
from mmm.data.datasets.images import Images

COUNT, QUICK = 12, 3  # runs with a number of workers above 0
MAX_DELAY = 0.004  # seconds per image


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` runs, with 1, 2 and 4 workers in turn."""
    make_data(work)
    config = make_config(work)
    expected = run_undisturbed(Variant("no workers", config, 1), work / "undisturbed", record_samples(work / "records"))
    samples = read_samples(work / "records")
    jobs = {}
    for number in range(count):
        workers = (1, 2, 4)[number % 3]
        variant = Variant(f"{workers}_{number}", replace(config, data=replace(config.data, workers=workers)), 1)
        jobs[variant.name] = partial(_train_with_workers, work, variant, expected, samples, rng.getrandbits(32))
    results, failures = run_jobs(work, jobs)
    return {"runs": len(results), "failures": failures}


def _train_with_workers(
    work: Path, variant: Variant, expected: dict[str, Any], samples: dict[int, Any], seed: int
) -> dict[str, Any]:
    folder, records, rng = work / variant.name, work / f"{variant.name}_records", random.Random(seed)
    patch = combine(record_samples(records), delay_images(lambda: rng.uniform(0, MAX_DELAY)))
    started = start(variant.config, folder, 1, patch)
    if any(codes := started.wait()):
        return {"failures": [f"{variant.name} ended with {codes}: {started.output()}"]}
    read = read_samples(records)
    different = [
        f"{variant.name}, step {step}: other samples, masks or pixels" for step in samples if read.get(step) != samples[step]
    ]
    return {"failures": different[:3] + compare(variant, folder, expected)}


def delay_images(seconds: Callable[[], float]) -> Patch:
    """Returns a patch that delays the reading of every image by `seconds()`."""

    def patch(rank: int) -> None:
        original = Images.read

        def read(self: Images, index: int, size_hint: int | None = None) -> Any:
            time.sleep(seconds())
            return original(self, index, size_hint)

        Images.read = read  # type: ignore[method-assign]

    return patch
