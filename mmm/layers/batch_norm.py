"""Batch normalisation without weights, with statistics over all processes, for frozen features.

torch's SyncBatchNorm does not run on a CPU, and computes gradients, which the features of a frozen encoder do not need.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon), with the statistics of the batch in training mode and the running ones in evaluation mode.

    It differs from torch's BatchNorm1d at the start: the first batches get equal weights, until the weight of a batch falls to the
    momentum. After 20 batches, torch's running statistics still contain 12 % of their initial 0 and 1, which is more than the
    variance of most features.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self, width: int, *, epsilon: float = 1e-6, momentum: float = 0.1) -> None:
        """The defaults are MAE's epsilon (main_linprobe.py) and torch's momentum."""
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Returns normalised features in the precision of the statistics, usually fp32, (B, D) -> (B, D).

        Raises:
            ValueError: a gradient is required in a training on several processes.
        """
        x = x.float()
        if not self.training:
            return ((x - self.mean) * (self.var + self.epsilon).rsqrt()).to(self.mean.dtype)
        if x.requires_grad and _together():
            raise ValueError("head.norm batch is for a frozen encoder and a pool without weights; use --head.norm layer")
        count = _over_all(x.new_tensor(float(len(x))))
        mean = _over_all(x.sum(0)) / count  # (D,)
        var = _over_all((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.batches += 1
            weight = (1 / self.batches).clamp(min=self.momentum)
            self.mean.lerp_(mean, weight)
            self.var.lerp_(var * (count / (count - 1).clamp(min=1)), weight)  # unbiased, as torch's running variance
        return ((x - mean) * (var + self.epsilon).rsqrt()).to(self.mean.dtype)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _over_all(total: Tensor) -> Tensor:
    """Returns the sum over all processes."""
    if _together():
        distributed.all_reduce(total)
    return total
