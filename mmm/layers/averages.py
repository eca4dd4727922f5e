"""Exponential moving averages of tensors, for the weights of a run and for teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def follow(averages: Sequence[Tensor], live: Sequence[Tensor], decay: float, made: Tensor | None = None) -> None:
    """Updates averages of floating-point tensors in place: average = decay * average + (1 - decay) * live.

    If tensors are sharded over processes, all in the same way, each process updates its own part.

    Args:
        averages, live: tensors in the same order.
        made: whether to update, a bool () on the device; the host does not wait for it. None: update.
    """
    averages, live = [_local(value) for value in averages], [_local(value) for value in live]
    if made is None:
        torch._foreach_lerp_(averages, live, 1 - decay)
        return
    weights = {dtype: made.to(dtype) * (1 - decay) for dtype in {value.dtype for value in averages}}
    torch._foreach_lerp_(averages, live, [weights[value.dtype] for value in averages])


def _local(value: Tensor) -> Tensor:
    """Returns the part of a tensor on this process, which shares its memory."""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value  # a DTensor
    return part
