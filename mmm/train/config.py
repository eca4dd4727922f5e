"""Options of a training. Numbers from papers belong in recipes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmm.config.diff import flatten

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of the training."""

    steps: int | None = None
    """Updates to make; none: as many as `epochs` takes."""
    epochs: float | None = None
    """Passes over the data, where `steps` is none."""
    batch_size: int
    """Samples for one update, over all processes together."""
    micro_batch_size: int | None = None
    """Samples that one process computes at once; the gradients of several are accumulated. none: the most that fits, at best
    batch_size / processes; found when the run begins, and kept."""
    checkpoint_blocks: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, about a third more work."""
    learning_rate: float
    """The peak, for `scale_learning_rate` samples an update."""
    scale_learning_rate: int | None = 256
    """Samples an update that `learning_rate` is stated for: the peak is learning_rate * batch_size / this. none: unscaled."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate rises from 0 to its peak, where `warmup_steps` is none; with neither it starts there."""
    warmup_steps: int | None = None
    """Updates over which the learning rate rises from 0 to its peak."""
    warmup_start: float = 0.0
    """Fraction of the peak, 0 to 1, at which that rise begins (I-JEPA: 0.2)."""
    final_learning_rate: float = 0.0
    """Fraction of the peak, 0 to 1, at which the half-cosine after the peak ends."""
    weight_decay: float = 0.05
    """Weight decay of matrices; biases, norms and other vectors are never decayed."""
    decay_tokens: bool = True
    """Decay class tokens, mask tokens and learned positions too, as MAE does; VideoMAE does not."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the run, to which half a cosine leads (I-JEPA); none: it stays as it is."""
    optimizer: str = "adamw"
    """One of timm's optimizers by name: adamw, lion, lamb, lars, muon, adamuon, nadamw, sgd and others."""
    betas: tuple[float, float] | None = None
    """Decays of the averages of gradients and of their squares; none: the optimizer's own (adamw: 0.9 0.999)."""
    momentum: float | None = None
    """Decay of the average of gradients of an optimizer that has one such number (lars, muon, sgd); none: its own, or 0.9 where
    that is 0."""
    encoder_rate: float = 1.0
    """Factor of the encoder's learning rate."""
    embedding_rate: float = 1.0
    """Factor of the learning rate of the encoder's patch embedding, beside the encoder's (CAPI: 0.2)."""
    decoder_rate: float = 1.0
    """Factor of the decoder's learning rate."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; none: not clipped."""
    max_skipped: int = 5
    """Updates in a row that may be left out because a loss or a gradient is not finite; one more stops the run."""
    ema: float | None = None
    """Decay per update of an exponential moving average of the weights, kept beside them; none: no average."""
    precision: Precision = "auto"
    """auto: what Accelerate's configuration names unless that is `no`; else bf16 on a GPU with bf16 units; else fp32."""
    compile: bool = False
    """Compile the model with torch.compile; the first step takes long."""
    strict: bool = False
    """The same bits on 1, 2 and 4 processes: gradients are summed in one fixed order over the micro-batches, which needs
    `micro_batch_size` and `threads` and costs some speed. Else runs on another number of processes agree to rounding."""
    threads: int | None = None
    """CPU threads of each process; none: on a CPU the cores that it may use, shared by the processes."""
    log_every: int = 20
    """Updates between two lines of metrics, and so between two host-device synchronisations."""
    save_every: int = 1000
    """Updates between two checkpoints; the last update is always saved."""
    keep_last: int | None = 2
    """Checkpoints to keep; none: all."""
    keep_every: int | None = None
    """Updates between two checkpoints that are kept for good, beside the last ones; a multiple of `save_every`. none: none are."""
    evaluate_every: int | None = None
    """Updates between two evaluations while training; none: only at the end."""
    timeout: float = 600.0
    """Seconds that a process waits for another that is alive and does not answer, before the run ends."""
    tracker: str | None = None
    """An experiment tracker that Accelerate knows, for instance tensorboard, wandb, trackio, mlflow or swanlab, which also get the
    pictures of the run; none: metrics.jsonl only."""
    tracker_options: tuple[str, ...] = ()
    """Arguments of the tracker's own start, NAME=VALUE, for instance project=cells mode=offline."""

    def __post_init__(self) -> None:
        whole = ("steps", "batch_size", "micro_batch_size", "scale_learning_rate", "threads")
        every = ("log_every", "save_every", "keep_last", "evaluate_every")
        for name in (*whole, *every, "epochs", "learning_rate", "clip_norm", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"train.{name} {value} must be above 0")
        for name in ("warmup_epochs", "warmup_steps", "weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"train.{name} {value} must be 0 or more")
        for name in ("warmup_start", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name} {getattr(self, name)} is a fraction of the peak: give 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas or ()):
            raise ValueError(f"train.betas {self.betas} are decays: give numbers of at least 0, below 1")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"train.momentum {self.momentum} is a decay: give a number of at least 0, below 1")
        for name in ("encoder_rate", "embedding_rate", "decoder_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} {getattr(self, name)} must be above 0: it multiplies the learning rate")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.save_every):
            raise ValueError(
                f"train.keep_every {self.keep_every} is no multiple of train.save_every {self.save_every}; use "
                f"{max(1, round(self.keep_every / self.save_every)) * self.save_every}, or none"
            )
        if self.max_skipped < 0:
            raise ValueError(f"train.max_skipped {self.max_skipped} must be 0 or more; 0 stops at the first such number")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"train.ema {self.ema} is a decay: give a number between 0 and 1, or none")


Resume = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of every task that trains."""

    train: TrainConfig
    seed: int = 0
    """Random seed for new weights, the order of samples, crops, masks, augmentations and parts of the data that are held back."""
    folder: str | None = None
    """Folder of the run; none: runs/TASK-N with the next free number."""
    resume: Resume = False
    """Go on from the newest whole checkpoint in the run's folder, with the config that lies there. auto: start the run where the
    folder holds none yet, so that the same command does both."""
    allow: tuple[str, ...] = ()
    """Choices that may differ from those of the run that is resumed, by name, for instance train.steps; data.fingerprint for the
    data's content. Such a run is no longer the one that its first command describes."""
    dry_run: bool = False
    """Print what the run would take, and end."""


# These options do not change results beyond rounding: a resumed run may choose them again.
RUNTIME = frozenset(("folder", "resume", "allow", "dry_run")) | frozenset(
    f"train.{name}"
    for name in (
        "micro_batch_size",
        "checkpoint_blocks",
        "compile",
        "strict",
        "threads",
        "log_every",
        "max_skipped",
        "save_every",
        "keep_last",
        "keep_every",
        "evaluate_every",
        "timeout",
        "tracker",
        "tracker_options",
    )
)


DATA_RUNTIME = ("source", "workers", "cache", "max_bad", "deadline")  # the data's content is compared by its fingerprint


def identity(config: Mapping[str, Any], *, runtime: Collection[str] = ()) -> dict[str, Any]:
    """The options that identify a run: the flat config without those that may change between a stop and its resume.

    Args:
        config: nested, of a task.
        runtime: the task's own names, dotted, that may change beside `RUNTIME` and `DATA_RUNTIME`; a group covers all in it.
    """
    flat = json.loads(json.dumps(flatten(config)))  # as JSON returns it: tuples become lists
    return {name: value for name, value in flat.items() if not _may_change(name, runtime)}


def _may_change(name: str, runtime: Collection[str]) -> bool:
    outer, _, last = name.rpartition(".")
    if outer.rpartition(".")[2] == "data" and last in DATA_RUNTIME:
        return True
    return name in RUNTIME or any(name == own or name.startswith(f"{own}.") for own in runtime)
