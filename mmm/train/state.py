"""What of a training a checkpoint holds, taken out and put back; its tensors may be sharded, or not, in either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmm.train.distributed.fsdp import local, place
from mmm.train.optimizer import load_optimizer, optimizer_state
from mmm.train.run.environment import circumstances

if TYPE_CHECKING:
    from mmm.train.training import Training


def tensors_of(training: Training) -> dict[str, dict[str, Tensor]]:
    """Weights, the optimizer's state and averages, by file and name; as they are, not copied."""
    files = {"model": training.bare.state_dict(), "optimizer": optimizer_state(training.optimizer, _names(training))[0]}
    if training.ema is not None:
        files["ema"] = training.ema.averages
    return {file: {plain(name): value for name, value in values.items()} for file, values in files.items()}


def state_of(training: Training) -> dict[str, Any]:
    """All that is not a tensor, as JSON holds it."""
    scaler = training.accelerator.scaler
    return {
        "identity": training.identity,
        "optimizer": optimizer_state(training.optimizer, _names(training))[1],
        "scaler": None if scaler is None else scaler.state_dict(),
        "begun": training.begun.plain(),
        "written_by": written_by(training),
    }


def written_by(training: Training) -> dict[str, Any]:
    """The circumstances that a resume is told of where they differ."""
    return {**circumstances(training.accelerator), "sharded": training.skeleton is not None}


def put_back(training: Training, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Puts weights, the optimizer's state and averages into a training of the same shape.

    Args:
        tensors: whole, by file and name.
        state: from `state_of`.
    """
    for name, value in training.bare.state_dict().items():
        place(value, tensors["model"][plain(name)])
    load_optimizer(training.optimizer, _names(training), tensors["optimizer"], state["optimizer"])
    if training.ema is not None:
        for name, average in training.ema.averages.items():
            place(average, tensors["ema"][plain(name)])
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])


def refuse_other_shapes(training: Training, found: Mapping[str, Tensor], changed: Mapping[str, str]) -> None:
    """Refuses weights of another model, which a change that was asked for can make."""
    for name, value in training.bare.state_dict().items():
        if plain(name) not in found or found[plain(name)].shape != value.shape:
            raise ValueError(f"another model cannot go on where {plain(name)} was trained: {'; '.join(changed.values())}")


def refuse_poison(training: Training) -> None:
    """Refuses weights that are not finite, on all processes alike: from a checkpoint of them a run would be resumed."""
    weights = dict(training.bare.named_parameters())
    finite = torch.stack([local(value).isfinite().all() for value in weights.values()])
    if training.skeleton is not None:
        finite = training.accelerator.gather(finite[None].int()).all(0)  # each process has looked at its own part
    bad = [name for name, good in zip(weights, finite.tolist(), strict=True) if not good]  # one synchronisation
    if bad:
        raise ValueError(
            f"after step {training.step} weights are not finite ({', '.join(bad[:3])}{', ...' * (len(bad) > 3)}), so no checkpoint "
            "was written; lower train.learning_rate or set train.clip_norm, and --resume from the last one"
        )


def plain(name: str) -> str:
    """A tensor's name without what compiling single blocks puts into it."""
    return name.replace("_orig_mod.", "")


def _names(training: Training) -> dict[Tensor, str]:
    return {parameter: plain(name) for name, parameter in training.bare.named_parameters()}
