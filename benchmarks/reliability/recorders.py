"""Patches that record the samples, masks, pixels and weights of a training; each process writes its own file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.harness import Patch
from mmm.objectives.masked import MaskedObjective
from mmm.train import session


def record_samples(records: Path) -> Patch:
    """Records every micro-batch of every process: a line with step, sample ids, and hashes of each sample's mask and pixels."""

    def patch(rank: int) -> None:
        records.mkdir(parents=True, exist_ok=True)
        original, file = MaskedObjective.loss, (records / f"rank_{rank}.jsonl").open("a", buffering=1)

        def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Any:
            hashing = _HashInputs(model)
            value = original(objective, hashing, batch, step)  # type: ignore[arg-type]
            line = {"step": step, "samples": batch.index.tolist(), "epochs": batch.epoch.tolist()} | hashing.hashes
            file.write(json.dumps(line) + "\n")
            return value

        MaskedObjective.loss = loss  # type: ignore[method-assign]

    return patch


class _HashInputs:
    """Wraps a model, and keeps hashes of its last inputs."""

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


def read_samples(records: Path) -> dict[int, list[list[Any]]]:
    """Returns sample id, epoch, mask and pixels of each sample by step, in the global order.

    Of a step that a process recorded more than once, the last record counts.
    """
    steps: dict[int, dict[int, list[list[Any]]]] = {}
    for rank, path in enumerate(sorted(records.glob("rank_*.jsonl"))):
        last = -1
        for text in path.read_text().splitlines():
            line = json.loads(text)
            by_rank = steps.setdefault(line["step"], {})
            if line["step"] != last:
                by_rank[rank] = []
            last = line["step"]
            by_rank[rank] += [
                list(row) for row in zip(*(line[name] for name in ("samples", "epochs", "masks", "pixels")), strict=True)
            ]
    return {step: [row for rank in sorted(by_rank) for row in by_rank[rank]] for step, by_rank in sorted(steps.items())}


def record_weights(records: Path) -> Patch:
    """Records a hash of the weights and of the optimizer's state after every update, in each process."""

    def patch(rank: int) -> None:
        records.mkdir(parents=True, exist_ok=True)
        original, file = session.fit, (records / f"weights_{rank}.jsonl").open("a", buffering=1)

        def fit(training: Any, *args: Any, **options: Any) -> Iterator[Any]:
            for update in original(training, *args, **options):
                states = [value for state in training.optimizer.state.values() for value in state.values()]
                tensors = [*training.unwrapped.state_dict().values(), *(value for value in states if isinstance(value, Tensor))]
                file.write(json.dumps([update.step, digest(*tensors)]) + "\n")
                yield update

        session.fit = fit

    return patch


def combine(*patches: Patch) -> Patch:
    """Returns a patch that applies all of these, one after the other."""

    def patch(rank: int) -> None:
        for one in patches:
            one(rank)

    return patch
