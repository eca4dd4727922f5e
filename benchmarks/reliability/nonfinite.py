"""R13: tests NaN or infinity in the pixels, in the loss, in one gradient, or in the gradient of one rank, at random steps.

All processes skip that update: weights and optimizer state stay bit-identical; the update is counted, and its samples are named;
the following steps draw the same samples as without the skip. After more than train.max_skipped skips in a row the run stops with a
message, and continues from its last checkpoint to results that are bit-identical to those of the undisturbed run.
"""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mmm.objectives.masked
from benchmarks.reliability.harness import Patch, run_jobs, start
from benchmarks.reliability.recorders import combine, read_samples, record_samples, record_weights
from benchmarks.reliability.runs import SAVE_EVERY, STEPS, Variant, finish_and_compare, make_config, make_data, run_undisturbed
from mmm.objectives.masked import MaskedObjective

COUNT, QUICK = 40, 6
KINDS = ("pixels", "loss", "gradient", "gradient of one rank")
VALUES = (float("nan"), float("inf"), float("-inf"))
MAX_SKIPPED = 2  # value of train.max_skipped


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` runs with one non-finite number each, half of them on two processes, and two with one in every step."""
    make_data(work)
    config = make_config(work, max_skipped=MAX_SKIPPED, log_every=1)
    jobs: dict[str, Any] = {}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        processes = 2 if kind == KINDS[-1] else 1 + number // len(KINDS) % 2
        folder, value = work / f"{number}_{kind.replace(' ', '_')}", rng.choice(VALUES)
        variant, step, rank = Variant(kind, config, processes), rng.randrange(1, STEPS - 1), rng.randrange(processes)
        jobs[folder.name] = partial(_skip_one_update, folder, variant, kind, value, step, rank)
    for processes in (1, 2):
        jobs[f"repeated_{processes}"] = partial(_stop_after_many, work, Variant("repeated", config, processes))
    results, failures = run_jobs(work, jobs)
    return {"runs": len(results), "failures": failures}


def _skip_one_update(folder: Path, variant: Variant, kind: str, value: float, step: int, rank: int) -> dict[str, Any]:
    """Tests a run with a non-finite number in one step."""
    records = folder.with_name(f"{folder.name}_records")
    patch = combine(_make_nonfinite(kind, value, range(step, step + 1), rank), record_samples(records), record_weights(records))
    started = start(variant.config, folder, variant.processes, patch)
    if any(codes := started.wait()):
        return {"failures": [f"{folder.name} ended with {codes}: {started.output()}"]}
    failures = []
    hashes = [dict(json.loads(line) for line in path.read_text().splitlines()) for path in sorted(records.glob("weights_*"))]
    for one, by_step in enumerate(hashes):
        unchanged = [update for update in range(2, STEPS + 1) if by_step[update] == by_step[update - 1]]
        if unchanged != [step + 1]:
            failures.append(f"{folder.name}, rank {one}: nothing changed in updates {unchanged}, expected {[step + 1]}")
    failures += [f"{folder.name}: the ranks' weights differ"] * (len({json.dumps(by_step) for by_step in hashes}) != 1)
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    samples = read_samples(records)
    ids = {row[0] for row in samples[step]}
    if [line["step"] for line in skipped] != [step] or not set(skipped[0]["samples"]) <= ids:
        failures.append(f"{folder.name}: skipped.jsonl contains {skipped}; step {step} was non-finite, with samples {sorted(ids)}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    failures += [f"{folder.name}: not counted once"] * (sum(line.get("skipped", 0) for line in lines) != 1)
    failures += [f"{folder.name}: steps are missing"] * (sorted(samples) != list(range(STEPS)))
    shutil.rmtree(folder)
    return {"failures": failures}


def _stop_after_many(work: Path, variant: Variant) -> dict[str, Any]:
    """Tests a run in which every update after some step has a non-finite number."""
    name = f"repeated_{variant.processes}p"
    expected, folder = run_undisturbed(variant, work / f"{name}_undisturbed"), work / f"{name}_nonfinite"
    step = 3 * SAVE_EVERY + 1  # so that no checkpoint is saved between this step and the stop
    patch = _make_nonfinite("loss", VALUES[0], range(step, STEPS), 0)
    started = start(variant.config, folder, variant.processes, patch)
    codes, output = started.wait(), started.output(4000)
    failures = [f"{name}: ended with {codes}"] * any(code in (0, -9) for code in codes)
    if f"step {step + MAX_SKIPPED}" not in output or f"train.max_skipped {MAX_SKIPPED}" not in output:
        failures.append(f"{name}: the message does not name the step and train.max_skipped: {output[-600:]}")
    return {"failures": failures + finish_and_compare(variant, folder, expected)}


def _make_nonfinite(kind: str, value: float, steps: range, rank: int) -> Patch:
    """Returns a patch that puts a non-finite number into the first micro-batch of some steps.

    Args:
        kind: one of KINDS.
        value: the number.
        rank: the rank whose gradient is changed, if only one is.
    """

    def patch(own: int) -> None:
        if kind == KINDS[-1] and own != rank:
            return
        original, original_prepare = MaskedObjective.loss, mmm.objectives.masked.prepare
        change, last_step = False, -1

        def prepare(*args: Any, **options: Any) -> Any:
            x = original_prepare(*args, **options)
            return x * value if change and kind == "pixels" else x

        def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Any:
            nonlocal change, last_step
            change, last_step = step in steps and step != last_step, step
            result = original(objective, model, batch, step)
            if change and kind == "loss":
                return result * value
            if change and kind.startswith("gradient"):
                return result + _NonfiniteGradient.apply(next(iter(model.parameters())), value)
            return result

        MaskedObjective.loss = loss  # type: ignore[method-assign]
        mmm.objectives.masked.prepare = prepare

    return patch


class _NonfiniteGradient(torch.autograd.Function):
    """Returns zero, with a gradient that is non-finite for one of a weight's values."""

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, value: float) -> torch.Tensor:
        """Returns 0, (...) -> ()."""
        context.shape, context.value = weight.shape, value
        return weight.new_zeros(())

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Returns a gradient that contains the non-finite number in the first place and zeros elsewhere."""
        result = gradient.new_zeros(context.shape)
        result.view(-1)[0] = context.value
        return result, None
