"""Whether a micro-batch fits into memory: on a GPU by trying, on a CPU by counting.

On a GPU a real micro-step is computed, beside room for the optimizer's state; it must leave a tenth of the memory free. On a CPU,
where a step of a large setting takes minutes and a lack of memory ends the process without a word, what two samples keep for
their backward pass is counted and multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmm.train.loop import LossOf
from mmm.train.memory.usage import Kept, free_memory, is_lack_of_memory
from mmm.train.training import Training

SMALL = 2  # samples of a CPU's trial
SHARE = 0.9  # of the memory that may be taken
PASSING = 1.5  # a CPU's step takes this times what it keeps: results on their way to others


@dataclass(frozen=True)
class Trial:
    """One kind of micro-batch that a run computes.

    Attributes:
        make_batch: a real one, of so many samples.
        loss_of: its loss.
    """

    make_batch: Callable[[int], Any]
    loss_of: LossOf


def gpu_rule(training: Training, trials: Sequence[Trial]) -> Callable[[int], bool]:
    """Whether a micro-step fits: one is computed, forward and backward, beside a placeholder for the optimizer's state."""
    device = training.accelerator.device

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        enough = tries(training, trials, size, lambda: torch.empty(state_bytes(training), dtype=torch.uint8, device=device))
        return enough and torch.cuda.max_memory_allocated(device) <= SHARE * free

    return fits


def tries(training: Training, trials: Sequence[Trial], size: int, placeholder: Callable[[], Any]) -> bool:
    """Whether micro-steps of this size can be computed while the placeholder is there."""
    try:
        held = placeholder()
        for trial in trials:
            compute(training, trial, size)
        del held
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        return False
    finally:
        training.bare.zero_grad(set_to_none=True)


def cpu_rule(training: Training, trials: Sequence[Trial]) -> Callable[[int], bool]:
    """Whether a micro-step should fit, by what a small one keeps."""
    least = sum(weight.nbytes for weight in training.bare.parameters() if weight.requires_grad) + state_bytes(training)
    try:
        kept = max(_kept_bytes(training, trial, SMALL) for trial in trials) / SMALL
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        kept = math.inf
    free = free_memory()
    return lambda size: PASSING * kept * size + least <= SHARE * free


def _kept_bytes(training: Training, trial: Trial, samples: int) -> int:
    with Kept(training.bare) as kept, training.accelerator.autocast():
        trial.loss_of(training.bare, trial.make_batch(samples), 0)
    return kept.bytes


def compute(training: Training, trial: Trial, size: int) -> None:
    """A micro-step on the model inside DDP, which so exchanges nothing: a process whose memory ends leaves no other waiting."""
    with training.accelerator.autocast():
        loss = trial.loss_of(training.bare, trial.make_batch(size), 0)
    loss.backward()
    loss.item()  # wait for the device


def state_bytes(training: Training) -> int:
    """Of the optimizer's state, where it is not there yet: two of each weight for Adam, else one."""
    inner: Any = getattr(training.optimizer, "optimizer", training.optimizer)
    if inner.state:
        return 0
    weights = sum(weight.nbytes for group in inner.param_groups for weight in group["params"])
    return weights * (2 if isinstance(inner, torch.optim.Adam) else 1)
