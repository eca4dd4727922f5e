"""Finds the largest micro-batch size that fits in memory if `train.micro_batch_size` is none, and stores it in the run folder.

A process's whole share of the batch is tried first, then half of it, a quarter and so on; the first size that fits on all
processes is used. On a GPU a real micro-step is computed, with memory reserved for the optimizer's state; it must leave a tenth of
the memory free. On a CPU a step of a large model takes minutes, and a lack of memory ends the process without a message.
Therefore, on a CPU, the bytes that two samples keep for their backward pass are counted and multiplied.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmm.system.files import digest, write_json
from mmm.train.distributed.fsdp import is_sharded
from mmm.train.distributed.processes import on_main
from mmm.train.loop import LossOf
from mmm.train.memory.usage import SavedTensors, free_memory, is_lack_of_memory
from mmm.train.schedule import Plan, sizes
from mmm.train.state import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

FILE = "micro_batch.json"
SMALL = 2  # samples of a trial on a CPU
SHARE = 0.9  # share of the memory that may be used
TENSORS = {"SGD": 1, "SGDW": 1, "Lars": 1, "Lion": 1, "Muon": 1, "Adan": 4}  # tensors of state for each weight; others: 2
PASSING = 1.5  # memory of a step on a CPU relative to the tensors that it keeps; the rest is temporary results


@dataclass(frozen=True)
class Trial:
    """One kind of micro-batch that a run computes.

    Attributes:
        make_batch: makes a real micro-batch with this number of samples.
        loss: computes its loss.
    """

    make_batch: Callable[[int], Any]
    loss: LossOf


def find_micro_batch_size(
    training: Training,
    plan: Plan,
    trials: Sequence[Trial],
    *,
    unit: int = 1,
    folder: Path | None = None,
    checkpointed: bool = False,
) -> Plan:
    """Returns the plan with the largest micro-batch size that fits; the same plan if the weights are sharded.

    Args:
        training: a training that has not started yet.
        plan: a plan whose micro-batch is a process's whole share of the batch.
        trials: kinds of micro-batches, all of which must fit.
        unit: the micro-batch size is a multiple of this.
        folder: run folder, which stores the size. A resume on the same number of processes and the same device, with the same model
            and samples, uses it again.
        checkpointed: whether the blocks are recomputed.

    Raises:
        ValueError: even the smallest size does not fit.
    """
    from accelerate.utils import gather_object

    accelerator, share = training.accelerator, plan.micro_batch_size * plan.accumulation
    if share % unit or any(is_sharded(weight) for weight in training.unwrapped.parameters()):
        return plan
    conditions = _machine(accelerator) | {"computation": _computation(training, checkpointed)}
    found = on_main(accelerator, lambda: _read(folder, conditions))
    if found not in (known := sizes(share, unit)):
        if accelerator.is_main_process:
            logger.info("looking for the largest micro-batch that fits into memory")
        with _untouched(training):
            rule = fits_when_tried if accelerator.device.type == "cuda" else fits_when_counted
            fits = rule(training, trials)
            found = first_that_fits(known, lambda size: all(gather_object([fits(size)])))
        if folder is not None:
            on_main(accelerator, lambda: write_json(folder / FILE, {"micro_batch_size": found, "for": conditions}))
    if accelerator.is_main_process:
        logger.info(
            "micro-batch: %d of the %d samples of a process, the most that fits into memory (train.micro_batch_size sets it)",
            found,
            share,
        )
    return replace(plan, micro_batch_size=found, accumulation=share // found)


def first_that_fits(known: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Returns the first size that fits, from sizes in falling order. After one that does not fit, the next is at most half of it.

    Raises:
        ValueError: no size fits.
    """
    last = 2 * known[0]
    for size in known:
        if size > last // 2:
            continue
        if fits(size):
            return size
        last = size
    raise ValueError(
        f"out of memory: a micro-batch of {known[-1]} samples, the smallest there is, does not fit a process; "
        "set train.checkpoint_blocks true, or choose a smaller model or smaller samples"
    )


# ------------------------------------------------------------------------------------------------------------------------ trials


def fits_when_tried(training: Training, trials: Sequence[Trial]) -> Callable[[int], bool]:
    """Computes a micro-step on a GPU beside a placeholder for the optimizer's state, and returns whether it fits."""
    device = training.accelerator.device

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        enough = can_compute(training, trials, size, lambda: torch.empty(state_bytes(training), dtype=torch.uint8, device=device))
        return enough and torch.cuda.max_memory_allocated(device) <= SHARE * free

    return fits


def can_compute(training: Training, trials: Sequence[Trial], size: int, placeholder: Callable[[], Any]) -> bool:
    """True if micro-steps of this size can be computed while the placeholder is allocated.

    They use the unwrapped model, which does not communicate, so that no process waits for another one that runs out of memory.
    """
    try:
        held = placeholder()
        for trial in trials:
            with training.accelerator.autocast():
                loss = trial.loss(training.unwrapped, trial.make_batch(size), 0)
            loss.backward()
            loss.item()  # wait for the device
        del held
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        return False
    finally:
        training.unwrapped.zero_grad(set_to_none=True)


def fits_when_counted(training: Training, trials: Sequence[Trial]) -> Callable[[int], bool]:
    """Returns a function that estimates whether a micro-step fits on a CPU, from the bytes that a small one keeps."""
    least = sum(weight.nbytes for weight in training.unwrapped.parameters() if weight.requires_grad) + state_bytes(training)
    try:
        kept = max(_saved_bytes(training, trial, SMALL) for trial in trials) / SMALL
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        kept = math.inf
    free = free_memory()
    return lambda size: PASSING * kept * size + least <= SHARE * free


def _saved_bytes(training: Training, trial: Trial, samples: int) -> int:
    with SavedTensors(training.unwrapped) as saved, training.accelerator.autocast():
        trial.loss(training.unwrapped, trial.make_batch(samples), 0)
    return saved.bytes


def state_bytes(training: Training) -> int:
    """Returns the bytes of the optimizer's state that are not allocated yet: two tensors for each weight with AdamW."""
    inner: Any = getattr(training.optimizer, "optimizer", training.optimizer)
    if inner.state:
        return 0
    weights = sum(weight.nbytes for group in inner.param_groups for weight in group["params"])
    return weights * TENSORS.get(type(inner).__name__, 2)


@contextmanager
def _untouched(training: Training) -> Iterator[None]:
    """Restores the generators and the model's buffers afterwards."""
    model = training.unwrapped.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    for name, value in model.named_buffers():
        value.copy_(before[name])


# ----------------------------------------------------------------------------------------------------------------- the result


def _machine(accelerator: Accelerator) -> dict[str, Any]:
    """Describes the device and processes for which a size was found."""
    if accelerator.device.type != "cuda":
        return {"processes": accelerator.num_processes, "device": accelerator.device.type}
    device = torch.cuda.get_device_properties(accelerator.device)
    return {"processes": accelerator.num_processes, "device": device.name, "memory": device.total_memory}


def _computation(training: Training, checkpointed: bool) -> str:
    """Returns a hash of the options and weights on which the memory of a micro-step depends."""
    others = ("train.", "data.fingerprint")
    options = {name: value for name, value in training.identity.items() if not name.startswith(others)}
    weights = [(name, tuple(weight.shape), weight.requires_grad) for name, weight in training.unwrapped.named_parameters()]
    optimizer = training.identity.get("train.optimizer")
    return digest([sorted(options.items()), weights, training.accelerator.mixed_precision, optimizer, checkpointed])


def _read(folder: Path | None, conditions: dict[str, Any]) -> int | None:
    try:
        found = json.loads((folder / FILE).read_text()) if folder is not None else {}
        return int(found["micro_batch_size"]) if found["for"] == conditions else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
