"""Options of training. Numbers from papers belong in recipes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmm.config.diff import flatten
from mmm.core.checks import AboveZero, CheckedConfig, Count, Fraction, NonNegative, Positive, Rate, ZeroToOne

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "steps"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CheckedConfig):
    """Options of the training."""

    steps: Positive | None = None
    """Number of updates. None: the number that `epochs` needs."""
    epochs: AboveZero | None = None
    """Number of passes over the data. Used only if `steps` is none."""
    batch_size: Positive
    """Samples for one update, over all processes together."""
    micro_batch_size: Positive | None = None
    """Samples that one process computes at once. Gradients are accumulated up to `batch_size`. Another number changes results by
    rounding, and by more if samples are mixed, if the model draws noise (drop path, dropout), or if a loss or a norm joins samples.
    None: the largest number that fits into memory, at most batch_size / processes; it is determined when the run begins, and then
    kept."""
    checkpoint_blocks: bool = False
    """Keep only the input of each block for the backward pass, and recompute the rest. Needs less memory and about a third more
    computation."""
    learning_rate: AboveZero
    """Peak learning rate for `scale_learning_rate` samples per update."""
    scale_learning_rate: Positive | None = 256
    """Batch size for which `learning_rate` is stated. The peak is learning_rate * batch_size / scale_learning_rate. None: the
    peak is learning_rate."""
    warmup_epochs: NonNegative | None = None
    """Epochs over which the learning rate rises to its peak. Used only if `warmup_steps` is none. None for both: no warm-up."""
    warmup_steps: Count | None = None
    """Updates over which the learning rate rises to its peak."""
    warmup_start: ZeroToOne = 0.0
    """Learning rate at the start of the warm-up, as a fraction of the peak, from 0 to 1 (I-JEPA: 0.2)."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up. cosine: half a cosine; linear: a straight line; both end at
    `final_learning_rate`. steps: the peak, divided by ten at each of `milestones`."""
    milestones: tuple[ZeroToOne, ...] = (0.889, 0.963)
    """Fractions of the run at which the schedule steps divides the learning rate by ten (default: ViTDet's)."""
    final_learning_rate: ZeroToOne = 0.0
    """Learning rate at the end of a schedule cosine or linear, as a fraction of the peak, from 0 to 1."""
    weight_decay: NonNegative = 0.05
    """Weight decay of matrices. Biases, norms and other vectors are never decayed."""
    decay_tokens: bool = True
    """Decay class tokens, mask tokens and learned positions too, as MAE does; VideoMAE does not."""
    weight_decay_end: NonNegative | None = None
    """Weight decay at the end of the run, which it approaches along half a cosine (I-JEPA). None: `weight_decay` throughout."""
    optimizer: str = "adamw"
    """Name of an optimizer of timm: adamw, lion, lamb, lars, muon, adamuon, nadamw, sgd and others."""
    betas: tuple[Rate, Rate] | None = None
    """Decay rates of the averages of the gradients and of their squares. None: the optimizer's own (adamw: 0.9 0.999)."""
    momentum: Rate | None = None
    """Momentum of optimizers that have a single one (lars, muon, sgd). None: the optimizer's own, or 0.9 if that is 0."""
    encoder_rate: AboveZero = 1.0
    """Factor of the encoder's learning rate."""
    embedding_rate: AboveZero = 1.0
    """Factor of the learning rate of the patch embedding, in addition to `encoder_rate` (CAPI: 0.2)."""
    decoder_rate: AboveZero = 1.0
    """Factor of the decoder's learning rate."""
    clip_norm: AboveZero | None = None
    """Largest norm of the gradient of all weights; larger gradients are scaled down to it. None: no clipping."""
    max_skipped: Count = 5
    """Largest number of successive updates that are skipped because a loss or a gradient is not finite. If one more must be
    skipped, the run stops. With fp16, the first 16 successive gradients that are not finite do not count: each halves the factor by
    which the loss is scaled, 65,536 at first."""
    ema: Fraction | None = None
    """Decay per update of an exponential moving average of the weights, which is saved with them. None: no average."""
    precision: Precision = "auto"
    """Precision of the computation. auto: that of Accelerate's configuration unless it is `no`, else bf16 on GPUs that support
    it, else fp32."""
    compile: bool = False
    """Compile the model with torch.compile. The first step then takes longer."""
    strict: bool = False
    """Get the same bits on 1, 2 and 4 processes: gradients are summed in one fixed order over the micro-batches. Needs
    `micro_batch_size` and `threads`, and is slower. False: runs on different numbers of processes, with the same
    `micro_batch_size`, differ by rounding."""
    threads: Positive | None = None
    """CPU threads of each process. None: on a CPU, the processes share the cores that they may use."""
    log_every: Positive = 20
    """Updates between two lines of metrics. Each line needs a synchronisation with the device."""
    save_every: Positive = 1000
    """Updates between two checkpoints. The last update is always saved."""
    keep_last: Positive | None = 2
    """Number of checkpoints to keep, the newest. None: all."""
    keep_every: Positive | None = None
    """Updates between two checkpoints that are never deleted; a multiple of `save_every`. None: only `keep_last` counts."""
    evaluate_every: Positive | None = None
    """Updates between two evaluations during training. None: only at the end."""
    timeout: AboveZero = 600.0
    """Seconds after which the run ends if a process is alive but does not respond."""
    tracker: str | None = None
    """Experiment tracker that Accelerate supports, for instance tensorboard, wandb, trackio, mlflow or swanlab. It also gets
    the pictures of the run. None: only metrics.jsonl is written."""
    tracker_options: tuple[str, ...] = ()
    """Arguments of the tracker as NAME=VALUE, for instance project=cells mode=offline. They are saved, so secrets are refused; set
    them in the environment, for instance WANDB_API_KEY."""

    @property
    def flag(self) -> str:
        return "train"

    def validate(self) -> None:
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(
                f"train.keep_every {self.keep_every} is not a multiple of train.save_every {self.save_every}; use "
                f"{max(1, round(self.keep_every / self.save_every)) * self.save_every}, or none"
            )


Resume = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class RunConfig(CheckedConfig):
    """Options of every task that trains."""

    train: TrainConfig
    seed: int = 0
    """Random seed for new weights, the order of samples, crops, masks, augmentations and the choice of samples that are held
    back."""
    folder: str | None = None
    """Folder of the run. None: runs/TASK-N with the next free number."""
    resume: Resume = False
    """Continue from the newest complete checkpoint in the run folder, with the config of the run. auto: continue if there is a
    checkpoint, else start, so that one command does both."""
    allow: tuple[str, ...] = ()
    """Names of options that may differ from those of the run that is resumed, for instance train.steps, or data.fingerprint for
    the content of the data. The result is then not that of the first command."""
    dry_run: bool = False
    """Print parameters, tokens, steps, memory and the estimated time, and exit without training."""


# A resumed run may use other values of these options, which do not change results beyond rounding. micro_batch_size may (see its
# text), and a resume logs a change of it.
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
    """Returns the options that identify a run: the flat config without those that may change when a run is resumed.

    Args:
        config: nested config of a task.
        runtime: dotted names of the task's own options that may change, in addition to `RUNTIME` and `DATA_RUNTIME`. The name of a
            group includes all its options.
    """
    flat = json.loads(json.dumps(flatten(config)))  # as JSON returns it: tuples become lists
    return {name: value for name, value in flat.items() if not _may_change(name, runtime)}


def _may_change(name: str, runtime: Collection[str]) -> bool:
    outer, _, last = name.rpartition(".")
    if outer.rpartition(".")[2] == "data" and last in DATA_RUNTIME:
        return True
    return name in RUNTIME or any(name == own or name.startswith(f"{own}.") for own in runtime)
