"""Random erasing (Zhong et al., AAAI 2020), by timm: a box of a normalised training sample is filled with normal noise.

Shapes: B samples, C channels, (..., h, w) of a sample.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmm.core.generators import seeded
from mmm.core.rng import Stream, stream, uniform


def erase(x: Tensor, keys: Tensor, probability: float) -> Tensor:
    """Erases a box of some samples, in place; of a clip, the same box of all frames.

    Args:
        x: normalised, float (B, C, ..., h, w).
        keys: of the samples, int64 (B,), on the CPU: which are chosen must be known without waiting for the device.
        probability: that a sample is chosen.

    Returns:
        x.
    """
    from timm.data.random_erasing import RandomErasing  # here: it brings in torchvision

    keys = stream(keys, Stream.ERASE)
    chosen = uniform(keys, 1)[:, 0] < probability  # (B,)
    change: Any = RandomErasing(probability=1.0, mode="pixel", device=x.device)
    for row in chosen.nonzero().flatten().tolist():
        with seeded(keys[row], x.device):
            x[row] = change(x[row].flatten(0, -3)).view(x.shape[1:])  # frames as further channels, (C T, h, w)
    return x
