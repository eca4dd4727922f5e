"""`Training` is what a checkpoint holds and a resume restores: model, optimizer, average of the weights, step.

Nothing is kept per process, and no generator: samples, masks and noise follow from the step (see `mmm/core/rng.py`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmm.config.diff import changes, check_allowed, differences
from mmm.train.checkpoint import writer as checkpoint
from mmm.train.checkpoint.async_writer import Saver
from mmm.train.distributed.fsdp import DDP, no_sync, shard, sharding_asked, skeleton_of, whole_copy
from mmm.train.distributed.processes import on_main
from mmm.train.ema import EMA
from mmm.train.metrics import Begun
from mmm.train.state import plain, put_back, refuse_other_shapes, refuse_poison, state_of, tensors_of, written_by

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Training", "plain"]

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
        skeleton: of a sharded model, a copy without values.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]
    ema: EMA | None = None
    step: int = 0
    begun: Begun = field(default_factory=Begun)
    skeleton: nn.Module | None = None

    def __post_init__(self) -> None:
        self.saver = Saver(self.accelerator, self.skeleton is not None)

    @classmethod
    def prepare(
        cls,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        identity: dict[str, Any],
        ema: bool = False,
        sharded: bool = False,
    ) -> Training:
        """Hands model and optimizer, and only these, to Accelerate: its loaders resume wrongly, its schedules step per process.

        Args:
            ema: keep an average of the weights.
            sharded: by a task whose evaluations go through `whole`, where `sharding_asked`.

        Raises:
            ValueError: Accelerate's configuration asks for FSDP, and the task cannot.
        """
        skeleton = skeleton_of(model) if sharded else None
        if sharded:
            shard(model, optimizer, accelerator)
            optimizer = accelerator.prepare_optimizer(optimizer)
        elif sharding_asked(os.environ):
            raise ValueError(f"Accelerate's configuration asks for FSDP, with which only pretraining runs; {DDP}")
        else:
            model, optimizer = accelerator.prepare(model, optimizer)
        training = cls(accelerator, model, optimizer, identity, skeleton=skeleton)
        training.ema = EMA.of(training.bare) if ema else None
        return training

    @cached_property
    def bare(self) -> nn.Module:
        """The user's module inside what DDP, precision and compilation put around it; its names have no prefix."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The bare model to evaluate, which needs no other process when it is called: of a sharded one a copy. By all processes."""
        yield self.bare if self.skeleton is None else whole_copy(self.skeleton, self.bare, self.accelerator)

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients are summed in each process; the next backward outside sums them over all."""
        return self.accelerator.no_sync(self.model) if self.skeleton is None else no_sync(self.model)

    def save(self, checkpoints: Path, keep: int | None, *, keep_every: int | None = None, needed: bool = True) -> None:
        """Saves this step, by all processes; they wait for a copy in memory, and it is written while the training goes on.

        Args:
            keep, keep_every: see `checkpoint.prune`.
            needed: nothing is saved after this: returns when it is there. Else a full disk costs this checkpoint and not the run: a
                warning when the next is due.

        Raises:
            ValueError: a weight is not finite. A checkpoint of it would be resumed from, and push out a good one.
            OSError: it is needed and cannot be written, on all processes alike.
        """
        self.settle()
        refuse_poison(self)
        try:
            self.saver.start(checkpoints, self.step, tensors_of(self), state_of(self), keep, keep_every)
            if needed:
                self.saver.settle()
        except OSError as error:
            if needed:
                raise
            self._warn(self.step, error)

    def settle(self) -> None:
        """Waits for the checkpoint that is being written, if one is, by all processes; that it was not is a warning."""
        step = self.step if self.saver.pending is None else self.saver.pending.step
        try:
            self.saver.settle()
        except OSError as error:
            self._warn(step, error)

    def _warn(self, step: int, error: OSError) -> None:
        logger.warning("the checkpoint of step %d was not written, and the run goes on until the next: %s", step, error)

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
        if notes := differences(state["written_by"], written_by(self)):
            logger.warning("resumed runs are bit for bit the same only on the same set-up: %s", "; ".join(notes))
        refuse_other_shapes(self, tensors["model"], changed)
        put_back(self, tensors, state)
        self.step, self.begun = state["step"], Begun(**state["begun"])
        return list(changed.values())
