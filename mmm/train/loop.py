"""The loop through which every task trains.

    for update in fit(training, batches, loss_of, config=config.train, plan=plan, seed=seed, name_samples=ids):
        if due(update.step, config.train.save_every, plan.steps):
            training.save(run.checkpoints, config.train.keep_last)

Around it stands the task's own `for`, which evaluates, draws pictures and saves; there are no hooks to look for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from mmm.keys import Stream, sample_keys, stream
from mmm.train.config import TrainConfig
from mmm.train.interval import Interval, NameSamples
from mmm.train.schedule import Plan, due, learning_rate, set_learning_rate
from mmm.train.training import Training

# the mean loss of one micro-batch: (model, batch, step) -> () tensor. It moves the batch to the device, and calls the model that
# it is given, never `forward` of it: DDP and mixed precision live in the call.
LossOf = Callable[[nn.Module, Any, int], Tensor]


@dataclass(frozen=True)
class Update:
    """One update was made.

    Attributes:
        step: updates made so far.
        metrics: at log lines, of the updates since the line before: see `Interval.close`.
    """

    step: int
    metrics: dict[str, float] | None


def fit(
    training: Training,
    batches: Iterator[Any],
    loss_of: LossOf,
    *,
    config: TrainConfig,
    plan: Plan,
    seed: int,
    name_samples: NameSamples,
) -> Iterator[Update]:
    """Trains from `training.step` to the end of the plan.

    Lines of metrics fall on `log_every` and on `save_every`: what is saved was looked at before, and a resumed run begins its
    first line where the uninterrupted one does.

    Args:
        batches: micro-batches of this process from `training.step` on, `plan.accumulation` for each update.
        seed: of the run; the noise inside the model follows from it.
        name_samples: the ids of an update's samples, in the global batch's order, asked for when a loss is not finite.

    Yields:
        An `Update` after each.

    Raises:
        NonFiniteError: on all processes alike, at the next line.
    """
    model, optimizer, accelerator = training.model, training.optimizer, training.accelerator
    interval = Interval(accelerator, plan, name_samples)
    for step in range(training.step, plan.steps):
        rate = learning_rate(step, plan.steps, plan.peak, config.warmup, config.final_learning_rate)
        set_learning_rate(optimizer, rate)
        model.train()  # the caller may have evaluated
        losses = []
        for part in range(plan.accumulation):
            seed_noise(accelerator.device, seed, step, accelerator.process_index * plan.accumulation + part)
            last = part == plan.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(model):  # processes exchange gradients once an update
                loss = loss_of(model, next(batches), step)
                accelerator.backward(loss / plan.accumulation)
            losses.append(loss.detach())
        norm = None if config.clip_norm is None else accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if training.ema is not None and config.ema is not None:
            training.ema.update(training.bare, config.ema)
        training.step = step + 1
        interval.add(losses, norm)
        line = due(training.step, config.log_every, plan.steps) or due(training.step, config.save_every, plan.steps)
        metrics = interval.close(training.step, rate) if line else None
        away = perf_counter()
        yield Update(training.step, metrics)
        interval.pause(perf_counter() - away)


def seed_noise(device: torch.device, seed: int, step: int, part: int) -> None:
    """Makes drop path and dropout a function of the step, so that a resumed run draws what the uninterrupted one drew.

    `part` counts the micro-batches of the update over all processes: on two processes they draw what they draw on one.

    Not `torch.manual_seed`: that costs 0.1 ms and seeds every device there is.
    """
    key = int(stream(sample_keys(seed, step, part), Stream.NOISE))
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(key)
