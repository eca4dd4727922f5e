"""Records of the samples, masks, pixels and weights of a training, written by each of its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.harness import Sabotage
from mmm.objectives.masked import MaskedObjective
from mmm.train import session


def spy(notes: Path) -> Sabotage:
    """Records every micro-batch of every process: a line with step, sample ids, and hashes of each sample's mask and pixels."""

    def sabotage(rank: int) -> None:
        notes.mkdir(parents=True, exist_ok=True)
        made, file = MaskedObjective.loss, (notes / f"rank_{rank}.jsonl").open("a", buffering=1)

        def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Any:
            seen = _Seen(model)
            value = made(objective, seen, batch, step)  # type: ignore[arg-type]
            line = {"step": step, "samples": batch.index.tolist(), "epochs": batch.epoch.tolist()} | seen.hashes
            file.write(json.dumps(line) + "\n")
            return value

        MaskedObjective.loss = loss  # type: ignore[method-assign]

    return sabotage


class _Seen:
    """Wraps a model, and records hashes of its inputs."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training
        self.hashes: dict[str, list[str]] = {}
        self.parameters = model.parameters

    def __call__(self, x: Tensor, *, mask: Any) -> Any:
        masks = torch.cat([mask.visible, mask.predict], dim=1)
        self.hashes = {"masks": [digest(row) for row in masks], "pixels": [digest(row) for row in x]}
        return self.model(x, mask=mask)


def digest(*values: Tensor) -> str:
    """Returns the first twelve digits of a hash of the values' bytes."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def told(notes: Path) -> dict[int, list[list[Any]]]:
    """Returns sample, epoch, mask and pixels by step, in the global order. For a repeated step the last record counts."""
    steps: dict[int, dict[int, list[list[Any]]]] = {}
    for rank, path in enumerate(sorted(notes.glob("rank_*.jsonl"))):
        last = -1
        for line in _lines(path):
            here = steps.setdefault(line["step"], {})
            if line["step"] != last:
                here[rank] = []
            last = line["step"]
            here[rank] += [
                list(row) for row in zip(*(line[name] for name in ("samples", "epochs", "masks", "pixels")), strict=True)
            ]
    return {step: [row for rank in sorted(parts) for row in parts[rank]] for step, parts in sorted(steps.items())}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def watch_weights(notes: Path) -> Sabotage:
    """Records a hash of the weights and of the optimizer's state after every update, in each process."""

    def sabotage(rank: int) -> None:
        notes.mkdir(parents=True, exist_ok=True)
        made, file = session.fit, (notes / f"weights_{rank}.jsonl").open("a", buffering=1)

        def watched(training: Any, *parts: Any, **named: Any) -> Iterator[Any]:
            for update in made(training, *parts, **named):
                states = [value for state in training.optimizer.state.values() for value in state.values()]
                held = [*training.unwrapped.state_dict().values(), *(value for value in states if isinstance(value, Tensor))]
                file.write(json.dumps([update.step, digest(*held)]) + "\n")
                yield update

        session.fit = watched

    return sabotage


def both(*sabotages: Sabotage) -> Sabotage:
    """Returns a function that calls both, one after the other."""

    def sabotage(rank: int) -> None:
        for one in sabotages:
            one(rank)

    return sabotage
