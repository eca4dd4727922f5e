"""R5: tests that a run that continues with another number of processes, in the middle of an epoch, reads the same samples.

The run starts on a processes, continues on b, and then on a again, for a and b of 1, 2 and 4. Sample ids, masks and pixels are
identical for every sample, and the losses agree within 1e-3. With train.strict the losses and the weights are bit-identical.
"""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import side_by_side, start
from benchmarks.reliability.moments import lines, trains
from benchmarks.reliability.runs import Variant, config_of, make_data, result
from benchmarks.reliability.spies import spy, told
from mmm.train.config import TrainConfig

COUNT, QUICK = 9, 2  # pairs of numbers of processes
STEPS = 200
CLOSE = 1e-3  # maximum relative difference of losses
STRICT = "strict" in {field.name for field in fields(TrainConfig)}


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` of the nine pairs in each mode."""
    make_data(work)
    pairs = draw.sample(list(product((1, 2, 4), repeat=2)), min(count, 9))
    modes = ("default", "strict") if STRICT else ("default",)
    whole = side_by_side(work, {f"{mode}_whole": partial(_undisturbed, work, mode) for mode in modes})
    jobs = {f"{mode}_{a}_{b}": partial(_legs, work, mode, a, b, draw.getrandbits(32)) for mode in modes for a, b in pairs}
    found = side_by_side(work, jobs, lanes=1)  # one at a time, because four processes are enough for two cores
    wrong = [line for one in (*whole.values(), *found.values()) for line in one.pop("wrong")]
    wrong += [] if STRICT else ["there is no train.strict"]
    return {"pairs": len(pairs), "steps": STEPS, "runs": found, "wrong": wrong}


def _variant(work: Path, mode: str, processes: int) -> Variant:
    config = config_of(work, steps=STEPS, save_every=50, log_every=1)
    train = replace(config.train, **({"strict": True} if mode == "strict" else {}))
    return Variant(mode, replace(config, train=train), processes)


def _undisturbed(work: Path, mode: str) -> dict[str, Any]:
    """Runs the undisturbed training on one process and returns its errors."""
    variant, folder = _variant(work, mode, 1), work / f"{mode}_one"
    started = start(variant.config, folder, 1, spy(work / f"{mode}_one_notes"))
    codes = started.wait()
    return {"wrong": [f"{mode}, undisturbed: {codes}: {started.said()}"] * any(codes)}


def _legs(work: Path, mode: str, a: int, b: int, seed: int) -> dict[str, Any]:
    """Runs the training in three legs, of which a signal ends the first two at a random step."""
    draw, folder, wrong = random.Random(seed), work / f"{mode}_{a}_{b}_run", list[str]()
    notes = work / f"{mode}_{a}_{b}_notes"
    for leg, processes in enumerate((a, b, a)):
        started = start(_variant(work, mode, processes).config, folder, processes, spy(notes / str(leg)))
        if leg < 2 and trains(started, folder):
            goal = lines(folder) + draw.randint(5, STEPS // 4)
            started.until(lambda goal=goal: lines(folder) >= goal)
            started.kill(draw.choice(started.pids), number=signal.SIGTERM)
        codes = started.wait()
        wrong += [f"{mode} {a}, {b}, leg {leg}: {codes}: {started.said()}"] * (codes not in ([0] * processes, [143] * processes))
    apart, drift = _compare(work, mode, notes, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return {"relative drift of losses": drift, "wrong": wrong + [f"{mode} {a}, {b}: {line}" for line in apart]}


def _compare(work: Path, mode: str, notes: Path, folder: Path) -> tuple[list[str], float | None]:
    """Returns the differences from the undisturbed run, and the relative difference of the losses."""
    expected, found = told(work / f"{mode}_one_notes"), dict[int, Any]()
    for leg in sorted(notes.iterdir()):
        found |= told(leg)  # a step that a signal interrupted is replaced by its later repetition
    apart = [f"step {step}: other samples, masks or pixels" for step in expected if found.get(step) != expected[step]][:3]
    whole, moved = (result(place, STEPS) for place in (work / f"{mode}_one", folder))
    losses = [[line["loss"] for line in one["metrics"] if "loss" in line] for one in (whole, moved)]
    if len(losses[0]) != len(losses[1]):
        return [*apart, f"{len(losses[1])} losses instead of {len(losses[0])}"], None
    drift = max(abs(x - y) / abs(x) for x, y in zip(*losses, strict=True))
    if drift > CLOSE:
        apart.append(f"losses drift by {drift:.1e}")
    if mode == "strict":
        apart += [f"{name} differs" for name in whole if whole[name] != moved.get(name)]
    return apart, drift
