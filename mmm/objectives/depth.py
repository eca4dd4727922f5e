"""Monocular depth by a linear head: options, and the forward with its loss (DINOv2, Oquab et al., 2024, section 7.4).

Shapes: B samples, K bins, (h, w) pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import Limit
from mmm.data import Batch
from mmm.data.annotated.config import DepthConfig, PairsConfig
from mmm.data.annotated.maps import metres_of
from mmm.dense.bins import depth_of
from mmm.objectives.adapt_encoder import DenseObjective
from mmm.objectives.segment import DenseConfig, prepare_pixels

OFFSET = 0.001  # metres that are added before a logarithm
SCALE = 0.15  # weight of the squared mean of the error's logarithm


@dataclass(frozen=True, kw_only=True)
class DepthProbeConfig(DenseConfig):
    """Options of a depth probe, its images and depths, and its training."""

    data: DepthConfig = field(default_factory=DepthConfig)
    bins: Annotated[int, Limit("of at least 2", lambda value: value >= 2)] = 256
    """Number of bins, evenly spread over `data.range`. The prediction is their weighted mean."""
    frozen: bool = True
    """Train only the head, on the features of the frozen encoder."""

    @property
    def pixels(self) -> PairsConfig:
        """The data."""
        return self.data


def depth_loss(depth: Tensor, truth: Tensor) -> Tensor:
    """Computes the scale-invariant logarithmic error over all pixels with a depth.

    This is the root of the variance plus a share of the squared mean of the differences of logarithms.

    Args:
        depth: predicted metres, (B, h, w).
        truth: true metres, (B, h, w); NaN where unknown.
    """
    known = truth.isfinite()
    error = (depth + OFFSET).log() - (truth.where(known, 1.0) + OFFSET).log()
    count = known.sum().clamp(min=2)
    mean = (error * known).sum() / count
    variance = ((error - mean).square() * known).sum() / (count - 1)
    return (variance + SCALE * mean.square() + 1e-12).sqrt()


class DepthObjective(DenseObjective[DepthConfig]):
    """The loss of a depth probe."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Returns the mean loss of the samples of a micro-batch, ()."""
        x, numbers = prepare_pixels(batch.to(self.device), self.data)
        logits = F.interpolate(model(x)[0].float(), numbers.shape[-2:], mode="bilinear", align_corners=False)
        depth, truth = depth_of(logits, self.data.range), metres_of(numbers, self.data.range)
        return torch.stack([depth_loss(one[None], known[None]) for one, known in zip(depth, truth, strict=True)]).mean()
