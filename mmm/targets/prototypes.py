"""Prototypes of a teacher as the target: the patch term of iBOT (Zhou et al., ICLR 2022), with DINO's head, centre and sharpening.

A head turns features into similarities with K prototypes. The teacher is the moving average of the encoder and of the head; what it
gives, less its own running mean (the centre) and divided by a low temperature, are shares of the prototypes.

Shapes: B samples, N tokens, D the encoder's width, K prototypes, kmB rows of Q predicted tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import AboveZero, Positive, ZeroToOne
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, Input
from mmm.layers.averages import follow
from mmm.targets.average import Average, AverageConfig
from mmm.targets.base import Samples, Target, TargetValues, TokenTargets, targets
from mmm.targets.losses import mean_loss


class PrototypeHead(nn.Module):
    """Three layers, a norm, and the scalar product with prototypes of norm 1, (..., D) -> (..., K)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        layers = [nn.Linear(*sizes) for sizes in ((width, hidden), (hidden, hidden), (hidden, bottleneck))]
        self.prototypes = nn.Parameter(nn.init.trunc_normal_(torch.empty(prototypes, bottleneck), std=0.02))
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K), in fp32 or better."""
        first, second, last = self.layers
        x = last(F.gelu(second(F.gelu(first(x)))))
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype.itemsize >= 4 else x.float()
            return F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).to(x.dtype).T


@targets.register("prototypes")
class PrototypeTarget(Target):
    """The teacher's shares of prototypes, for the predicted tokens; the decoder predicts features, to which the head is applied."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AverageConfig):
        prototypes: Positive = 8192
        """Number of prototypes."""

        hidden: Positive = 2048
        """Hidden width of the head."""

        bottleneck: Positive = 256
        """Width in which prototypes are compared."""

        temperature: AboveZero = 0.04
        """Temperature of the teacher's shares at the run's beginning."""

        temperature_end: AboveZero = 0.07
        """Temperature at the end of `temperature_until`, to which it moves linearly."""

        temperature_until: ZeroToOne = 0.0375
        """Part of the run over which the temperature moves (iBOT: 30 of 800 epochs)."""

        prediction_temperature: AboveZero = 0.1
        """Temperature of the predictions."""

        centre_decay: ZeroToOne = 0.9
        """Decay of the centre an update."""

    config: Config
    centre: Tensor
    temperature: Tensor

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: Any) -> None:
        """Builds it with a copy of the encoder."""
        super().__init__()
        self.config, self.width = config, encoder.shape.width
        self.teacher = Average(encoder)
        self.head = PrototypeHead(self.width, config.hidden, config.bottleneck, config.prototypes)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("temperature", torch.tensor(config.temperature))
        self.sums: Tensor | None = None  # of this update: similarities (K,), and the number of tokens

    @property
    def across_batch(self) -> bool:
        """Yes: the centre is the mean over the batches before."""
        return True

    @property
    def may_collapse(self) -> bool:
        """Yes: the teacher follows the encoder."""
        return True

    def begin(self, model: Any, load: Any, samples: Samples | None) -> None:
        """Makes the teacher equal to the encoder and the head."""
        if samples is not None:
            self.teacher.restart(model.encoder)
            self.teacher_head.load_state_dict(self.head.state_dict())

    @torch.no_grad()
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """The teacher's similarities of every token, (B, N, K); while training their sum is kept for the centre."""
        found = self.teacher_head(self.teacher(patches, grid, None).tokens)
        if self.training:
            now = torch.cat([found.sum((0, 1)), found.new_tensor([found.shape[0] * found.shape[1]])])
            self.sums = now if self.sums is None else self.sums + now
        return TokenTargets(found)

    @torch.no_grad()
    def pick(self, token_targets: TokenTargets, mask: Mask) -> Tensor:
        """Returns the shares of the predicted tokens, (kmB, Q, K)."""
        return ((take(token_targets.tokens, mask.predict) - self.centre) / self.temperature).softmax(-1)

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """The mean cross-entropy between the head's shares and the teacher's, ()."""
        return mean_loss("soft_cross_entropy", self.head(prediction) / self.config.prediction_temperature, target, mask.weight)

    @torch.no_grad()
    def update(self, model: Any, step: int, steps: int, made: Tensor) -> None:
        """Moves the centre towards the mean of this update's similarities, over all processes, and the teacher to the encoder."""
        config = self.config
        if self.sums is not None:
            sums, self.sums = self.collective.sum(self.sums), None
            centre = self.centre.lerp((sums[:-1] / sums[-1]).to(self.centre.dtype), 1 - config.centre_decay)
            self.centre.copy_(torch.where(made, centre, self.centre))
        share = min(1.0, step / steps / config.temperature_until) if config.temperature_until else 1.0
        self.temperature.fill_(config.temperature + (config.temperature_end - config.temperature) * share)
        decay = config.decay_at(step, steps)
        self.teacher.follow(model.encoder, decay, made)
        follow(list(self.teacher_head.parameters()), list(self.head.parameters()), decay, made)
