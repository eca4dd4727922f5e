"""`Training`: the state that a checkpoint saves and a resume restores: model, optimizer, average of the weights, and step.

No process has its own state, and no generator state is saved: samples, masks and noise are functions of the step (mmm/core/rng.py).
Tensors may be sharded, here and in the checkpoint.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.config.diff import changes, check_allowed, differences
from mmm.config.serialize import to_dict
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.train.checkpoint import reader
from mmm.train.checkpoint.async_writer import AsyncWriter
from mmm.train.config import RunConfig, identity
from mmm.train.distributed.fsdp import DDP, copy_into, copy_to_meta, gathered_copy, local, no_sync, shard, sharding_asked
from mmm.train.distributed.processes import on_main
from mmm.train.ema import EMA
from mmm.train.memory.usage import checkpoint_blocks
from mmm.train.metrics import PartialMetrics
from mmm.train.optimizer import load_optimizer, make_optimizer, optimizer_state
from mmm.train.run.environment import fingerprint

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """A model during training.

    Attributes:
        accelerator: the result of `setup.start`.
        model: the model from Accelerate, which must be called for training.
        optimizer: the optimizer from Accelerate.
        identity: the options that identify the run (`config.identity`); a checkpoint of another run is refused.
        ema: average of the weights, if the run has one.
        step: number of updates so far.
        partial_metrics: the part of the next line of metrics that is known so far.
        meta_copy: a copy of a sharded model without values.
        micro_batch_size: samples that one process computes at once. A resume logs a change, because noise is drawn for each
            micro-batch, and samples are mixed within one. None: unknown.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]
    ema: EMA | None = None
    step: int = 0
    partial_metrics: PartialMetrics = field(default_factory=PartialMetrics)
    meta_copy: nn.Module | None = None
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        self.writer = AsyncWriter(self.accelerator, self.meta_copy is not None)

    @classmethod
    def begin(
        cls,
        accelerator: Accelerator,
        model: nn.Module,
        config: RunConfig,
        *,
        runtime: Collection[str],
        fingerprints: Mapping[str, str],
        layer_decay: float | None = None,
        can_shard: bool = False,
    ) -> Training:
        """Makes the optimizer of a task's config, and passes it and the model to Accelerate.

        Args:
            runtime: names of options that may differ between a stop and its resume.
            fingerprints: of data and weights that the run depends on in addition to its config; they are part of the identity.
            layer_decay: see `make_optimizer`.
            can_shard: whether the task's evaluations use `gathered`, so that the model may be sharded on request.
        """
        if config.train.checkpoint_blocks:
            checkpoint_blocks(model)
        return cls.prepare(
            accelerator,
            model,
            make_optimizer(model, config.train, layer_decay=layer_decay),
            identity=identity(to_dict(config), runtime=runtime) | dict(fingerprints),
            ema=config.train.ema is not None,
            sharded=can_shard and sharding_asked(os.environ),
        )

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
        """Passes the model and the optimizer to Accelerate, but neither the loaders (they would resume wrongly) nor the schedule
        (it would step once per process).

        Args:
            ema: whether to keep an average of the weights.
            sharded: whether to shard the model; for tasks whose evaluations use `gathered`.

        Raises:
            ValueError: Accelerate's configuration selects FSDP, and the task cannot shard; or it selects torch.compile, which
                cannot train only a part of the model.
        """
        reasons = [module.no_compile for module in model.modules() if getattr(module, "no_compile", None)]
        if reasons and accelerator.state.dynamo_plugin.backend.value != "NO":
            raise ValueError(f"train.compile cannot train this model: {reasons[0]}; set train.compile false")
        if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu":
            use_cpu_bf16_kernels(model)
        without_values = copy_to_meta(model) if sharded else None
        if sharded:
            shard(model, optimizer, accelerator)
            optimizer = accelerator.prepare_optimizer(optimizer)
        elif sharding_asked(os.environ):
            raise ValueError(f"Accelerate's configuration asks for FSDP, which only pretraining supports; {DDP}")
        else:
            model, optimizer = accelerator.prepare(model, optimizer)
        training = cls(accelerator, model, optimizer, identity, meta_copy=without_values)
        training.ema = EMA.of(training.unwrapped) if ema else None
        return training

    # ------------------------------------------------------------------------------------------------------------- the model

    @cached_property
    def unwrapped(self) -> nn.Module:
        """The user's module without DDP, mixed precision and compilation. Its names have no prefix."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """Returns a model for evaluation whose forward needs no other process: the unwrapped model, or a copy of a sharded one.

        All processes must enter the `with` block together.
        """
        sharded = self.meta_copy is not None
        yield gathered_copy(self.meta_copy, self.unwrapped, self.accelerator) if sharded else self.unwrapped  # type: ignore[arg-type]

    def averaged(self) -> AbstractContextManager[None]:
        """Puts the moving average of the weights into the model inside its `with` block, if the run has one."""
        return nullcontext() if self.ema is None else self.ema.applied(self.unwrapped)

    def no_sync(self) -> AbstractContextManager[None]:
        """Keeps gradients in each process inside its `with` block. The next backward pass outside sums them over all processes."""
        return self.accelerator.no_sync(self.model) if self.meta_copy is None else no_sync(self.model)

    # ---------------------------------------------------------------------------------------------------------------- saving

    def save(self, checkpoints: Path, keep: int | None, *, keep_every: int | None = None, needed: bool = True) -> None:
        """Saves this step. All processes must call it. They wait for a copy in memory, which is written while the training
        continues.

        Args:
            keep, keep_every: see `writer.prune`.
            needed: whether this is the last checkpoint of the run, which is written before the method returns. If the disk is full,
                any other checkpoint is lost, with a warning when the next is due.

        Raises:
            ValueError: a weight is not finite. Such a checkpoint would replace a good one, and a resume would load it.
            OSError: a needed checkpoint cannot be written. Raised on all processes.
        """
        self.wait_for_checkpoint()
        self._refuse_nonfinite_weights()
        try:
            self.writer.start(checkpoints, self.step, self._tensors(), self._plain_state(), keep, keep_every)
            if needed:
                self.writer.wait()
        except OSError as error:
            if needed:
                raise
            self._warn(self.step, error)

    def wait_for_checkpoint(self) -> None:
        """Waits for a checkpoint that is being written; warns if that failed. All processes must call it."""
        step = self.step if self.writer.pending is None else self.writer.pending.step
        try:
            self.writer.wait()
        except OSError as error:
            self._warn(step, error)

    def _warn(self, step: int, error: OSError) -> None:
        logger.warning("the checkpoint of step %d was not written; the run continues until the next one: %s", step, error)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Returns weights, the optimizer's state and averages, by file and name, without copying."""
        files = {"model": self.unwrapped.state_dict(), "optimizer": optimizer_state(self.optimizer, self._names())[0]}
        if self.ema is not None:
            files["ema"] = self.ema.averages
        return {file: {plain(name): value for name, value in values.items()} for file, values in files.items()}

    def _plain_state(self) -> dict[str, Any]:
        """Returns the state that is not in tensors, as JSON values."""
        scaler = self.accelerator.scaler
        return {
            "identity": self.identity,
            "optimizer": optimizer_state(self.optimizer, self._names())[1],
            "scaler": None if scaler is None else scaler.state_dict(),
            "metrics": self.partial_metrics.plain(),
            "written_by": self._fingerprint(),
        }

    def _refuse_nonfinite_weights(self) -> None:
        """Raises ValueError on all processes if a weight is not finite, because a resume would load the checkpoint."""
        weights = dict(self.unwrapped.named_parameters())
        finite = torch.stack([local(value).isfinite().all() for value in weights.values()])
        if self.meta_copy is not None:
            finite = self.accelerator.gather(finite[None].int()).all(0)  # each process has checked its own part
        bad = [name for name, good in zip(weights, finite.tolist(), strict=True) if not good]  # one synchronisation
        if bad:
            raise ValueError(
                f"after step {self.step} weights are not finite ({', '.join(bad[:3])}{', ...' * (len(bad) > 3)}), so no checkpoint "
                "was written; lower train.learning_rate or set train.clip_norm, and --resume from the last one"
            )

    # ------------------------------------------------------------------------------------------------------------- restoring

    def restore(self, checkpoints: Path, allow: Collection[str] = ()) -> list[str]:
        """Restores the newest complete checkpoint, which every process reads; without a checkpoint the run starts from the
        beginning.

        Args:
            allow: names of options in the identity that may differ.

        Returns:
            A line for each option that differs.

        Raises:
            ValueError: all checkpoints are damaged, or the newest is from a run with other options, or with another optimizer, even
                if this is allowed.
        """
        path = on_main(self.accelerator, lambda: reader.newest(checkpoints))
        if path is None:
            return []
        tensors, state = reader.read(path)
        changed = changes(state["identity"], self.identity)
        check_allowed(changed, state["identity"].keys() | self.identity.keys(), allow)
        if "train.optimizer" in changed:
            raise ValueError(f"{changed['train.optimizer']}; the checkpoint has no state for this optimizer, so start a new run")
        if changed:
            logger.warning("this run continues with other options: %s", "; ".join(changed.values()))
        if notes := differences(state["written_by"], self._fingerprint()):
            logger.warning("a resumed run is bit for bit the same only in the same environment: %s", "; ".join(notes))
        self._refuse_other_shapes(tensors["model"], changed)
        self._load(tensors, state)
        self.step, self.partial_metrics = state["step"], PartialMetrics(**state["metrics"])
        return list(changed.values())

    def _load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Copies weights, the optimizer's state and averages into this training.

        Args:
            tensors: whole tensors, by file and name.
            state: the result of `_plain_state`.
        """
        for name, value in self.unwrapped.state_dict().items():
            copy_into(value, tensors["model"][plain(name)])
        load_optimizer(self.optimizer, self._names(), tensors["optimizer"], state["optimizer"])
        # an allowed change may add an average, which starts from the weights, or a scaler
        if self.ema is not None:
            averages = tensors.get("ema", tensors["model"])
            for name, average in self.ema.averages.items():
                copy_into(average, averages[plain(name)])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _refuse_other_shapes(self, found: Mapping[str, Tensor], changed: Mapping[str, str]) -> None:
        """Raises ValueError if the weights do not fit the model, which an allowed change of the config can cause."""
        for name, value in self.unwrapped.state_dict().items():
            if plain(name) not in found or found[plain(name)].shape != value.shape:
                shown = "; ".join(changed.values())
                raise ValueError(
                    f"the checkpoint lacks {plain(name)} or has it in another shape, so this model cannot continue from it: {shown}"
                )

    def _fingerprint(self) -> dict[str, Any]:
        """Returns the environment, whose differences a resume reports."""
        own = {"sharded": self.meta_copy is not None, "micro_batch_size": self.micro_batch_size}
        return {**fingerprint(self.accelerator), **own}

    def _names(self) -> dict[Tensor, str]:
        return {parameter: plain(name) for name, parameter in self.unwrapped.named_parameters()}


def plain(name: str) -> str:
    """Returns a tensor's name without the prefix that compiling single blocks adds."""
    return name.replace("_orig_mod.", "")
