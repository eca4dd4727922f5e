"""Prototypes of a teacher as the target: iBOT (Zhou et al., ICLR 2022), with DINO's head, centre and sharpening.

A head converts features to similarities with K prototypes. The teacher is the moving average of the encoder and the head. The
teacher's similarities, minus their running mean (the centre) and divided by a low temperature, pass through a softmax and become
shares of the prototypes. Patches are compared within a sample, and class tokens between the samples of one input: its R views
(`data.repeats`).

Shapes: B samples, N tokens, D width of the encoder, K prototypes, mB masks, kmB rows of Q predicted tokens, R views of an input.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import AboveZero, NonNegative, Positive, ZeroToOne
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
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
        """Returns similarities in fp32 or better, (..., D) -> (..., K)."""
        first, second, last = self.layers
        x = last(F.gelu(second(F.gelu(first(x)))))
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype.itemsize >= 4 else x.float()
            return F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).to(x.dtype).T


@targets.register("prototypes")
class PrototypeTarget(Target):
    """The teacher's shares of prototypes for the predicted tokens. The decoder predicts features, which pass through the head."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AverageConfig):
        prototypes: Positive = 8192
        """Number of prototypes."""

        hidden: Positive = 2048
        """Width of the hidden layers of the head."""

        bottleneck: Positive = 256
        """Width of the vectors that are compared with the prototypes."""

        temperature: AboveZero = 0.04
        """Temperature of the teacher's shares at the beginning of the run."""

        temperature_end: AboveZero = 0.07
        """Temperature at the end of `temperature_until`; it changes linearly up to that point."""

        temperature_until: ZeroToOne = 0.0375
        """Fraction of the run, from 0 to 1, over which the temperature changes (iBOT: 30 of 800 epochs)."""

        prediction_temperature: AboveZero = 0.1
        """Temperature of the predictions."""

        centre_decay: ZeroToOne = 0.9
        """Decay of the centre per update."""

        class_weight: NonNegative = 0.0
        """Weight of the loss between class tokens (iBOT: 1): the encoder's for the visible tokens, and the teacher's for the other
        samples of the same input (data.repeats; iBOT: 2) or, if there are none, for the whole sample. 0: only patches are
        compared."""

        class_temperature: AboveZero = 0.04
        """Temperature of the teacher's shares for class tokens."""

    config: Config
    centre: Tensor
    class_centre: Tensor
    temperature: Tensor

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: Any) -> None:
        """Builds the target with a copy of the encoder."""
        super().__init__()
        self.config, self.width, self.views = config, encoder.shape.width, data.repeats
        if config.class_weight and not encoder.shape.class_tokens:
            raise ValueError("target.class_weight needs a class token; give the encoder one, or set target.class_weight 0")
        self.teacher = Average(encoder)
        self.head = PrototypeHead(self.width, config.hidden, config.bottleneck, config.prototypes)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("temperature", torch.tensor(config.temperature))
        if config.class_weight:
            self.register_buffer("class_centre", torch.zeros(config.prototypes))
        # at most one tensor, of this update: for each centre, sums of similarities, (K,), and their number. The list is changed in
        # place, because with `train.compile` a shallow copy of this module teaches
        self.sums: list[Tensor] = []

    @property
    def across_batch(self) -> bool:
        """True, because the centre is a mean over batches."""
        return True

    @property
    def compares_repeats(self) -> bool:
        """True if class tokens are compared."""
        return self.config.class_weight > 0

    @property
    def may_collapse(self) -> bool:
        """True, because the teacher follows the encoder."""
        return True

    def begin(self, model: Any, load: Any, samples: Samples | None) -> None:
        """Sets the teacher equal to the encoder and the head."""
        if samples is not None:
            self.teacher.restart(model.encoder)
            self.teacher_head.load_state_dict(self.head.state_dict())

    @torch.no_grad()
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the teacher's similarities for every token, (B, N, K), and for class tokens, (B, K), if these are compared.

        In training mode, their sums are accumulated for the centres.
        """
        features = self.teacher(patches, grid, None)
        found = [self.teacher_head(features.tokens)]
        if self.config.class_weight:
            found.append(self.teacher_head(features.class_token))
        if self.training:
            flat = [one.flatten(0, -2) for one in found]
            now = torch.cat([part for one in flat for part in (one.sum(0), one.new_tensor([len(one)]))])
            self.sums.append(self.sums.pop() + now if self.sums else now)
        return TokenTargets(tuple(found))

    @torch.no_grad()
    def pick(self, token_targets: TokenTargets, mask: Mask) -> TargetValues:
        """Returns the shares for the predicted tokens, (kmB, Q, K), and for the class tokens, (mB, K), if these are compared."""
        tokens, *classes = token_targets.tokens
        shares = ((take(tokens, mask.predict) - self.centre) / self.temperature).softmax(-1)
        if not classes:
            return shares
        own = ((classes[0] - self.class_centre) / self.config.class_temperature).softmax(-1)  # (B, K)
        if self.training and self.views > 1:  # in an evaluation each input has only one sample
            views = own.unflatten(0, (-1, self.views))  # (B / R, R, K)
            own = ((views.sum(1, keepdim=True) - views) / (self.views - 1)).flatten(0, 1)  # the mean of the other views
        return shares, repeat_rows(own, len(mask.visible))

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the mean cross-entropy between the head's shares and the teacher's, plus that of the class tokens, ()."""
        shares, own = target if isinstance(target, tuple) else (target, None)
        loss = self._cross_entropy(prediction, shares, mask.weight)
        if own is None:
            return loss
        return loss + self.config.class_weight * self._cross_entropy(features.class_token[:, None], own[:, None], None)

    @torch.no_grad()
    def update(self, model: Any, step: int, steps: int, made: Tensor) -> None:
        """Updates the centres from the similarities of this update on all processes, and the teacher from encoder and head."""
        config = self.config
        if self.sums:
            sums = self.collective.sum(self.sums.pop())
            centres = [self.centre, self.class_centre] if config.class_weight else [self.centre]
            for centre, own in zip(centres, sums.split(config.prototypes + 1), strict=True):
                moved = centre.lerp((own[:-1] / own[-1]).to(centre.dtype), 1 - config.centre_decay)
                centre.copy_(torch.where(made, moved, centre))
        share = min(1.0, step / steps / config.temperature_until) if config.temperature_until else 1.0
        self.temperature.fill_(config.temperature + (config.temperature_end - config.temperature) * share)
        decay = config.decay_at(step, steps)
        self.teacher.follow(model.encoder, decay, made)
        follow(list(self.teacher_head.parameters()), list(self.head.parameters()), decay, made)

    def _cross_entropy(self, features: Tensor, shares: Tensor, weight: Tensor | None) -> Tensor:
        return mean_loss("soft_cross_entropy", self.head(features) / self.config.prediction_temperature, shares, weight)
