"""The loop through which every task trains.

    for update in fit(training, batches, loss_of, config=config.train, plan=plan, seed=seed, name_samples=ids):
        if update.save:
            training.save(run.checkpoints, config.train.keep_last, needed=update.last)

Around it stands the task's own `for`, which evaluates, draws pictures and saves; there are no hooks to look for. A signal to stop
ends it after the update that it fell into (`signals.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.rng import Stream, sample_keys, stream
from mmm.train.config import TrainConfig
from mmm.train.deterministic import Tree
from mmm.train.distributed.preemption import Agreement, Stopped, StopSignals
from mmm.train.metrics import Interval, NameSamples, Skipped
from mmm.train.nonfinite import carry, measure_gradient, step_if
from mmm.train.schedule import Plan, due, set_learning_rate, set_weight_decay, weight_decay
from mmm.train.training import Training
from mmm.train.waiting import Waited

# the mean loss of one micro-batch: (model, batch, step) -> () tensor. It moves the batch to the device, and calls the model that
# it is given, never `forward` of it: DDP and mixed precision live in the call.
LossOf = Callable[[nn.Module, Any, int], Tensor]


@dataclass(frozen=True)
class Update:
    """One update was made.

    Attributes:
        step: updates made so far.
        metrics: at log lines, of the updates since the line before: see `Interval.close`.
        skipped: updates that were left out, of those looked at since the update before.
        save: a checkpoint is due.
        last: none follows, for this is the plan's last or the run was asked to stop.
        made: whether the weights were updated, a bool () on the device; not where a loss or a gradient was not finite.
    """

    step: int
    metrics: dict[str, float] | None
    skipped: tuple[Skipped, ...]
    save: bool
    last: bool
    made: Tensor


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

    An update whose loss or gradient is not finite is left out: see `guard.py`. Lines of metrics fall on `log_every` and on
    `save_every`. What is saved was looked at before; a checkpoint between two lines, after a signal, keeps what the next line holds
    so far.

    Args:
        batches: micro-batches of this process from `training.step` on, `plan.accumulation` for each update.
        seed: of the run; the noise inside the model follows from it.
        name_samples: the ids of an update's samples, in the global batch's order, asked for when a loss is not finite.

    Yields:
        An `Update` after each.

    Raises:
        NonFiniteError: more than `max_skipped` updates in a row were left out; on all processes alike, at the next line.
        Stopped: a signal asked for it, and the caller had its turn to save; on all processes alike.
    """
    if training.step >= plan.steps:
        return  # a finished run, gone on with: one process could be gone before another has met it in the agreement's group
    model, accelerator = training.model, training.accelerator
    interval = Interval(accelerator, plan, name_samples, config.max_skipped, training.begun)
    waited = Waited(batches)
    collect = Tree(training, plan, config).collect if config.strict else partial(_mean, training, plan)
    with StopSignals(answers=accelerator.is_main_process) as signals:
        agreement = Agreement(accelerator, signals, config.timeout)
        for step in range(training.step, plan.steps):
            rate = plan.learning_rate(step)
            set_learning_rate(training.optimizer, rate)
            decay = weight_decay(step, plan.steps, config.weight_decay, config.weight_decay_end)
            set_weight_decay(training.optimizer, decay)
            signals.begin_update()
            model.train()  # the caller may have evaluated

            def compute(part: int, step: int = step) -> Tensor:
                seed_noise(accelerator.device, seed, step, accelerator.process_index * plan.accumulation + part)
                return loss_of(model, next(waited), step)

            losses = collect(compute)
            norm = _apply(training, config)
            interval.add(losses, norm)
            made = training.step = step + 1
            signals.end_update()
            stop = made < plan.steps and agreement.asked(made)
            save = stop or due(made, config.save_every, plan.steps)
            skipped = interval.look(made) if save or due(made, config.log_every, plan.steps) else ()
            line = due(made, config.log_every, plan.steps) or due(made, config.save_every, plan.steps)
            metrics = interval.close(made, rate, waited.take()) if line else None
            away = perf_counter()
            yield Update(made, metrics, skipped, save, last=stop or made == plan.steps, made=norm.isfinite())
            interval.pause(perf_counter() - away)
            if stop or (made == plan.steps and agreement.asked(made, last=True)):
                for tracker in accelerator.trackers:
                    tracker.finish()  # what it has not written yet
                raise Stopped


def _mean(training: Training, plan: Plan, compute: Callable[[int], Tensor]) -> list[Tensor]:
    """Leaves the mean gradient of an update in the weights; gives the losses of this process's micro-batches."""
    accelerator, losses = training.accelerator, []
    for part in range(plan.accumulation):
        last = part == plan.accumulation - 1
        with nullcontext() if last else training.no_sync():  # processes exchange gradients once an update
            loss = compute(part)
            accelerator.backward(carry(loss) / plan.accumulation)
        losses.append(loss.detach())
    return losses


def _apply(training: Training, config: TrainConfig) -> Tensor:
    """Makes the update that the gradients ask for, where they are finite; gives their norm, ()."""
    optimizer = training.optimizer
    norm = measure_gradient(training.accelerator, training.model, config.clip_norm)
    step_if(norm.isfinite(), optimizer, training.accelerator.scaler)
    optimizer.zero_grad(set_to_none=True)
    if training.ema is not None and config.ema is not None:
        training.ema.update(training.bare, config.ema, norm.isfinite())
    return norm


def seed_noise(device: torch.device, seed: int, step: int, part: int) -> None:
    """Makes drop path and dropout a function of the step, so that a resumed run draws what the uninterrupted one drew.

    `part` counts the micro-batches of the update over all processes: on two processes they draw what they draw on one.

    Not `torch.manual_seed`: that costs 0.1 ms and seeds every device there is.
    """
    key = int(stream(sample_keys(seed, step, part), Stream.NOISE))
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(key)
