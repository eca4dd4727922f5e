"""Starts the processes of a training run, and chooses and logs device, precision and threads."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from mmm.system.malloc import keep_memory
from mmm.train.config import Precision, RunConfig, TrainConfig
from mmm.train.distributed.fsdp import check_sharding
from mmm.train.distributed.processes import check_processes, check_strategy, is_set
from mmm.train.trackers import check_tracker

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=RunConfig)

ACCELERATE_NAMES: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def start(config: TrainConfig) -> Accelerator:
    """Joins the processes and places them on their devices.

    Raises:
        ValueError: fewer processes run than were requested, the device does not support the precision, a tracker is not installed,
            a strategy is not supported, or `train.strict` is not possible.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

    check_strategy(os.environ)
    check_tracker(config.tracker, config.tracker_options)
    # without `cpu=True`, Accelerate 1.15 does not connect torchrun's processes on a machine without an accelerator (measured)
    cpu = is_set(os.environ, "ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    processes = PartialState(cpu=cpu, timeout=timedelta(seconds=config.timeout))
    check_processes(os.environ, processes.num_processes)
    if config.strict:
        prepare_strict(config, processes)
    precision, reason = choose_precision(config.precision, os.environ, processes.device)
    check_sharding(os.environ, processes, precision=precision, strict=config.strict)
    if processes.is_main_process:
        logger.info("precision %s (%s); device %s; processes %d", precision, reason, processes.device.type, processes.num_processes)
    # DDP warns about weights with a dimension of 1, whose strides are arbitrary; the user cannot change them
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if cpu:
        set_threads(config.threads, os.environ)
        keep_memory()
    AcceleratorState._reset_state()  # otherwise a second run in the same process, as in a notebook, must have the same precision
    return Accelerator(
        mixed_precision=ACCELERATE_NAMES[precision],
        # the loop divides the loss; a launch configuration with accumulation steps would divide it again
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # block by block: the first of several equal blocks is compiled, in seconds, and the others use its code
        dynamo_plugin=TorchDynamoPlugin(backend="inductor", use_regional_compilation=True) if config.compile else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=keep_order(processes.num_processes))
        ],
    )


def keep_order(processes: int) -> bool:
    """True if DDP must keep the order in which it sums gradients, at the cost of one traversal of the graph per update.

    Otherwise DDP reorders its buckets after the first update of every start, so that a resumed run would sum its first gradients in
    another order than an uninterrupted run. The sum of two numbers does not depend on the order.
    """
    if processes > 2:
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")  # no parameter is unused; see above
    return processes > 2


def precision_of(accelerator: Accelerator) -> Precision:
    """Returns the chosen precision as a value of `train.precision`, which a run saves instead of `auto`."""
    return {name: ours for ours, name in ACCELERATE_NAMES.items()}[str(accelerator.mixed_precision)]


def with_precision(config: R, accelerator: Accelerator) -> R:
    """Returns a task's config with the chosen precision instead of `auto`."""
    return replace(config, train=replace(config.train, precision=precision_of(accelerator)))


def choose_precision(requested: str, environment: Mapping[str, str], device: torch.device) -> tuple[Precision, str]:
    """Chooses the precision, and returns it with the reason.

    Raises:
        ValueError: the device or mmm does not support the requested precision.
    """
    configured = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()  # the launcher writes `no` if none was chosen
    if requested != "auto":
        named, reason = requested, "train.precision names it"
    elif configured != "no":
        named, reason = configured, "Accelerate's configuration names it"
    elif computes_bf16(device):
        named, reason = "bf16", f"auto: this {device.type} computes it natively"
    else:
        named, reason = "fp32", f"auto: this {device.type} does not compute bf16 natively"
    precision = next((known for known in ACCELERATE_NAMES if known == named), None)
    if precision is None:
        raise ValueError(f"Accelerate's configuration names precision {named}; mmm takes bf16, fp16 or fp32: set train.precision")
    if precision == "fp16" and device.type == "cpu":
        # Accelerate 1.15 would compute in fp32 without a message
        raise ValueError("train.precision fp16 is not computed on a CPU; use bf16 or fp32")
    return precision, reason


def computes_bf16(device: torch.device) -> bool:
    """True if the device has units for bf16 products. On a CPU without them bf16 is emulated, and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack the function
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def set_threads(requested: int | None, environment: Mapping[str, str]) -> None:
    """Sets the number of threads to this process's share of the cores, and logs a change."""
    before = torch.get_num_threads()
    threads = choose_threads(requested, environment, usable_cores())
    if threads is None or threads == before:
        return
    torch.set_num_threads(threads)
    logger.info("CPU threads of this process: %d instead of %d (train.threads sets another number)", threads, before)


def choose_threads(requested: int | None, environment: Mapping[str, str], cores: int) -> int | None:
    """Chooses the number of CPU threads of this process. None: torch's choice.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 if the user has not set it (measured). A number above 1, or a 1 without a
    launcher, is the user's choice and is kept.
    """
    if requested is not None:
        return requested
    launched = "ACCELERATE_MIXED_PRECISION" in environment or "TORCHELASTIC_RUN_ID" in environment
    own = environment.get("OMP_NUM_THREADS")
    if own is not None and not (launched and own == "1"):
        return None
    return max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns the number of cores that this process may use, by its affinity and the quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))


def prepare_strict(config: TrainConfig, processes: PartialState) -> None:
    """Refuses settings that round differently on another number of processes, and enables deterministic kernels.

    Raises:
        ValueError: a setting is not supported; the message names the flag to change.
    """
    if not isinstance(config.micro_batch_size, int):
        raise ValueError(
            f"train.strict sums micro-batches of one fixed size, and train.micro_batch_size {config.micro_batch_size} follows from "
            "the machine; give a number of samples that also fits the largest number of processes, batch_size / processes or less"
        )
    if processes.num_processes & (processes.num_processes - 1):
        count = processes.num_processes
        raise ValueError(f"train.strict adds processes in pairs, and {count} is not a power of two; start 2, 4 or 8")
    if config.compile:
        raise ValueError(
            "train.compile splits the model by the number of processes, which changes the rounding; leave it out with train.strict"
        )
    if processes.device.type == "cpu":
        if config.threads is None:
            raise ValueError(
                "train.threads none uses each process's share of the cores, which changes sums; train.strict needs a number"
            )
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first use
    torch.use_deterministic_algorithms(True, warn_only=True)  # else the backward of gather and attention adds atomically
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging only, and slow
