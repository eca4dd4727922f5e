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
from benchmarks.reliability.harness import Sabotage, side_by_side, start
from benchmarks.reliability.runs import EVERY, STEPS, Variant, config_of, finish, make_data, whole
from benchmarks.reliability.spies import both, spy, told, watch_weights
from mmm.objectives.masked import MaskedObjective

COUNT, QUICK = 40, 6
KINDS = ("pixels", "loss", "gradient", "gradient of one rank")
VALUES = (float("nan"), float("inf"), float("-inf"))
MOST = 2  # value of train.max_skipped


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` runs with one non-finite number each, half of them on two processes, and two with one in every step."""
    make_data(work)
    config = config_of(work, max_skipped=MOST, log_every=1)
    jobs: dict[str, Any] = {}
    for place in range(count):
        kind = KINDS[place % len(KINDS)]
        processes = 2 if kind == KINDS[-1] else 1 + place // len(KINDS) % 2
        folder, value = work / f"{place}_{kind.replace(' ', '_')}", draw.choice(VALUES)
        step = draw.randrange(1, STEPS - 1)
        jobs[folder.name] = partial(_one, folder, Variant(kind, config, processes), kind, value, step, draw.randrange(processes))
    jobs |= {f"on_and_on_{processes}": partial(_on_and_on, work, Variant("", config, processes)) for processes in (1, 2)}
    found = side_by_side(work, jobs)
    return {"runs": len(found), "wrong": [line for one in found.values() for line in one["wrong"]]}


def _one(folder: Path, variant: Variant, kind: str, value: float, step: int, rank: int) -> dict[str, Any]:
    """Tests one skipped update."""
    notes = folder.with_name(f"{folder.name}_notes")
    poison = _poison(kind, value, range(step, step + 1), rank)
    started = start(variant.config, folder, variant.processes, both(poison, spy(notes), watch_weights(notes)))
    if any(codes := started.wait()):
        return {"wrong": [f"{folder.name} ended with {codes}: {started.said()}"]}
    wrong = []
    hashes = [dict(json.loads(line) for line in path.read_text().splitlines()) for path in sorted(notes.glob("weights_*"))]
    for place, after in enumerate(hashes):
        still = [one for one in range(2, STEPS + 1) if after[one] == after[one - 1]]
        wrong += [f"{folder.name}, rank {place}: nothing changed in steps {still}, expected {[step + 1]}"] * (still != [step + 1])
    wrong += [f"{folder.name}: the ranks' weights differ"] * (len({json.dumps(after) for after in hashes}) != 1)
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    drawn = told(notes)
    ids = [row[0] for row in drawn[step]]
    named = (
        len(skipped) == 1 and skipped[0]["step"] == step and set(skipped[0]["samples"]) <= set(_global(ids, skipped, drawn, step))
    )
    wrong += [f"{folder.name}: {skipped} noted, step {step} was bad"] * (not named)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wrong += [f"{folder.name}: not counted once"] * (sum(line.get("skipped", 0) for line in lines) != 1)
    wrong += [f"{folder.name}: steps are missing"] * (sorted(drawn) != list(range(STEPS)))
    shutil.rmtree(folder)
    return {"wrong": wrong}


def _global(ids: list[int], skipped: list[dict[str, Any]], drawn: dict[int, Any], step: int) -> list[int]:
    """Returns the samples of a step as they are named in skipped.jsonl."""
    return ids if drawn[step] else skipped[0]["samples"]


def _on_and_on(work: Path, variant: Variant) -> dict[str, Any]:
    """Tests a run in which every update after some step has a non-finite number."""
    name = f"on_and_on_{variant.processes}p"
    expected, folder = whole(variant, work / f"{name}_whole"), work / f"{name}_bad"
    step = 3 * EVERY + 1  # so that no checkpoint is saved between this step and the stop
    bad = start(variant.config, folder, variant.processes, _poison("loss", VALUES[0], range(step, STEPS), 0))
    codes, said = bad.wait(), bad.said(4000)
    wrong = [f"{name}: ended with {codes}"] * any(code in (0, -9) for code in codes)
    wrong += [f"{name}: the message does not name the step and train.max_skipped: {said[-600:]}"] * (
        f"step {step + MOST}" not in said or f"train.max_skipped {MOST}" not in said
    )
    return {"wrong": wrong + finish(variant, folder, expected)}


def _poison(kind: str, value: float, steps: range, rank: int) -> Sabotage:
    """Puts a non-finite number into the first micro-batch of some steps."""

    def sabotage(here: int) -> None:
        if kind == KINDS[-1] and here != rank:
            return
        made, prepared = MaskedObjective.loss, mmm.objectives.masked.prepare
        bad, before = {"now": False}, {"step": -1}

        def spoiled(*parts: Any, **named: Any) -> Any:
            x = prepared(*parts, **named)
            return x * value if bad["now"] and kind == "pixels" else x

        def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Any:
            bad["now"] = step in steps and before["step"] != step
            before["step"] = step
            found = made(objective, model, batch, step)
            if bad["now"] and kind == "loss":
                return found * value
            if bad["now"] and kind.startswith("gradient"):
                weight = next(iter(model.parameters()))
                return found + _Spoil.apply(weight, value)
            return found

        MaskedObjective.loss = loss  # type: ignore[method-assign]
        mmm.objectives.masked.prepare = spoiled

    return sabotage


class _Spoil(torch.autograd.Function):
    """Returns zero, with a gradient that is non-finite for one of a weight's values."""

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, value: float) -> torch.Tensor:
        """Returns 0, (...) -> ()."""
        context.shape, context.value = weight.shape, value
        return weight.new_zeros(())

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Returns a gradient that contains the non-finite number in the first place and zeros elsewhere."""
        found = gradient.new_zeros(context.shape)
        found.view(-1)[0] = context.value
        return found, None
