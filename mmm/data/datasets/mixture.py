"""Several sources in one training: each update takes its samples from one of them, in a fixed cycle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mmm.data.annotated.detection import AnnotatedObjects
from mmm.data.annotated.pixels import LabelledPixels
from mmm.data.datasets.clips import Clips
from mmm.data.datasets.images import Images
from mmm.data.loading.loader import Batch, train_batches
from mmm.data.loading.sampler import spread
from mmm.data.loading.sizes import train_sizes

Part = Images | Clips | LabelledPixels[Any] | AnnotatedObjects


class Mixture:
    """The training samples of a run, from one source or several.

    A cycle contains `updates[i]` updates on source i, spread as evenly as possible. The source of an update and its samples
    depend on the step alone, so a run can be resumed at any step and on any number of processes.

    Args:
        parts: the open sources.
        updates: number of updates of each source in a cycle.
        seed: random seed of the run.
    """

    def __init__(self, parts: Sequence[Part], updates: Sequence[int], seed: int) -> None:
        self.parts, self.updates, self.seed = list(parts), list(updates), seed
        self.cycle = spread(updates)
        self.orders = [part.order(seed, source) for source, part in enumerate(parts)]

    def source(self, step: int) -> int:
        """Returns the number of the source of an update."""
        return self.cycle[step % len(self.cycle)]

    def before(self, source: int, step: int) -> int:
        """Returns the number of updates on this source before a step."""
        cycles, rest = divmod(step, len(self.cycle))
        return cycles * self.updates[source] + self.cycle[:rest].count(source)

    @property
    def unit(self) -> int:
        """The smallest micro-batch: the least common multiple of the samples per decoded input of all sources."""
        return math.lcm(*(part.config.repeats for part in self.parts))

    def check(self, micro_batch_size: int) -> None:
        """Raises ValueError if a micro-batch would contain only some of the samples of a decoded input."""
        for part in self.parts:
            repeats = part.config.repeats
            if micro_batch_size % repeats:
                raise ValueError(f"data.repeats {repeats} does not divide a micro-batch of {micro_batch_size} samples; change one")

    @property
    def epoch(self) -> int:
        """Number of samples of all sources in one pass over the first source, including its repeats."""
        first = len(self.parts[0]) * self.parts[0].config.repeats
        return round(first * len(self.cycle) / self.updates[0])

    def batches(
        self, *, batch_size: int, steps: int, start_step: int = 0, accumulation: int = 1, world: int = 1, rank: int = 0
    ) -> Iterator[Batch]:
        """Yields the micro-batches of one process from `start_step` to the end of the run; see `train_batches`."""
        streams = [
            train_batches(
                part,
                part.config,
                seed=self.seed,
                batch_size=batch_size,
                steps=self.before(source, steps),
                start_step=self.before(source, start_step),
                accumulation=accumulation,
                world=world,
                rank=rank,
                source=source,
            )
            for source, part in enumerate(self.parts)
        ]
        if len(streams) == 1:
            return streams[0]
        return (next(streams[self.source(step)]) for step in range(start_step, steps) for _ in range(accumulation))

    def sample_batch(self, source: int, samples: int) -> Batch:
        """Reads a micro-batch of a source in this process, to measure its memory and time."""
        part = self.parts[source]
        if part.config.varies:
            part = part.at_size(max(train_sizes(part.config), key=math.prod))  # the largest size
        config = replace(part.config, workers=0, repeats=1)
        return next(train_batches(part, config, seed=self.seed, batch_size=samples, steps=1, source=source))

    def name_samples(self, step: int, batch_size: int) -> list[int]:
        """Returns the index of the input of each sample of an update."""
        source = self.source(step)
        repeats = self.parts[source].config.repeats
        first = self.before(source, step) * batch_size // repeats
        return self.orders[source].at(first, batch_size // repeats)[1].repeat_interleave(repeats).tolist()
