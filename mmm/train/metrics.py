"""What happened since the last line of metrics, kept on the device and looked at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmm.train.schedule import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

NameSamples = Callable[[int], list[int]]


@dataclass(frozen=True)
class Skipped:
    """An update that was left out, for a number in it was not finite.

    Attributes:
        step: counted from 0.
        what: loss or gradient.
        samples: ids of the samples of the micro-batches concerned.
    """

    step: int
    what: str
    samples: list[int]

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.samples[:16])) + f" and {len(self.samples) - 16} more" * (len(self.samples) > 16)
        return f"the {self.what} of step {self.step} is not finite; its samples: {shown}"


class NonFiniteError(ValueError):
    """Too many updates in a row had a loss or a gradient that is not a finite number.

    Attributes:
        step: the last of them.
        samples: ids of the samples of its micro-batches concerned.
    """

    def __init__(self, last: Skipped, row: int) -> None:
        super().__init__(
            f"{last}. It was left out like {row - 1} before it, more than train.max_skipped {row - 1} in a row; the weights are "
            "as they were before. The same samples would do the same again, so nothing is tried twice: look at them, lower "
            "train.learning_rate or set train.clip_norm, and --resume from the last checkpoint"
        )
        self.step, self.samples = last.step, last.samples


@dataclass
class Begun:
    """What the next line of metrics holds so far; a checkpoint between two lines keeps it.

    Attributes:
        losses, norms: of the updates that were made, means over all their samples.
        skipped: updates left out.
        row: updates left out in a row, up to now.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    row: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; floats come back as they were."""
        return asdict(self)


class Interval:
    """The losses and gradient norms of the updates since the last line. Shapes: S updates, P processes, A micro-batches."""

    def __init__(self, accelerator: Accelerator, plan: Plan, name_samples: NameSamples, max_skipped: int, begun: Begun) -> None:
        self.accelerator, self.plan, self.name_samples = accelerator, plan, name_samples
        self.max_skipped, self.begun = max_skipped, begun
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.since, self.steps = perf_counter(), 0

    def add(self, losses: list[Tensor], norm: Tensor) -> None:
        """Notes an update without waiting for it: its micro-batches' losses, and the whole gradient's norm."""
        self.losses.append(torch.stack(losses))  # (A,)
        self.norms.append(norm)
        self.steps += 1

    def pause(self, seconds: float) -> None:
        """Does not count the time that the caller spent on evaluating and saving."""
        self.since += seconds

    def look(self, step: int) -> tuple[Skipped, ...]:
        """Brings the numbers to the host, the one synchronisation of a line, into `begun`.

        Args:
            step: updates made so far.

        Returns:
            The updates left out that nobody has seen yet.

        Raises:
            NonFiniteError: on all processes alike.
        """
        losses = self.accelerator.gather(torch.stack(self.losses)[None]).cpu().double()  # (P, S, A)
        norms = torch.stack(self.norms).cpu().double()  # (S,), the same on all processes
        first, found, begun = step - len(norms), [], self.begun
        for offset in range(len(norms)):
            if losses[:, offset].isfinite().all() and norms[offset].isfinite():
                begun.losses.append(losses[:, offset].flatten().mean().item())  # in one order, whoever computed which
                begun.norms.append(norms[offset].item())
                begun.row = 0
            elif bad := self._refuse(first + offset, losses[:, offset]):
                found.append(bad)
        self.losses, self.norms = [], []
        return tuple(found)

    def close(self, step: int, rate: float, waited: float = 0.0) -> dict[str, float]:
        """The line of what was looked at; begins the next.

        Args:
            step: updates made so far.
            rate: the learning rate of the last update.
            waited: for data, seconds.

        Returns:
            loss: mean over the samples of the updates that were made. learning_rate, epoch: of the last update. grad_norm: mean,
            before clipping. skipped: updates left out, where there were any. samples_per_second: over all processes.
            data_wait: share of the time that this process waited for data.
        """
        begun, seconds = self.begun, perf_counter() - self.since
        metrics = {"loss": _mean(begun.losses), "learning_rate": rate, "epoch": self.plan.epoch(step)}
        metrics["grad_norm"] = _mean(begun.norms)
        if begun.skipped:
            metrics["skipped"] = begun.skipped
        metrics["samples_per_second"] = self.steps * self.plan.batch_size / seconds
        metrics["data_wait"] = waited / seconds
        begun.losses, begun.norms, begun.skipped = [], [], 0
        self.since, self.steps = perf_counter(), 0
        return metrics

    def _refuse(self, step: int, losses: Tensor) -> Skipped | None:
        """Counts an update that was left out, of losses (P, A)."""
        bad = ~losses.isfinite()
        if not bad.any() and self.accelerator.scaler is not None:
            return None  # fp16's scaler meets infinite gradients in its normal course
        ids = self.name_samples(step)
        if bad.any():
            ids = torch.tensor(ids).view(*bad.shape, -1)[bad].flatten().tolist()  # (P, A, micro-batch)
        skipped = Skipped(step, "loss" if bad.any() else "gradient", ids)
        self.begun.skipped += 1
        self.begun.row += 1
        if self.begun.row > self.max_skipped:
            raise NonFiniteError(skipped, self.begun.row)
        if self.accelerator.is_main_process:
            logger.warning("%s. This update was left out, on all processes", skipped)
        return skipped


def _mean(values: list[float]) -> float:
    """NaN of none."""
    return torch.tensor(values, dtype=torch.float64).mean().item()
