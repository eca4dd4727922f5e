"""The numbers of a run that follow from its config, and the learning rate as a pure function of the step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmm.train.config import Schedule, TrainConfig

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FEW_UPDATES = 300  # with fewer updates, a model with new weights learns almost nothing


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that follow from its `TrainConfig`, its data and its processes.

    Attributes:
        steps: number of updates of the whole run.
        samples: number of samples in the data, which make one epoch.
        batch_size: samples per update, over all processes.
        processes: number of processes.
        micro_batch_size: samples that one process computes at once.
        accumulation: micro-batches that one process computes for one update.
        peak: the learning rate's peak, after scaling.
        warmup: updates over which the learning rate rises to the peak; may be a fraction of one, or more than `steps`.
        final: the learning rate at which a cosine or a line ends.
        start: the learning rate at which the rise begins.
        schedule: the course of the learning rate after the warm-up.
        milestones: fractions of the run at which the schedule steps divides it by ten.
    """

    steps: int
    samples: int
    batch_size: int
    processes: int
    micro_batch_size: int
    accumulation: int
    peak: float
    warmup: float
    final: float
    start: float = 0.0
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = ()

    def epoch(self, step: int) -> float:
        """Returns the number of passes over the data after `step` updates."""
        return step * self.batch_size / self.samples

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of an update, counted from 0; see `learning_rate`."""
        return learning_rate(
            step, self.steps, self.peak, self.warmup, self.final, self.start, schedule=self.schedule, milestones=self.milestones
        )


def make_plan(config: TrainConfig, *, samples: int, processes: int) -> Plan:
    """Computes the plan of a run before it starts.

    Raises:
        ValueError: neither steps nor epochs are given, or the batch size does not divide evenly.
    """
    micro_batch_size, accumulation = split_batch(config, processes)
    scale = 1.0 if config.scale_learning_rate is None else config.batch_size / config.scale_learning_rate
    peak, steps = config.learning_rate * scale, count_steps(config, samples)
    return Plan(
        steps=steps,
        samples=samples,
        batch_size=config.batch_size,
        processes=processes,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        peak=peak,
        warmup=count_warmup(config, samples, steps),
        final=config.final_learning_rate * peak,
        start=config.warmup_start * peak,
        schedule=config.schedule,
        milestones=config.milestones,
    )


def count_steps(config: TrainConfig, samples: int) -> int:
    """Returns the number of updates of the run; `epochs` is rounded up to whole updates."""
    if config.steps is not None:
        return config.steps
    if config.epochs is None:
        raise ValueError("the length of the run is not given: set train.steps or train.epochs")
    steps = math.ceil(round(config.epochs * samples / config.batch_size, 6))  # 0.1 * 30 / 1 is slightly above 3
    if steps < FEW_UPDATES:
        logger.warning(
            "train.epochs %g of %s samples are only %d updates of %s samples; with few samples set train.steps and a smaller "
            "train.batch_size, or take --preset small where a recipe has it",
            config.epochs,
            f"{samples:,}",
            steps,
            f"{config.batch_size:,}",
        )
    return steps


def count_warmup(config: TrainConfig, samples: int, steps: int) -> float:
    """Returns the number of updates of the warm-up. Warns if the run ends before the learning rate reaches its peak."""
    warmup: float = (config.warmup_epochs or 0) * samples / config.batch_size
    if config.warmup_steps is not None:
        warmup = config.warmup_steps
    if warmup >= steps > 1:
        logger.warning(
            "the learning rate rises over %.4g updates and the run has %d, so it never reaches its peak; set train.warmup_steps",
            warmup,
            steps,
        )
    return warmup


def split_batch(config: TrainConfig, processes: int) -> tuple[int, int]:
    """Returns the number of samples of a micro-batch, and the number of micro-batches that a process computes for one update.

    Raises:
        ValueError: batch_size is not processes x micro_batch_size x a whole number.
    """
    batch, micro = config.batch_size, config.micro_batch_size
    if batch % processes:
        raise ValueError(
            f"train.batch_size {batch} does not divide over {processes} processes; "
            f"use {_near(batch, processes)}, or another number of processes"
        )
    share = batch // processes
    if micro is None:
        return share, 1
    if share % micro:
        raise ValueError(
            f"train.batch_size {batch} on {processes} process{'es' * (processes > 1)} is {share} samples each, not a multiple of "
            f"train.micro_batch_size {micro}; use batch_size {_near(batch, processes * micro)}, or another micro_batch_size"
        )
    return micro, share // micro


def sizes(share: int, unit: int = 1) -> list[int]:
    """Returns the possible micro-batch sizes of a process: divisors of its share that are multiples of `unit`, in falling order."""
    return [share // parts for parts in range(1, share // unit + 1) if share % parts == 0 and share // parts % unit == 0]


def _near(value: int, unit: int) -> str:
    """Returns the multiples of `unit` below and above `value`, for a message."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    warmup: float,
    final: float,
    start: float = 0.0,
    *,
    schedule: Schedule = "cosine",
    milestones: Sequence[float] = (),
) -> float:
    """Computes the learning rate: linear from the start to the peak, then half a cosine or a line to the final value, or steps.

    Loshchilov and Hutter, ICLR 2017 (the cosine); Goyal et al., arXiv 1706.02677 (the warm-up). The learning rate depends on the
    step alone, so there is no state of a scheduler to save.

    Args:
        step: number of updates so far, 0 to steps - 1.
        steps: number of updates of the whole run.
        peak: largest value.
        warmup: number of updates of the rise.
        final: value at the end.
        start: value at the beginning of the rise.
        schedule: course after the peak.
        milestones: fractions of the run at which the schedule steps divides the peak by ten.
    """
    progress, rise = step / steps, warmup / steps
    if step < warmup:
        return start + (peak - start) * progress / rise
    if schedule == "steps":
        return peak * 0.1 ** sum(step >= share * steps for share in milestones)
    fallen = (progress - rise) / (1 - rise)
    return final + (peak - final) * (1 - fallen if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * fallen)))


def weight_decay(step: int, steps: int, start: float, end: float | None) -> float:
    """Computes the weight decay: half a cosine over the run from `start` to `end`, or constant without an end. `step` counts from
    0."""
    return start if end is None else end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each group, multiplied by the group's `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def set_weight_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Sets the weight decay of each group that has a `decay_scale`, multiplied by it; the scale of vectors is 0."""
    for group in optimizer.param_groups:
        group["weight_decay"] = decay * group["decay_scale"] if "decay_scale" in group else group["weight_decay"]


def due(step: int, every: int | None, steps: int) -> bool:
    """True if an event that happens every `every` updates, and after the last update, is due after this update."""
    return step == steps or (every is not None and step % every == 0)
