"""The training loop of every task.

`Session` (session.py) runs it, and restores, logs and saves. A signal to stop ends the loop after the current update
(distributed/preemption.py).

All processes skip an update whose loss or gradient is not finite, and no host waits for a device. A non-finite loss makes its
gradient NaN, and the sum over the processes is then NaN on all of them, so that nothing else is exchanged. A flag on the device
records whether the norm of the whole gradient is finite. The fused optimizer reads it there, as it reads the flag of a gradient
scaler. The host reads it at the next line of metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.core.rng import Stream, sample_keys, stream
from mmm.train.config import TrainConfig
from mmm.train.deterministic import FixedOrderGradients
from mmm.train.distributed.preemption import StopAgreement, Stopped, StopSignals
from mmm.train.metrics import MetricsAccumulator, NameSamples, Skipped
from mmm.train.schedule import Plan, due, set_learning_rate, set_weight_decay, weight_decay
from mmm.train.state import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

# computes the mean loss of one micro-batch: (model, batch, step) -> () tensor. It moves the batch to the device, and calls the
# given model itself, never its `forward`, because DDP and mixed precision work in the call.
LossOf = Callable[[nn.Module, Any, int], Tensor]


@dataclass
class Update:
    """An update, yielded by `fit` after it was made.

    Attributes:
        step: number of updates so far.
        metrics: at a log line, the metrics of the updates since the last line (`MetricsAccumulator.flush`), otherwise empty. A task
            adds the results of its evaluations.
        skipped: updates without a step of the optimizer, among those synchronised since the last `Update`.
        save: whether a checkpoint is due.
        last: whether this is the last update, of the plan or before a requested stop.
        steps: number of updates of the whole run.
        made: whether the optimizer made a step, a bool () on the device; false if a loss or a gradient was not finite.
    """

    step: int
    metrics: dict[str, float]
    skipped: tuple[Skipped, ...]
    save: bool
    last: bool
    steps: int
    made: Tensor

    def due(self, every: int | None) -> bool:
        """True if an event that happens every `every` updates, and after the last update of the run, is due now."""
        return due(self.step, every, self.steps)


def fit(
    training: Training,
    batches: Iterator[Any],
    loss: LossOf,
    *,
    config: TrainConfig,
    plan: Plan,
    seed: int,
    name_samples: NameSamples,
) -> Iterator[Update]:
    """Trains from `training.step` to the end of the plan.

    Lines of metrics are written every `log_every` and `save_every` updates. The losses are checked before a checkpoint is saved. A
    checkpoint between two lines, after a signal, contains the metrics since the last line.

    Args:
        batches: micro-batches of this process from `training.step` on, `plan.accumulation` for each update.
        loss: computes the loss of a micro-batch.
        seed: random seed of the run, also for the noise inside the model.
        name_samples: returns the ids of an update's samples, in the global batch's order; called when a loss is not finite.

    Yields:
        An `Update` after each update.

    Raises:
        NonFiniteError: more than `max_skipped` successive updates were skipped. Raised on all processes, at the next line.
        Stopped: a signal requested it, and the caller could save. Raised on all processes.
    """
    if training.step >= plan.steps:
        return  # a finished run was resumed; one process could exit before another has joined the group of `StopAgreement`
    accelerator = training.accelerator
    metrics = MetricsAccumulator(accelerator, plan, name_samples, config.max_skipped, training.partial_metrics)
    fixed_order = FixedOrderGradients(training, plan, config) if config.strict else None
    with StopSignals(answers=accelerator.is_main_process) as signals:
        agreement = StopAgreement(accelerator, signals, config.timeout)
        for step in range(training.step, plan.steps):
            # ------------------------------------------------------------------------------------------------ one update
            signals.began = monotonic()
            rate = plan.learning_rate(step)
            set_learning_rate(training.optimizer, rate)
            set_weight_decay(training.optimizer, weight_decay(step, plan.steps, config.weight_decay, config.weight_decay_end))
            training.model.train()  # the caller may have evaluated
            losses = micro_losses(training, batches, loss, metrics, plan=plan, seed=seed, step=step)
            found = mean_gradients(training, plan, losses) if fixed_order is None else fixed_order.compute(losses)
            norm = apply_gradients(training, config)
            metrics.losses.append(torch.stack(found))  # both stay on the device until the next line of metrics
            metrics.norms.append(norm)
            made = training.step = step + 1
            signals.seconds, signals.began = monotonic() - signals.began, None
            # -------------------------------------------------------------------------------------------- once in a while
            stop = made < plan.steps and bool(signals.received or agreement.every_update) and agreement.stops(made)
            save = stop or due(made, config.save_every, plan.steps)
            line = due(made, config.log_every, plan.steps) or due(made, config.save_every, plan.steps)
            skipped = metrics.sync(made) if save or line else ()
            values = metrics.flush(made, rate) if line else {}
            away = perf_counter()
            yield Update(made, values, skipped, save, stop or made == plan.steps, plan.steps, norm.isfinite())
            metrics.since += perf_counter() - away
            if stop or (made == plan.steps and agreement.stops(made, last=True)):
                for tracker in accelerator.trackers:
                    tracker.finish()  # writes its buffered values
                raise Stopped


def micro_losses(
    training: Training,
    batches: Iterator[Any],
    loss: LossOf,
    metrics: MetricsAccumulator,
    *,
    plan: Plan,
    seed: int,
    step: int,
) -> Iterator[Tensor]:
    """Yields the losses of an update's micro-batches on this process, each with its graph; computes a loss when it is requested."""
    accelerator = training.accelerator
    for part in range(plan.accumulation):
        seed_noise(accelerator.device, seed, step, accelerator.process_index * plan.accumulation + part)
        start = perf_counter()
        batch = next(batches)
        metrics.waited += perf_counter() - start
        yield nan_if_nonfinite(loss(training.model, batch, step))


def mean_gradients(training: Training, plan: Plan, losses: Iterator[Tensor]) -> list[Tensor]:
    """Computes the mean gradient of an update into `grad` of the weights; returns the detached losses."""
    found = []
    for part in range(plan.accumulation):
        last = part == plan.accumulation - 1
        with nullcontext() if last else training.no_sync():  # processes exchange gradients once an update
            loss = next(losses)
            training.accelerator.backward(loss / plan.accumulation)
        found.append(loss.detach())
    return found


def apply_gradients(training: Training, config: TrainConfig) -> Tensor:
    """Makes a step of the optimizer and of the average of the weights if the gradients are finite. Returns their norm, ()."""
    norm = gradient_norm(training.accelerator, training.model, config.clip_norm)
    step_if_finite(norm, training.optimizer, training.accelerator.scaler)
    training.optimizer.zero_grad(set_to_none=True)
    if training.ema is not None and config.ema is not None:
        training.ema.update(training.unwrapped, config.ema, norm.isfinite())
    return norm


def seed_noise(device: torch.device, seed: int, step: int, part: int) -> None:
    """Seeds torch's generators from the step, so that drop path and dropout are the same in a resumed run.

    `part` counts the micro-batches of the update over all processes, so that two processes draw the same numbers as one.
    `torch.manual_seed` would take 0.1 ms and seed all devices.
    """
    key = int(stream(sample_keys(seed, step, part), Stream.NOISE))
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(key)


def nan_if_nonfinite(loss: Tensor) -> Tensor:
    """Returns the loss; its gradient is NaN if the loss is not finite. () -> ()."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)  # a factor of 1 changes no bit


def gradient_norm(accelerator: Accelerator, model: nn.Module, clip_norm: float | None) -> Tensor:
    """Clips the gradient if `clip_norm` is set, and returns its norm before clipping, ().

    The norm is finite if and only if the whole gradient is finite.
    """
    if clip_norm is not None:
        norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    else:
        accelerator.unscale_gradients()
        norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded model


def step_if_finite(norm: Tensor, optimizer: torch.optim.Optimizer, scaler: object | None) -> None:
    """Makes a step of the optimizer. If the gradient is not finite, changes neither weights nor state.

    Args:
        norm: norm of the gradient, () on the device.
        optimizer: the optimizer from Accelerate. Only fused Adam uses the flag on the device correctly. Others ignore it (timm's
            Lars), or their state becomes wrong (the first momentum of fused SGD is uninitialised memory); for them the host waits.
        scaler: the scaler of fp16, which makes this decision itself.
    """
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    if scaler is not None:
        optimizer.step()
    elif isinstance(inner, torch.optim.Adam) and inner.defaults["fused"]:
        inner.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
        del inner.found_inf  # type: ignore[attr-defined]
    elif norm.isfinite():
        optimizer.step()
