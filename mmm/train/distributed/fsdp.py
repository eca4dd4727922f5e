"""Sharding (FSDP2): each process holds a part of every weight, gradient and average, and of the optimizer's state.

It is selected in Accelerate's configuration (`accelerate launch --use_fsdp --fsdp_version 2 ...`) and implemented here with torch's
`fully_shard` instead of Accelerate's plugin (1.15). The plugin wraps only modules that are named by class, casts the input, and so
the targets, to bf16, sums gradients in bf16, and silently falls back to DDP on a CPU. With this implementation, two processes on a
CPU test the code that GPUs run. The option `fsdp_reshard_after_forward` of the configuration is used.

Every transformer block is a unit, which is gathered when it is computed; the root unit contains the other weights. Weights and
gradients are stored, sent and summed in fp32. Autocast computes products in bf16 if that is chosen, as without sharding, and
targets and losses are fp32. Sending weights in bf16 would halve the traffic, but would also round the weights of norms, and layer
norms on a CPU do not accept bf16 weights with fp32 inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from mmm.layers.transformer import blocks_in
from mmm.train.checkpoint.shards import rows_of
from mmm.train.distributed.processes import is_set

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState
    from torch.distributed.tensor import DTensor

DDP = "run `accelerate config` again, or give another --config_file, and choose plain multi-GPU (DDP)"


def sharding_asked(environment: Mapping[str, str]) -> bool:
    """True if Accelerate's configuration selects sharding."""
    return is_set(environment, "ACCELERATE_USE_FSDP")


def check_sharding(environment: Mapping[str, str], processes: PartialState, *, precision: str, strict: bool) -> None:
    """Refuses unsupported settings of Accelerate.

    Raises:
        ValueError: FSDP 1, a CPU (Accelerate would silently use DDP), a single process, unsupported settings, fp16, or strict.
    """
    if not sharding_asked(environment):
        return
    if environment.get("FSDP_VERSION", "1") != "2":
        raise ValueError("Accelerate's configuration asks for FSDP 1; mmm uses FSDP 2; set --fsdp_version 2 (fsdp_version: 2)")
    if processes.device.type == "cpu":
        raise ValueError(f"Accelerate's configuration asks for FSDP, and on a CPU nothing is sharded; {DDP}, or start on GPUs")
    if processes.num_processes == 1:
        raise ValueError(
            "Accelerate's configuration asks for FSDP with one process; start several (--num_processes), or turn FSDP off"
        )
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        if is_set(environment, name):
            raise ValueError(f"Accelerate's configuration sets {name}, which mmm does not follow under FSDP; set it to false")
    if precision == "fp16":
        raise ValueError("train.precision fp16 is not computed under FSDP; use bf16 or fp32")
    if strict:
        raise ValueError(f"train.strict does not work with FSDP, because it sums complete gradients; remove one of them: {DDP}")


def shard(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Shards a model in place over all processes, and passes the sharded parameters to the optimizer, which has no state yet.

    Args:
        model: on the CPU or its device; each unit is moved to the device and sharded separately.

    Raises:
        ValueError: the model has no transformer block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin, dynamo = getattr(accelerator.state, "fsdp_plugin", None), accelerator.state.dynamo_plugin
    reshard = plugin is None or plugin.reshard_after_forward  # frees a block's weights after its forward: less memory, more traffic
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # casts nothing
    names = {parameter: name for name, parameter in model.named_parameters()}
    for block in blocks_of(model):
        if dynamo.backend.value != "NO":
            block.compile()  # in place, because calls of the result of `torch.compile` would bypass FSDP's hooks
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    # the root is resharded after a forward too, so that its parameters are always those of the optimizer
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    current = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [current[names[parameter]] for parameter in group["params"]]
    autocast_forward(model, accelerator)


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Disables the exchange of gradients inside its `with` block: more memory, less traffic, as in Accelerate."""
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)  # type: ignore[operator]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks of encoder, decoder and teachers: the modules in lists called `blocks`.

    Raises:
        ValueError: there is no block.
    """
    if not (blocks := blocks_in(model)):
        raise ValueError(f"FSDP shards transformer blocks, lists called `blocks`, and this model has none; {DDP}")
    return blocks


def autocast_forward(model: nn.Module, accelerator: Accelerator) -> None:
    """Adds autocast to bf16, if it is chosen, as Accelerate does for a model that is not sharded."""
    if accelerator.mixed_precision == "bf16":
        model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Makes a copy without values for `gathered_copy`, before the model is sharded."""
    return copy.deepcopy(model).to("meta")


def gathered_copy(meta_copy: nn.Module, model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Returns an unsharded copy of a sharded model, gathered tensor by tensor. All processes must call it together.

    The forward of the copy needs no other process, so processes may evaluate different numbers of batches.
    """
    plain = copy.deepcopy(meta_copy).to_empty(device=accelerator.device)
    live = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict()}
    with torch.no_grad():
        for name, value in (*plain.named_parameters(), *plain.named_buffers()):
            value.copy_(gather(live[name]))
    autocast_forward(plain, accelerator)
    return plain


def is_sharded(value: Tensor) -> TypeGuard[DTensor]:
    """True if each process holds only some rows of this tensor."""
    from torch.distributed.tensor import DTensor  # imported here, because the import takes a second

    return isinstance(value, DTensor)


def gather(value: Tensor) -> Tensor:
    """Returns the whole tensor. If it is sharded, all processes must call this together."""
    return value.full_tensor() if is_sharded(value) else value


def local(value: Tensor) -> Tensor:
    """Returns the part of a tensor in this process, as a view."""
    return value.to_local() if is_sharded(value) else value


def rows_here(value: DTensor) -> slice:
    """Returns the rows of a sharded tensor in this process."""
    mesh = value.device_mesh
    return slice(*rows_of(value.shape[0], mesh.get_local_rank(), mesh.size()))


@torch.no_grad()
def copy_into(into: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded; then only the rows of this process are copied."""
    local(into).copy_(value[rows_here(into)] if is_sharded(into) else value)


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copies a parameter's state, and shards it like the parameter if both have the same shape."""
    if not is_sharded(parameter) or value.shape != parameter.shape:
        return value.clone()
    state = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    copy_into(state, value)
    return state
