"""What happened since the last line of metrics, kept on the device and looked at once."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmm.train.schedule import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

NameSamples = Callable[[int], list[int]]


class NonFiniteError(ValueError):
    """A loss or a gradient that is not a finite number.

    Attributes:
        step: the update (counted from 0) whose samples gave the first such number.
        samples: ids of the samples of the micro-batches concerned.
    """

    def __init__(self, what: str, step: int, samples: list[int]) -> None:
        shown = ", ".join(map(str, samples[:16])) + f" and {len(samples) - 16} more" * (len(samples) > 16)
        super().__init__(
            f"the {what} of step {step} is not finite; its samples: {shown}. Nothing was saved since; look at these samples, "
            "lower train.learning_rate or set train.clip_norm, and --resume from the last checkpoint"
        )
        self.step, self.samples = step, samples


class Interval:
    """The losses and gradient norms of the updates since the last line. Shapes: S updates, P processes, A micro-batches."""

    def __init__(self, accelerator: Accelerator, plan: Plan, name_samples: NameSamples) -> None:
        self.accelerator, self.plan, self.name_samples = accelerator, plan, name_samples
        self._begin()

    def _begin(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.since = perf_counter()

    def add(self, losses: list[Tensor], norm: Tensor | None) -> None:
        """Notes an update without waiting for it: its micro-batches' losses, and the whole gradient's norm where it is known."""
        self.losses.append(torch.stack(losses))  # (A,)
        self.norms += [] if norm is None else [norm]

    def pause(self, seconds: float) -> None:
        """Does not count the time that the caller spent on evaluating and saving."""
        self.since += seconds

    def close(self, step: int, rate: float) -> dict[str, float]:
        """Brings the numbers to the host, the one synchronisation of a line, and begins the next interval.

        Args:
            step: updates made so far.
            rate: the learning rate of the last of them.

        Returns:
            loss: mean over the interval's samples. learning_rate, epoch: of the last update. grad_norm: mean, before clipping,
            where it was measured. samples_per_second: over all processes.

        Raises:
            NonFiniteError: on all processes alike.
        """
        losses = self.accelerator.gather(torch.stack(self.losses)[None]).cpu().double()  # (P, S, A)
        norms = torch.stack(self.norms).cpu().double() if self.norms else torch.empty(0)  # (S,), the same on all processes
        self._refuse_non_finite(step, losses, norms)
        seconds = perf_counter() - self.since
        metrics = {"loss": losses.mean().item(), "learning_rate": rate, "epoch": self.plan.epoch(step)}
        if norms.isfinite().any():
            metrics["grad_norm"] = norms[norms.isfinite()].mean().item()
        metrics["samples_per_second"] = losses.shape[1] * self.plan.batch_size / seconds
        self._begin()
        return metrics

    def _refuse_non_finite(self, step: int, losses: Tensor, norms: Tensor) -> None:
        """The first update with such a number is named, for all later ones have it from there."""
        first = step - losses.shape[1]
        bad_loss = ~losses.isfinite()  # (P, S, A)
        # fp16's scaler meets infinite gradients in its normal course, and leaves those updates out
        bad_norm = ~norms.isfinite() & (self.accelerator.scaler is None)
        for offset in range(losses.shape[1]):
            if bad_loss[:, offset].any():
                ids = torch.tensor(self.name_samples(first + offset)).view(*bad_loss[:, offset].shape, -1)  # (P, A, micro-batch)
                raise NonFiniteError("loss", first + offset, ids[bad_loss[:, offset]].flatten().tolist())
            if len(bad_norm) and bad_norm[offset]:
                raise NonFiniteError("gradient", first + offset, self.name_samples(first + offset))
