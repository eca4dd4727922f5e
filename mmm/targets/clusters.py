"""Clusters that are learned during the training as the target (Darcet et al., "CAPI", 2025).

A teacher, the encoder's moving average, sees the whole sample. Its tokens are assigned to clusters by Sinkhorn and Knopp's
algorithm, separately for each position of the grid, over the samples of all processes, so that all clusters are used equally often
at each position. The clusters are trained on these assignments, and the model predicts the assignments of hidden tokens.

Shapes: B samples, N tokens, D width of the encoder, K clusters, kmB rows of Q predicted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import AboveZero, NonNegative, Positive, ZeroToOne
from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import Alone, Features, Input, UpdateScale
from mmm.targets.average import Average, AverageConfig
from mmm.targets.base import Samples, Target, TargetValues, TokenTargets, targets
from mmm.targets.losses import mean_loss


@targets.register("clusters")
class ClusterTarget(Target):
    """Assignments of a teacher's tokens to clusters that are trained in the same run. Predictions are logits."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AverageConfig):
        decay: ZeroToOne = 0.999
        """Decay of the average per update at the beginning of the run."""

        decay_end: ZeroToOne = 0.9999
        """Decay at the end of `decay_until`. It changes linearly up to that point, and is constant afterwards."""

        clusters: Positive = 16384
        """Number of clusters."""

        temperature: AboveZero = 0.06
        """Temperature of the cluster assignments; a lower value makes them harder."""

        prediction_temperature: AboveZero = 0.12
        """Temperature of the predictions, which are compared with the assignments."""

        iterations: Positive = 3
        """Number of iterations; each balances the assignments over the clusters and normalises those of each token."""

        learning_rate: AboveZero = 0.5
        """Factor of the learning rate for the clusters (CAPI: 5e-4 over 1e-3)."""

        weight_decay: NonNegative = 0.1
        """Factor of the weight decay for the clusters (CAPI: 0.01 over 0.1)."""

    config: Config

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: Any) -> None:
        """Builds the target with a copy of the encoder."""
        super().__init__()
        self.config, self.width = config, config.clusters
        self.teacher = Average(encoder)
        self.clusters = nn.Linear(encoder.shape.width, config.clusters)
        nn.init.normal_(self.clusters.weight)
        nn.init.zeros_(self.clusters.bias)
        scale: Any = UpdateScale(config.learning_rate, config.weight_decay)
        self.clusters.update_scale = scale

    @property
    def across_batch(self) -> bool:
        """True, because clusters are balanced over the batch."""
        return True

    @property
    def may_collapse(self) -> bool:
        """True, because the clusters follow the encoder's features."""
        return True

    def begin(self, model: Any, load: Any, samples: Samples | None) -> None:
        """Sets the teacher equal to the encoder."""
        if samples is not None:
            self.teacher.restart(model.encoder)

    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the assignments of every token, (B, N, K), without a gradient, and the loss of the clusters."""
        with torch.no_grad():
            tokens = F.normalize(self.teacher(patches, grid, None).tokens, dim=-1, eps=1e-7)
        logits = self.clusters(tokens)  # (B, N, K)
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        assigned = self.assign(logits.detach())
        return TokenTargets(assigned, self._cross_entropy(logits, assigned, None))

    @torch.no_grad()
    def assign(self, logits: Tensor) -> Tensor:
        """Returns the share of each cluster for each token, (B, N, K); a token's shares sum to 1, and clusters are balanced."""
        collective = self.collective if self.training else Alone()
        logits = logits / self.config.temperature
        shares = (logits - collective.max(logits.amax(0))).exp_()  # subtracting the maximum changes nothing after the division
        least = torch.finfo(shares.dtype).tiny  # avoids 0 / 0
        for _ in range(self.config.iterations):
            shares.div_(collective.sum(shares.sum(0)).clamp_(min=least))
            shares.div_(shares.sum(2, keepdim=True).clamp_(min=least))
        return shares

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the mean cross-entropy between predicted logits and assignments, ()."""
        assert isinstance(target, Tensor)
        return self._cross_entropy(prediction, target, mask.weight)

    def update(self, model: Any, step: int, steps: int, made: Tensor) -> None:
        """Updates the moving average from the encoder."""
        self.teacher.follow(model.encoder, self.config.decay_at(step, steps), made)

    def _cross_entropy(self, logits: Tensor, shares: Tensor, weight: Tensor | None) -> Tensor:
        return mean_loss("soft_cross_entropy", logits / self.config.prediction_temperature, shares, weight)
