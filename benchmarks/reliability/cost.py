"""R19: tests the cost of reliability. The check for non-finite numbers takes at most 1 % of a step, saving at most 5 % of the time
at the default interval, and the first batch of a start at 95 % of a large epoch at most 1.1 times as long as that of a new run.
Also reports the share of hashes and flushes in a write, and the time that train.strict adds to an update on one process and on two.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import mmm.train.loop as loop
from benchmarks.reliability.harness import run_jobs, start
from benchmarks.reliability.runs import make_config, make_data
from mmm.data import ImagesConfig
from mmm.data.loading.loader import Order, train_batches
from mmm.encoders import VisionTransformer
from mmm.train import session
from mmm.train.config import TrainConfig
from mmm.train.state import Training
from tasks import pretrain

COUNT, QUICK = 240, 60  # timed updates
MAX_CHECK = 0.01  # share of a step that the check for non-finite numbers may take
MAX_SAVING = 0.05  # share of the time that saving may take
MAX_LATE_START = 1.1  # time to the first batch in the middle of an epoch, relative to that of a new run
LARGE = 1_281_167  # samples in ImageNet-1k
STARTS = 9  # timed starts of each kind
REPEATS = 3  # of runs whose rate is measured


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Measures each cost in a separate process, one after another."""
    make_data(work)
    jobs = {"training": lambda: _measure_training(work, count), "first batch": _measure_first_batch}
    jobs["strict"] = lambda: _measure_strict(work, count)
    results, failures = run_jobs(work, jobs, parallel=1)
    return {name: figure for result in results.values() for name, figure in result.items()} | {"failures": failures}


def _larger_config(work: Path, count: int, **train: Any) -> pretrain.Config:
    """Returns the config of a model whose step takes as long as a real one."""
    encoder = VisionTransformer.Config(width=192, depth=12, heads=3)
    config = make_config(work, steps=count, batch_size=16, ema=None, **train)
    return replace(config, encoder=encoder, data=replace(config.data, image_size=64))


def _measure_strict(work: Path, count: int) -> dict[str, Any]:
    """Measures the rates of whole runs with four micro-batches of 4 per update, in alternation."""
    figures: dict[str, Any] = {}
    for processes in (1, 2):
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(REPEATS):
            for strict, measured in rates.items():
                config = _larger_config(
                    work, max(12, count // 8), micro_batch_size=4, save_every=10_000, log_every=1, strict=strict
                )
                folder = work / f"strict_{processes}_{strict}_{number}"
                started = start(config, folder, processes)
                if any(codes := started.wait(3000)):
                    return {"failures": [f"ended with {codes}: {started.output()}"]}
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                measured.append(median(line["clock"]["samples_per_second"] for line in lines[2:]))
        added = median(default / strict - 1 for default, strict in zip(rates[False], rates[True], strict=True))
        figures[f"strict, added to an update on {processes} process{'es' * (processes > 1)}"] = round(added, 4)
    return figures


def _measure_training(work: Path, count: int) -> dict[str, Any]:
    """Measures a training that applies the check in every second step."""
    config = _larger_config(work, count, save_every=max(1, count // 4), micro_batch_size=16)
    path = work / "times.json"
    started = start(config, work / "timed", 1, lambda rank: _record_times(path))
    if any(codes := started.wait(3000)):
        return {"failures": [f"ended with {codes}: {started.output()}"]}
    times = json.loads(path.read_text())
    checked, unchecked = median(times["checked"]), median(times["unchecked"])
    check = median(x / y - 1 for x, y in zip(times["checked"], times["unchecked"], strict=False))
    save_every = TrainConfig.__dataclass_fields__["save_every"].default
    saving = median(times["saves"]) / (save_every * checked)
    figures = {
        "seconds of a step": round(checked, 4),
        "check for non-finite numbers, share of a step": round(check, 4),
        "the same from the medians": round(checked / unchecked - 1, 4),
        "seconds that a step waits for its save": round(median(times["saves"]), 4),
        f"saving every {save_every} steps, share of the time": round(saving, 5),
        "hashes and flushes, share of a write": round(_share_of_hashes(work / "timed"), 3),
    }
    failures = [f"the check for non-finite numbers takes {check:.2%} of a step"] * (check > MAX_CHECK)
    failures += [f"saving takes {saving:.2%} of the time"] * (saving > MAX_SAVING)
    return {**figures, "failures": failures}


def _record_times(path: Path) -> None:
    """Records, during a training, the time of steps with and without the check, in alternation, and the time that steps wait for
    saves."""
    times: dict[str, list[float]] = {"checked": [], "unchecked": [], "saves": []}
    fit, save = session.fit, Training.save
    functions = {
        "checked": (loop.nan_if_nonfinite, loop.gradient_norm, loop.step_if_finite),
        "unchecked": (lambda loss: loss, lambda *_: torch.tensor(0.0), lambda norm, optimizer, scaler: optimizer.step()),
    }

    def timed_save(self: Training, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return save(self, *args, **options)
        finally:
            times["saves"].append(time.perf_counter() - began)

    def timed_fit(training: Any, *args: Any, **options: Any) -> Any:
        updates = fit(training, *args, **options)
        while True:
            kind = ("checked", "unchecked")[training.step % 2]
            loop.nan_if_nonfinite, loop.gradient_norm, loop.step_if_finite = functions[kind]  # type: ignore[assignment]
            began = time.perf_counter()
            update = next(updates, None)
            if update is None:
                break
            times[kind].append(time.perf_counter() - began)
            yield update
        path.write_text(json.dumps(times))

    session.fit, Training.save = timed_fit, timed_save  # type: ignore[method-assign]


def _share_of_hashes(folder: Path) -> float:
    """Writes the files of a checkpoint again, and returns the share of hashing and flushing in the time."""
    seconds = {"write": 0.0, "hash": 0.0, "flush": 0.0}
    for file in (sorted((folder / "checkpoints").glob("step_*"))[-1]).iterdir():
        content = file.read_bytes()
        with (folder / "copy").open("wb") as copy:
            with _add_time(seconds, "write"):
                copy.write(content)
                copy.flush()
            with _add_time(seconds, "flush"):
                os.fsync(copy.fileno())
        with _add_time(seconds, "hash"):
            hashlib.sha256(content).hexdigest()
    return (seconds["hash"] + seconds["flush"]) / sum(seconds.values())


@contextmanager
def _add_time(seconds: dict[str, float], name: str) -> Any:
    began = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - began


@dataclass(frozen=True)
class _LargeDataset:
    """A dataset with as many samples as a large one, but without the cost of reading."""

    config: ImagesConfig = field(default_factory=lambda: ImagesConfig(workers=0))
    defers_resize: bool = False

    def __len__(self) -> int:
        return LARGE

    def name(self, index: int) -> str:
        return str(index)

    def labels(self) -> Tensor | None:
        return None

    def order(self, seed: int, source: int = 0) -> Order:
        return Order(LARGE, seed, source)

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        return torch.zeros(len(keys), 1, 4, 4, dtype=torch.uint8), {}

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        return torch.zeros(len(index), 1, 4, 4, dtype=torch.uint8), {}


def _measure_first_batch() -> dict[str, Any]:
    """Measures the time to the first batch of a new run and of a start at 95 % of the first epoch, in alternation."""
    steps = LARGE // 256
    seconds: dict[int, list[float]] = {0: [], int(0.95 * steps): []}
    for _ in range(STARTS):
        for first, measured in seconds.items():
            data, began = _LargeDataset(), time.perf_counter()
            next(train_batches(data, data.config, seed=0, batch_size=256, steps=steps, start_step=first))
            measured.append(time.perf_counter() - began)
    new, late = (min(measured) for measured in seconds.values())
    figures = {"seconds to the first batch of a new run": round(new, 4), "at 95 % of an epoch of 1.28 M": round(late, 4)}
    failures = [f"a start late in an epoch takes {late / new:.2f} times as long as a new run"] * (late > MAX_LATE_START * new)
    return {**figures, "failures": failures}
