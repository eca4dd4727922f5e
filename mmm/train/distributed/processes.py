"""Checks the number of processes that were started together, and makes decisions on one process for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, distributed

if TYPE_CHECKING:
    from accelerate import Accelerator

Result = TypeVar("Result")

HINT = (
    "for 2 processes on a CPU: torchrun --nproc_per_node 2 SCRIPT, "
    "or ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 SCRIPT"
)


def on_main(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """Runs a function on the main process only, and returns its result on all.

    A ValueError or an OSError (a full disk) is raised on all processes. Otherwise the other processes would wait half an hour for
    the main process.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Result | Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[0] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def check_processes(environment: Mapping[str, str], running: int) -> None:
    """Refuses a start if fewer processes run together than were requested, because each would train alone.

    Raises:
        ValueError: too few processes run; the message contains the commands that work.
    """
    requested = int(environment.get("WORLD_SIZE", "1"))
    if requested > running:
        raise ValueError(f"{requested} processes were started but {running} run together; {HINT}")
    # `accelerate launch --cpu --num_processes 2`, a MULTI_CPU configuration, and more processes than there are GPUs all start one
    # process silently (accelerate 1.15). Such a launch sets MASTER_ADDR, but no other process uses it.
    launched, meeting = "ACCELERATE_MIXED_PRECISION" in environment, "MASTER_ADDR" in environment
    if launched and meeting and "WORLD_SIZE" not in environment and running == 1:
        raise ValueError(
            "accelerate launch was asked for several processes and started one (MASTER_ADDR is set, WORLD_SIZE is not); "
            f"{HINT}; for a single process: --num_processes 1, with MASTER_ADDR unset"
        )


def is_set(environment: Mapping[str, str], name: str) -> bool:
    """True if a boolean environment variable is set to one of the values that Accelerate reads as true."""
    return environment.get(name, "false").lower() in ("true", "1", "yes", "y", "t", "on")


def check_strategy(environment: Mapping[str, str]) -> None:
    """Refuses strategies of Accelerate that mmm does not support; for FSDP see `fsdp.check_sharding`.

    Raises:
        ValueError: DeepSpeed or Megatron was requested.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if is_set(environment, f"ACCELERATE_USE_{name}"):
            raise ValueError(
                f"Accelerate's configuration asks for {name}, which mmm does not train with; run `accelerate config` again, or "
                "give another --config_file, and choose FSDP version 2, which shards a model too, or plain multi-GPU (DDP)"
            )


class EveryProcess:
    """The collective (`mmm.core.types.Collective`) of all processes of a training."""

    def sum(self, value: Tensor) -> Tensor:
        """Sums over the processes, in place."""
        distributed.all_reduce(value)
        return value

    def max(self, value: Tensor) -> Tensor:
        """Takes the maximum of each element over the processes, in place."""
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return value
