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
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import mmm.train.loop as loop
from benchmarks.reliability.harness import side_by_side, start
from benchmarks.reliability.runs import config_of, make_data
from mmm.data.loading.loader import Order, train_batches
from mmm.encoders import VisionTransformer
from mmm.train import session
from mmm.train.config import TrainConfig
from mmm.train.state import Training
from tasks import pretrain

COUNT, QUICK = 240, 60  # timed updates
GUARD, SAVING, FIRST = 0.01, 0.05, 1.1
LARGE = 1_281_167  # samples in ImageNet-1k
STARTS = 9
TURNS = 3  # repetitions of whole runs


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Measures each cost in a separate process, one after another."""
    make_data(work)
    jobs = {"training": lambda: _training(work, count), "first batch": _first_batch, "strict": lambda: _strict(work, count)}
    found = side_by_side(work, jobs, lanes=1)
    wrong = [line for one in found.values() for line in one.pop("wrong", [])]
    return {name: figure for one in found.values() for name, figure in one.items()} | {"wrong": wrong}


def _larger(work: Path, count: int, **train: Any) -> pretrain.Config:
    """Returns the config of a model whose step takes as long as a real one."""
    encoder = VisionTransformer.Config(width=192, depth=12, heads=3)
    config = config_of(work, steps=count, batch_size=16, ema=None, **train)
    return replace(config, encoder=encoder, data=replace(config.data, image_size=64))


def _strict(work: Path, count: int) -> dict[str, Any]:
    """Measures the rates of whole runs with four micro-batches of 4 per update, in alternation."""
    figures: dict[str, Any] = {}
    for processes in (1, 2):
        rates: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(TURNS):
            for strict, seen in rates.items():
                config = _larger(work, max(12, count // 8), micro_batch_size=4, save_every=10_000, log_every=1, strict=strict)
                folder = work / f"strict_{processes}_{strict}_{turn}"
                started = start(config, folder, processes)
                if any(codes := started.wait(3000)):
                    return {"wrong": [f"ended with {codes}: {started.said()}"]}
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                seen.append(median(line["clock"]["samples_per_second"] for line in lines[2:]))
        added = median(plain / strict - 1 for plain, strict in zip(rates[False], rates[True], strict=True))
        figures[f"strict, added to an update on {processes} process{'es' * (processes > 1)}"] = round(added, 4)
    return figures


def _training(work: Path, count: int) -> dict[str, Any]:
    """Measures a training that applies the check in every second step."""
    config = _larger(work, count, save_every=max(1, count // 4), micro_batch_size=16)
    told = work / "times.json"
    started = start(config, work / "timed", 1, lambda rank: _time(told))
    if any(codes := started.wait(3000)):
        return {"wrong": [f"ended with {codes}: {started.said()}"]}
    times = json.loads(told.read_text())
    with_guard, without = median(times["guarded"]), median(times["bare"])
    guard = median(x / y - 1 for x, y in zip(times["guarded"], times["bare"], strict=False))
    every = TrainConfig.__dataclass_fields__["save_every"].default
    saving = median(times["saves"]) / (every * with_guard)
    figures = {
        "seconds of a step": round(with_guard, 4),
        "guard, share of a step": round(guard, 4),
        "guard, from the medians": round(with_guard / without - 1, 4),
        "seconds that a step waits for its save": round(median(times["saves"]), 4),
        f"saving every {every} steps, share of the time": round(saving, 5),
        "hashes and flushes, share of a write": round(_share_of_hashes(work / "timed"), 3),
    }
    wrong = [f"the guard costs {guard:.2%} of a step"] * (guard > GUARD) + [f"saving costs {saving:.2%}"] * (saving > SAVING)
    return {**figures, "wrong": wrong}


def _time(told: Path) -> None:
    """Measures, during a training, the time of steps with and without the check, in alternation, and the time that steps wait for
    saves."""
    times: dict[str, list[float]] = {"guarded": [], "bare": [], "saves": []}
    made, save = session.fit, Training.save
    guard = (loop.nan_if_nonfinite, loop.gradient_norm, loop.step_if_finite)
    none = (lambda loss: loss, lambda *_: torch.tensor(0.0), lambda norm, optimizer, scaler: optimizer.step())

    def timed_save(self: Training, *given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return save(self, *given, **named)
        finally:
            times["saves"].append(time.perf_counter() - began)

    def timed_fit(training: Any, *given: Any, **named: Any) -> Any:
        updates = made(training, *given, **named)
        while True:
            kind = ("guarded", "bare")[training.step % 2]
            chosen = guard if kind == "guarded" else none
            loop.nan_if_nonfinite, loop.gradient_norm, loop.step_if_finite = chosen  # type: ignore[assignment]
            began = time.perf_counter()
            update = next(updates, None)
            if update is None:
                break
            times[kind].append(time.perf_counter() - began)
            yield update
        told.write_text(json.dumps(times))

    session.fit, Training.save = timed_fit, timed_save  # type: ignore[method-assign]


def _share_of_hashes(folder: Path) -> float:
    """Returns the share of hashing and flushing in the time to write the files of a checkpoint again."""
    spent = {"write": 0.0, "hash": 0.0, "flush": 0.0}
    for file in (sorted((folder / "checkpoints").glob("step_*"))[-1]).iterdir():
        content = file.read_bytes()
        with (folder / "again").open("wb") as again:
            with _clock(spent, "write"):
                again.write(content)
                again.flush()
            with _clock(spent, "flush"):
                os.fsync(again.fileno())
        with _clock(spent, "hash"):
            hashlib.sha256(content).hexdigest()
    return (spent["hash"] + spent["flush"]) / sum(spent.values())


@contextmanager
def _clock(spent: dict[str, float], name: str) -> Any:
    began = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - began


@dataclass(frozen=True)
class _Many:
    """A dataset with as many samples as a large one, but without the cost of reading."""

    workers: int = 0
    repeats: int = 1
    views: int = 1
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


def _first_batch() -> dict[str, Any]:
    """Measures the time to the first batch of a new run and of a start at 95 % of the first epoch, in alternation."""
    steps = LARGE // 256
    seconds: dict[int, list[float]] = {0: [], int(0.95 * steps): []}
    for _ in range(STARTS):
        for first, spent in seconds.items():
            began = time.perf_counter()
            next(train_batches(_Many(), _Many(), seed=0, batch_size=256, steps=steps, start_step=first))
            spent.append(time.perf_counter() - began)
    fresh, late = (min(spent) for spent in seconds.values())
    figures = {"seconds to the first batch, fresh": round(fresh, 4), "at 95 % of an epoch of 1.28 M": round(late, 4)}
    return {**figures, "wrong": [f"a late start takes {late / fresh:.2f} times a fresh one"] * (late > FIRST * fresh)}
