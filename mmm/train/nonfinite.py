"""An update whose loss or gradient is not finite is left out by all processes, without a host that waits for a device.

A loss that is not finite makes its own gradient so, and the sum over the processes then carries that to all of them: no exchange
beyond that of the gradients is needed. Whether the norm of the whole gradient is finite stays on the device, and the fused
optimizer reads it there, as it reads what a gradient scaler finds. The host learns of it at the next line of metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def nan_if_nonfinite(loss: Tensor) -> Tensor:
    """The same loss, whose gradient is NaN where the loss is not finite. () -> ()."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)  # times 1 changes no bit


def gradient_norm(accelerator: Accelerator, model: nn.Module, clip_norm: float | None) -> Tensor:
    """The norm of the whole gradient before clipping, (); clips the gradient where `clip_norm` is set.

    The norm is finite exactly where all of the gradient is.
    """
    if clip_norm is not None:
        norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    else:
        accelerator.unscale_gradients()
        norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded model


def step_if_finite(norm: Tensor, optimizer: torch.optim.Optimizer, scaler: object | None) -> None:
    """Updates the weights and the optimizer's state, or leaves both as they are where the gradient is not finite.

    Args:
        norm: of the gradient, () on the device.
        optimizer: as Accelerate prepared it. One that is not fused Adam cannot read the flag on the device (timm's Lars), or
            makes its state from it (fused SGD's first momentum is then whatever lay in the memory): for it the host waits.
        scaler: of fp16, which decides by itself.
    """
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    if scaler is not None:
        optimizer.step()
    elif isinstance(inner, torch.optim.Adam) and inner.defaults["fused"]:
        inner.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
        del inner.found_inf  # type: ignore[attr-defined]
    elif norm.isfinite():
        optimizer.step()
