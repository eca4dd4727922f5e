"""How long a training waits for its data, and what helps.

What is measured is the time in which this process asks for a micro-batch and has none. On a CPU nothing is computed meanwhile. A
GPU goes on with what was queued before, so it stands still for at most that long; a share of a few hundredths is the host's own.
Each process measures its own; the first one's is shown. (Where another is slower, the first waits in the exchange of gradients.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

MUCH = 0.1  # share of the time above which there is advice

ADVICE = (
    "To wait less: more data.workers where cores are idle; data.repeats, several samples of a decoded input; smaller inputs "
    "(videos: mmm prepare_video; photographs: copies not much larger than a sample)"
)


class Waited(Iterator[Any]):
    """Batches, and how long was waited for them."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> Any:
        start = perf_counter()
        try:
            return next(self.batches)
        finally:
            self.seconds += perf_counter() - start

    def take(self) -> float:
        """Seconds since it was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Waits:
    """The whole run's share, from its lines of metrics."""

    def __init__(self) -> None:
        self.waited = self.seconds = 0.0

    def add(self, metrics: Mapping[str, float], samples: int) -> None:
        """Counts a line, which `samples` were trained on since the line before."""
        seconds = samples / metrics["samples_per_second"]
        self.waited += metrics["data_wait"] * seconds
        self.seconds += seconds

    def __str__(self) -> str:
        share = self.waited / self.seconds if self.seconds else 0.0
        return f"the training waited for data {share:.1%} of its time" + f". {ADVICE}" * (share > MUCH)
