"""An update whose loss or gradient is not finite is left out by all processes, without a host that waits for a device.

A loss that is not finite makes its own gradient so, and the sum over the processes then carries that to all of them: no
exchange beyond the gradients' own is needed. Whether the whole gradient's norm is finite stays on the device, and the fused
optimizer reads it there, as it reads what a gradient scaler finds. The host hears of it at the next line of metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmm.train.distributed.fsdp import whole

if TYPE_CHECKING:
    from accelerate import Accelerator


def carry(loss: Tensor) -> Tensor:
    """The same loss, whose gradient is NaN where it is not finite itself. () -> ()."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)  # times 1 changes no bit


def measure_gradient(accelerator: Accelerator, model: nn.Module, clip_norm: float | None) -> Tensor:
    """The norm of the whole gradient, (), after which it is clipped where that is asked for. Not finite: nor is the gradient."""
    if clip_norm is not None:
        return whole(accelerator.clip_grad_norm_(model.parameters(), clip_norm))
    accelerator.unscale_gradients()
    return whole(nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None]))


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer, scaler: object | None) -> None:
    """Updates the weights and the optimizer's state, or leaves both as they are.

    Args:
        finite: whether to, a bool () on the device.
        optimizer: as Accelerate prepared it. One that is not fused Adam cannot read `finite` on the device (timm's Lars), or
            makes its state from it (fused SGD's first momentum is then whatever lay in the memory): for it the host waits.
        scaler: of fp16, which decides by itself.
    """
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    if scaler is not None:
        optimizer.step()
    elif isinstance(inner, torch.optim.Adam) and inner.defaults["fused"]:
        inner.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        del inner.found_inf  # type: ignore[attr-defined]
    elif finite:
        optimizer.step()
