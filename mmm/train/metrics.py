"""Accumulates losses and gradient norms on the device between log lines, so that logging costs one synchronisation.

Data-loading time is measured here too: the time between the request for a micro-batch and its arrival. On a CPU nothing is computed
during this time. A GPU continues with queued work, so it is idle for at most this time; a share of a few percent is overhead of the
host. Each process measures its own time, and that of the first process is shown. (If another process is slower, the first waits in
the exchange of gradients.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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

HALVINGS = 16  # from the first scale of fp16's gradient scaler, 65,536, to 1

MUCH = 0.1  # share of the time spent waiting for data above which advice is given
ADVICE = (
    "To wait less: more data.workers where cores are idle; data.repeats, several samples of a decoded input; smaller inputs "
    "(videos: mmm prepare_video; photographs: copies not much larger than a sample)"
)


@dataclass(frozen=True)
class Skipped:
    """An update that was skipped because its loss or gradient was not finite.

    Attributes:
        step: counted from 0.
        what: loss or gradient.
        samples: ids of the samples of the affected micro-batches.
    """

    step: int
    what: str
    samples: list[int]

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.samples[:16])) + f" and {len(self.samples) - 16} more" * (len(self.samples) > 16)
        return f"the {self.what} of step {self.step} is not finite; its samples: {shown}"


class NonFiniteError(ValueError):
    """Too many successive updates had a loss or a gradient that is not finite.

    Attributes:
        step: the last of these updates.
        samples: ids of the samples of its affected micro-batches.
        skipped: the skipped updates since the last call of `MetricsAccumulator.sync`, which have not been recorded.
    """

    def __init__(self, skipped: Sequence[Skipped], row: int) -> None:
        last = skipped[-1]
        super().__init__(
            f"{last}. It was skipped like the {row - 1} before it, more than train.max_skipped {row - 1} in a row; the weights "
            "were not changed. The same samples would fail again, so they are not tried again: look at them, lower "
            "train.learning_rate or set train.clip_norm, and --resume from the last checkpoint"
        )
        self.step, self.samples, self.skipped = last.step, last.samples, tuple(skipped)


@dataclass
class PartialMetrics:
    """The part of the next line of metrics that is already on the host. A checkpoint between two lines contains it.

    Attributes:
        losses, norms: means over the samples of each update that was made.
        skipped: number of skipped updates.
        row: number of successive skipped updates up to now.
        rescaled: number of successive updates up to now for which fp16's scaler halved its scale. They do not count as skipped.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    row: int = 0
    rescaled: int = 0

    def plain(self) -> dict[str, Any]:
        """Returns the values for JSON; floats are stored exactly."""
        return asdict(self)


class MetricsAccumulator:
    """The losses and gradient norms of the updates since the last line. Shapes: S updates, P processes, A micro-batches.

    Attributes:
        losses: losses of each update, (A,) on the device. The loop appends them.
        norms: norm of the whole gradient of each update, () on the device. The loop appends them.
        waited: seconds in which this process waited for data since the last line. The loop adds to it.
        since: start of the line, plus the time that the caller spends on evaluating and saving.
    """

    def __init__(
        self, accelerator: Accelerator, plan: Plan, name_samples: NameSamples, max_skipped: int, partial: PartialMetrics
    ) -> None:
        self.accelerator, self.plan, self.name_samples = accelerator, plan, name_samples
        self.max_skipped, self.partial = max_skipped, partial
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.since, self.waited, self.steps = perf_counter(), 0.0, 0

    def sync(self, step: int) -> tuple[Skipped, ...]:
        """Copies the numbers to the host, into `partial`. This is the only synchronisation of a line.

        Args:
            step: number of updates so far.

        Returns:
            The skipped updates since the last call.

        Raises:
            NonFiniteError: too many successive updates were skipped. Raised on all processes.
        """
        losses = self.accelerator.gather(torch.stack(self.losses)[None]).cpu().double()  # (P, S, A)
        norms = torch.stack(self.norms).cpu().double()  # (S,), the same on all processes
        first, found, partial = step - len(norms), [], self.partial
        for offset in range(len(norms)):
            if losses[:, offset].isfinite().all() and norms[offset].isfinite():
                partial.losses.append(losses[:, offset].flatten().mean().item())  # in an order independent of processes
                partial.norms.append(norms[offset].item())
                partial.row = partial.rescaled = 0
            elif skipped := self._count_skipped(first + offset, losses[:, offset]):
                found.append(skipped)
                if partial.row > self.max_skipped:
                    raise NonFiniteError(found, partial.row)
                if self.accelerator.is_main_process:
                    logger.warning("%s. This update was left out, on all processes", skipped)
        self.steps += len(norms)
        self.losses, self.norms = [], []
        return tuple(found)

    def flush(self, step: int, rate: float) -> dict[str, float]:
        """Returns the metrics of the updates that were synchronised, and begins the next line.

        Args:
            step: updates made so far.
            rate: the learning rate of the last update.

        Returns:
            loss: mean over the samples of the updates that were made. learning_rate, epoch: values of the last update. grad_norm:
            mean before clipping. skipped: number of skipped updates, if there were any. samples_per_second: total of all processes.
            data_wait: share of the time that this process waited for data.
        """
        partial, seconds = self.partial, perf_counter() - self.since
        metrics = {"loss": _mean(partial.losses), "learning_rate": rate, "epoch": self.plan.epoch(step)}
        metrics["grad_norm"] = _mean(partial.norms)
        if partial.skipped:
            metrics["skipped"] = partial.skipped
        metrics["samples_per_second"] = self.steps * self.plan.batch_size / seconds
        metrics["data_wait"] = self.waited / seconds
        partial.losses, partial.norms, partial.skipped = [], [], 0
        self.since, self.waited, self.steps = perf_counter(), 0.0, 0
        return metrics

    def _count_skipped(self, step: int, losses: Tensor) -> Skipped | None:
        """Counts a skipped update with losses (P, A). None: only fp16's scale was too large for its gradients."""
        bad = ~losses.isfinite()
        if not bad.any() and self.accelerator.scaler is not None and self.partial.rescaled < HALVINGS:
            self.partial.rescaled += 1
            return None
        ids = self.name_samples(step)
        if bad.any():
            ids = torch.tensor(ids).view(*bad.shape, -1)[bad].flatten().tolist()  # (P, A, micro-batch)
        self.partial.skipped += 1
        self.partial.row += 1
        return Skipped(step, "loss" if bad.any() else "gradient", ids)


class DataWait:
    """The share of a whole run's time that was spent waiting for data, from its lines of metrics."""

    def __init__(self) -> None:
        self.waited = self.seconds = 0.0

    def add(self, metrics: Mapping[str, float], samples: int) -> None:
        """Adds a line. `samples`: number of training samples since the previous line."""
        seconds = samples / metrics["samples_per_second"]
        self.waited += metrics["data_wait"] * seconds
        self.seconds += seconds

    def __str__(self) -> str:
        share = self.waited / self.seconds if self.seconds else 0.0
        return f"the training waited for data {share:.1%} of its time" + f". {ADVICE}" * (share > MUCH)


def _mean(values: list[float]) -> float:
    """Returns the mean; NaN if there are no values."""
    return torch.tensor(values, dtype=torch.float64).mean().item()
