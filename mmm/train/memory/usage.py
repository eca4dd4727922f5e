"""Measures free memory and the memory of a backward pass, reduces the latter, and gives advice if memory does not suffice."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mmm.layers.transformer import blocks_in
from mmm.train.schedule import Plan, sizes

# parts of messages of torch, its libraries and the system about a lack of memory, for errors without a specific type
WORDS = ("DefaultCPUAllocator", "out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED", "bad_alloc")


def checkpoint_blocks(model: nn.Module) -> int:
    """Makes every transformer block keep only its input for the backward pass, which recomputes the rest.

    Gradients are the same bit for bit, because drop path and dropout draw the same numbers again. Chen et al., "Training deep nets
    with sublinear memory cost", arXiv 1604.06174.

    Args:
        model: a model with lists of modules called `blocks`.

    Returns:
        The number of blocks.

    Raises:
        ValueError: there is no block.
    """
    if not (blocks := blocks_in(model)):
        raise ValueError("train.checkpoint_blocks: this model has no transformer blocks; leave it out")
    for block in blocks:
        block.forward = _Again(block.forward)
    return len(blocks)


class _Again:
    """A forward that is recomputed in the backward pass. Without gradients, it is the unchanged forward."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any) -> Any:
        return checkpoint(self.forward, *inputs, use_reentrant=False) if torch.is_grad_enabled() else self.forward(*inputs)


class SavedTensors:
    """Counts the bytes that are saved for a backward pass inside its `with` block.

    Args:
        model: the model, whose weights are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self._found: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """Bytes of all storages, each counted once."""
        return sum(self._found.values())

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def free_memory() -> int:
    """Returns the bytes that this process may still allocate: the smallest limit of the machine, the container and the process."""
    found = [psutil.virtual_memory().available]
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        found += [int(limit) - int(used)] if limit.strip() != "max" else []
    except (OSError, ValueError):
        pass
    if sys.platform != "win32":
        import resource

        own = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [own - psutil.Process().memory_info().vms] if own != resource.RLIM_INFINITY else []
    return max(0, min(found)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_lack_of_memory(error: BaseException) -> bool:
    """True if an error reports a lack of memory, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


@contextmanager
def advise_on_memory(plan: Plan, *, checkpointed: bool, unit: int = 1) -> Iterator[None]:
    """Replaces an error about a lack of memory by one line of advice.

    Args:
        plan: plan of the run.
        checkpointed: whether the blocks are recomputed.
        unit: the micro-batch size is a multiple of this.

    Raises:
        ValueError: instead of the error of torch, NumPy or the system.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_lack_of_memory(error):
            raise
        raise ValueError(f"out of memory: {memory_advice(plan, error, checkpointed=checkpointed, unit=unit)}") from error


def memory_advice(plan: Plan, error: BaseException, *, checkpointed: bool, unit: int = 1) -> str:
    """Returns advice for a lack of memory."""
    if "DataLoader worker" in str(error):
        return "a process that reads data ran out of memory; lower data.workers"
    micro = plan.micro_batch_size
    smaller = next((size for size in sizes(micro * plan.accumulation, unit) if size <= micro // 2), None)
    advice = [] if smaller is None else [f"set train.micro_batch_size {smaller}, which keeps the batch of an update"]
    advice += [] if checkpointed else ["set train.checkpoint_blocks true, which computes each block twice"]
    advice += [] if advice else ["choose a smaller model or smaller samples, or distribute the run over more GPUs"]
    return f"micro-batches of {micro} samples a process do not fit; {', or '.join(advice)}"
