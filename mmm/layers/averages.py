"""Exponential moving averages of tensors: of the weights of a run, and of teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def follow(averages: Sequence[Tensor], live: Sequence[Tensor], decay: float, made: Tensor | None = None) -> None:
    """Moves averages towards tensors of floats, in place: average = decay * average + (1 - decay) * live.

    Of tensors that are sharded over processes, all in the same way, each process moves its own part.

    Args:
        averages, live: in the same order.
        made: whether to, a bool () on the device, which the host does not wait for; None: yes.
    """
    averages, live = [_local(value) for value in averages], [_local(value) for value in live]
    if made is None:
        torch._foreach_lerp_(averages, live, 1 - decay)
        return
    weights = {dtype: made.to(dtype) * (1 - decay) for dtype in {value.dtype for value in averages}}
    torch._foreach_lerp_(averages, live, [weights[value.dtype] for value in averages])


def _local(value: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds, sharing its memory."""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value  # a DTensor
    return part
