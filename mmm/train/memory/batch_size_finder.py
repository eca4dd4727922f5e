"""The micro-batch that fits, found once where `train.micro_batch_size` names none, and kept in the run's folder.

A process's whole share of the batch is looked at first, then half of it, a quarter ..., by the rules of `fitting.py`; what fits all
processes is taken.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmm.system.files import replace_text
from mmm.train.distributed.fsdp import is_sharded
from mmm.train.distributed.processes import on_main
from mmm.train.memory.fitting import Trial, cpu_rule, gpu_rule
from mmm.train.schedule import Plan, sizes
from mmm.train.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

FILE = "micro_batch.json"


def settle(
    training: Training, plan: Plan, trials: Sequence[Trial], *, asked: int | None, unit: int = 1, folder: Path | None = None
) -> Plan:
    """The plan with the largest micro-batch that fits; as it is where one was asked for, or where the weights are sharded.

    Args:
        training: about to begin.
        plan: with a process's whole share of the batch as its micro-batch.
        trials: each kind must fit.
        asked: `train.micro_batch_size`.
        unit: a micro-batch is a multiple of this.
        folder: of the run, which keeps what was found: a resume on the same processes and device takes it again.

    Raises:
        ValueError: not even the smallest fits.
    """
    accelerator, share = training.accelerator, plan.micro_batch_size * plan.accumulation
    if asked is not None or share % unit or any(is_sharded(weight) for weight in training.bare.parameters()):
        return plan
    place = _place(accelerator)
    found = on_main(accelerator, lambda: _kept(folder, place))
    if found not in (known := sizes(share, unit)):
        if accelerator.is_main_process:
            logger.info("looking for the largest micro-batch that fits into memory")
        with _untouched(training):
            rule = gpu_rule if accelerator.device.type == "cuda" else cpu_rule
            fits = rule(training, trials)
            found = search(known, lambda size: _all(accelerator, fits(size)))
        on_main(accelerator, lambda: None if folder is None else _keep(folder, place, found))
    if accelerator.is_main_process:
        logger.info("micro-batch: %d samples of a process's %d, the most that fits (train.micro_batch_size sets it)", found, share)
    return replace(plan, micro_batch_size=found, accumulation=share // found)


def search(known: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first that fits of sizes in falling order; after one that does not, the next is at most half of it.

    Raises:
        ValueError: none does.
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


@contextmanager
def _untouched(training: Training) -> Iterator[None]:
    """Trials leave the generators, and what the model counts, as they were."""
    model = training.bare.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    for name, value in model.named_buffers():
        value.copy_(before[name])


def _all(accelerator: Accelerator, fits: bool) -> bool:
    """Whether all processes say yes."""
    from accelerate.utils import gather_object

    return all(gather_object([fits]))


def _place(accelerator: Accelerator) -> dict[str, Any]:
    """What a found size holds for."""
    if accelerator.device.type != "cuda":
        return {"processes": accelerator.num_processes, "device": accelerator.device.type}
    device = torch.cuda.get_device_properties(accelerator.device)
    return {"processes": accelerator.num_processes, "device": device.name, "memory": device.total_memory}


def _kept(folder: Path | None, place: dict[str, Any]) -> int | None:
    try:
        found = json.loads((folder / FILE).read_text()) if folder is not None else {}
        return int(found["micro_batch_size"]) if found["for"] == place else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, place: dict[str, Any], size: int) -> None:
    replace_text(folder / FILE, json.dumps({"micro_batch_size": size, "for": place}, indent=2) + "\n")
