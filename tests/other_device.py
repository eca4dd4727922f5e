"""A device other than the CPU, for machines without one: its tensors compute on the CPU and raise when mixed with CPU tensors.

torch's FakeTensorMode on `cuda` also finds wrong devices, but in a CUDA build without a GPU it has no backward pass, and without
values no task can finish. Here a tensor that was moved to `DEVICE` wraps a tensor of the CPU: operations compute with its values,
and raise if their tensors are on two devices. The device has no float64, like Apple's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.trace_rules import get_torch_obj_rule_map
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy", 0)  # a device type that autograd supports without a driver
INDEXED = ("aten::index", "aten::index_put_", "aten::index_put")  # every device accepts indices on the CPU
MOVES = {"aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense"}


class Elsewhere(Tensor):
    """A tensor on the other device; `values` holds the same numbers on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        if values.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"this device has no {values.dtype}")
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE, requires_grad=values.requires_grad
        )
        made.values = values
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.values!r})"

    def tolist(self) -> Any:
        """Moves the values to Python, like the method of any device's tensor."""
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Creates the tensors of factory functions on the device, and moves CPU tensors there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs one operation on the CPU, and wraps its results if they are on the device."""
    given = [value for value in (*args, *kwargs.values()) for value in (value if isinstance(value, (list, tuple)) else (value,))]
    there = any(isinstance(value, Elsewhere) for value in given)
    here = [value for value in given if isinstance(value, Tensor) and not isinstance(value, Elsewhere)]
    if func._schema.name in INDEXED:
        here = [value for value in (args[0], *args[2:]) if isinstance(value, Tensor) and not isinstance(value, Elsewhere)]
    if there and func._schema.name not in MOVES and any(value.dim() for value in here):
        raise RuntimeError(f"{func}: tensors lie on two devices, {[tuple(value.shape) for value in here]} on the CPU")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs, there = {**kwargs, "device": torch.device("cpu")}, torch.device(asked).type == DEVICE.type
    elif func._schema.name == "aten::copy_":
        there = isinstance(args[0], Elsewhere)
    found = func(*map(unwrapped, args), **{name: unwrapped(value) for name, value in kwargs.items()})
    written = [value for value, of in zip(args, func._schema.arguments, strict=False) if of.alias_info and of.alias_info.is_write]
    written += [kwargs[of.name] for of in func._schema.arguments if of.is_out and of.name in kwargs]
    if written and len(func._schema.returns) == len(written):
        return written[0] if len(written) == 1 else tuple(written)
    return wrapped(found) if there else found


def unwrapped(value: Any) -> Any:
    """Replaces tensors on the other device by their values on the CPU."""
    if isinstance(value, (list, tuple)):
        return [unwrapped(one) for one in value]
    return value.values if isinstance(value, Elsewhere) else value


def wrapped(value: Any) -> Any:
    """Moves the tensors of a result to the other device."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(wrapped, value))
    return Elsewhere(value) if isinstance(value, Tensor) else value


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Makes `DEVICE` available for computations."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # torch.tensor(..., device=...) moves by an operation
    get_torch_obj_rule_map()  # torch.compile's table of torch's functions is built once; it must not contain those patched below
    asked, cast = torch.is_autocast_enabled, torch.autocast
    patches = [  # where torch needs the device's name
        mock.patch("torch.is_autocast_enabled", lambda *kind: DEVICE.type not in kind and asked(*kind)),
        mock.patch(
            "torch.autocast", lambda kind, *rest, **more: nullcontext() if kind == DEVICE.type else cast(kind, *rest, **more)
        ),
        mock.patch("torch.accelerator.synchronize"),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", return_value=["cpu", DEVICE.type]),
        mock.patch(f"torch.{DEVICE.type}", _module(), create=True),
    ]
    try:
        with ExitStack() as stack:
            for patch in (*patches, Pretending()):
                stack.enter_context(patch)
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)  # type: ignore[attr-defined]


@contextmanager
def on_accelerate() -> Iterator[torch.device]:
    """Makes Accelerate, and every task without --device, choose `DEVICE`."""
    import accelerate.state

    state = accelerate.state.PartialState
    place = mock.patch.object(state, "set_device", lambda one: setattr(one, "device", DEVICE))
    found = mock.patch("torch.accelerator.current_accelerator", return_value=DEVICE)
    with place, mock.patch.object(state, "default_device", DEVICE), found, other_device() as device:
        yield device


def _module() -> SimpleNamespace:
    """Returns the functions for seeding that torch.cuda would have."""
    return SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        manual_seed=torch.manual_seed,
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: torch.set_rng_state(state),
    )
