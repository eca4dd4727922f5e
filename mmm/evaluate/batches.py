"""The batches of an evaluation, shared by all processes: each reads its part of the samples, and all get the results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from mmm.core.rng import sample_keys, scores
from mmm.data.errors import Problem
from mmm.data.loading.loader import Batch, eval_batches
from mmm.evaluate.progress import progress

T = TypeVar("T")
Part = TypeVar("Part", bound=Any)  # images, clips, or annotated images, at least one


def rank_and_world() -> tuple[int, int]:
    """Returns the rank of this process and the number of processes."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)


def all_gather(own: T) -> list[T]:
    """Returns the values of all processes, in the order of their ranks."""
    if rank_and_world()[1] == 1:
        return [own]
    parts: list[T] = [own] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts


def read_batches(part: Any, what: str, problems: list[Problem], *, batch_size: int, alone: bool = False) -> Iterator[Batch]:
    """Yields the batches of this process that contain a sample, and shows the progress.

    Args:
        part: the samples.
        what: name of the work, for instance "features".
        problems: the inputs that this process could not read are added here.
        batch_size: number of views per process and batch.
        alone: read all samples in this process, and none in the other processes.
    """
    (rank, world), views = (0, 1) if alone else rank_and_world(), part.config.views
    batches = eval_batches(part, part.config, batch_size=batch_size, world=world, rank=rank)
    inputs = -(-len(part) // world)
    for batch in progress(batches, inputs, f"{what} of {part.title}", lambda one: len(one.index) // views + len(one.problems)):
        problems += batch.problems
        if len(batch):
            yield batch


def check_read(read: bool, part: Any, problems: list[Problem]) -> None:
    """Checks that at least one process has read a sample. All processes call it.

    Raises:
        ValueError: no process has read a sample.
    """
    shares = all_gather((read, problems[:1]))
    if not any(one for one, _ in shares):
        reasons = [problem.reason for _, own in shares for problem in own]
        raise ValueError(f"none of {part.title} can be read; the first: {reasons[0] if reasons else 'the part is empty'}")


def choose(part: Part, count: int | None, seed: int = 0) -> Part:
    """Returns at most `count` samples, chosen by key, in the order of the data. None: all."""
    return part if count is None or count >= len(part) else part.subset(choose_rows(len(part), count, seed))


def choose_rows(total: int, count: int, seed: int = 0) -> Tensor:
    """Returns the numbers of at most `count` of `total` samples, chosen by key, ascending, int64."""
    chance = scores(sample_keys(seed, 0, torch.arange(total)), 1)[:, 0]  # (total,)
    return chance.argsort()[:count].sort().values


def spread(part: Part, count: int) -> Part:
    """Returns at most `count` samples that are evenly spread over a part, because adjacent samples often have the same class."""
    count = min(count, len(part))
    return part.subset(torch.arange(count) * len(part) // count)
