"""`Training` is what a checkpoint holds and a resume restores: model, optimizer, average of the weights, step.

Nothing is kept per process, and no generator: samples, masks and noise follow from the step (see `mmm/keys.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.train import checkpoint
from mmm.train.config import changes, check_allowed, differences
from mmm.train.ema import EMA
from mmm.train.environment import circumstances
from mmm.train.interval import Begun
from mmm.train.optimizer import load_optimizer, optimizer_state
from mmm.train.processes import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """A model being trained.

    Attributes:
        accelerator: from `devices.start`.
        model: as Accelerate prepared it; call this one to train.
        optimizer: as Accelerate prepared it.
        identity: what makes the run this run (`config.identity`); a checkpoint of another is refused.
        ema: average of the weights, where the run keeps one.
        step: updates made so far.
        begun: what the next line of metrics holds so far.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]
    ema: EMA | None = None
    step: int = 0
    begun: Begun = field(default_factory=Begun)

    @classmethod
    def prepare(
        cls,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        identity: dict[str, Any],
        ema: bool = False,
    ) -> Training:
        """Hands model and optimizer, and only these, to Accelerate: its loaders resume wrongly, its schedules step per process."""
        model, optimizer = accelerator.prepare(model, optimizer)
        training = cls(accelerator, model, optimizer, identity)
        training.ema = EMA.of(training.bare) if ema else None
        return training

    @cached_property
    def bare(self) -> nn.Module:
        """The user's module inside what DDP, precision and compilation put around it; its names have no prefix."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def save(self, checkpoints: Path, keep: int | None, *, needed: bool = True) -> Path | None:
        """Writes a checkpoint from the main process; all processes return when it is there.

        Args:
            keep: how many to keep; none: all.
            needed: nothing is saved after this. Else a full disk costs this checkpoint and not the run: a warning, and none.

        Raises:
            ValueError: a weight is not finite. A checkpoint of it would be resumed from, and push out a good one.
            OSError: it is needed and cannot be written, on all processes alike.
        """
        self._refuse_poison()
        try:
            return on_main(self.accelerator, lambda: checkpoint.write(checkpoints, self.step, self._tensors(), self._state(), keep))
        except OSError as error:
            if needed:
                raise
            logger.warning("the checkpoint of step %d was not written, and the run goes on until the next: %s", self.step, error)
            return None

    def restore(self, checkpoints: Path, allow: Collection[str] = ()) -> list[str]:
        """Goes on from the newest whole checkpoint, which every process reads; where there is none, from the beginning.

        Args:
            allow: names of the identity that may differ.

        Returns:
            A line for each of these that does.

        Raises:
            ValueError: all are damaged, or the newest is of a run with other choices.
        """
        path = on_main(self.accelerator, lambda: checkpoint.newest(checkpoints))
        if path is None:
            return []
        tensors, state = checkpoint.read(path)
        changed = changes(state["identity"], self.identity)
        check_allowed(changed, state["identity"].keys() | self.identity.keys(), allow)
        if changed:
            logger.warning("this run goes on with other choices: %s", "; ".join(changed.values()))
        if notes := differences(state["written_by"], circumstances(self.accelerator)):
            logger.warning("resumed runs are bit for bit the same only on the same set-up: %s", "; ".join(notes))
        self._refuse_other_shapes(tensors["model"], changed)
        self.bare.load_state_dict({name: tensors["model"][plain(name)] for name in self.bare.state_dict()})
        load_optimizer(self.optimizer, self._names(), tensors["optimizer"], state["optimizer"])
        if self.ema is not None:
            for name, average in self.ema.averages.items():
                average.copy_(tensors["ema"][plain(name)])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.begun = state["step"], Begun(**state["begun"])
        return list(changed.values())

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        files = {"model": self.bare.state_dict(), "optimizer": optimizer_state(self.optimizer, self._names())[0]}
        if self.ema is not None:
            files["ema"] = self.ema.averages
        return {file: {plain(name): value for name, value in values.items()} for file, values in files.items()}

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "identity": self.identity,
            "optimizer": optimizer_state(self.optimizer, self._names())[1],
            "scaler": None if scaler is None else scaler.state_dict(),
            "begun": self.begun.plain(),
            "written_by": circumstances(self.accelerator),
        }

    def _names(self) -> dict[Tensor, str]:
        return {parameter: plain(name) for name, parameter in self.bare.named_parameters()}

    def _refuse_other_shapes(self, found: Mapping[str, Tensor], changed: Mapping[str, str]) -> None:
        for name, value in self.bare.state_dict().items():
            if plain(name) not in found or found[plain(name)].shape != value.shape:
                raise ValueError(f"another model cannot go on where {plain(name)} was trained: {'; '.join(changed.values())}")

    def _refuse_poison(self) -> None:
        weights = dict(self.bare.named_parameters())
        finite = torch.stack([value.isfinite().all() for value in weights.values()]).tolist()  # one synchronisation
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        if bad:
            raise ValueError(
                f"after step {self.step} weights are not finite ({', '.join(bad[:3])}{', ...' * (len(bad) > 3)}), so no checkpoint "
                "was written; lower train.learning_rate or set train.clip_norm, and --resume from the last one"
            )


def plain(name: str) -> str:
    """A tensor's name without what compiling single blocks puts into it."""
    return name.replace("_orig_mod.", "")
