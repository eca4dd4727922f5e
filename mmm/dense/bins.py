"""Computes depths from scores of bins (AdaBins, Bhat et al., CVPR 2021; DINOv2's linear probe).

Shapes: B samples, K bins, (h, w) pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 0.1  # added to the weight of each bin


def depth_of(logits: Tensor, range: tuple[float, float]) -> Tensor:
    """Computes depths in metres: the mean of evenly spread bins, weighted by those of their logits that are above 0.

    Args:
        logits: (B, K, h, w).
        range: depths of the first and the last bin in metres.

    Returns:
        float32 (B, h, w).
    """
    weights = logits.float().relu() + FLOOR
    bins = torch.linspace(*range, logits.shape[1], device=logits.device)
    return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), bins)
