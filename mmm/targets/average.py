"""A teacher whose weights are the moving average of the encoder's (Tarvainen and Valpola, "Mean teachers", NeurIPS 2017)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from torch import Tensor, nn

from mmm.core.checks import ZeroToOne
from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import BlockOutput, Features
from mmm.layers.averages import follow
from mmm.targets.base import TargetConfig


@dataclass(frozen=True, kw_only=True)
class AverageConfig(TargetConfig):
    """Base of the `Config` of targets whose teacher is the encoder's moving average; contains the decay."""

    decay: ZeroToOne = 0.996
    """Decay of the average per update at the beginning of the run (I-JEPA: 0.996)."""

    decay_end: ZeroToOne = 1.0
    """Decay at the end of `decay_until`. It changes linearly up to that point, and is constant afterwards."""

    decay_until: ZeroToOne = 1.0
    """Fraction of the run, from 0 to 1, over which the decay changes."""

    decay_middle: tuple[ZeroToOne, ZeroToOne] | None = None
    """An intermediate decay, and the fraction of the run, from 0 to 1, at which it is reached (BootMAE: 0.9999 0.125). None: the
    decay changes linearly."""

    def validate(self) -> None:
        if self.decay_middle is not None and not 0 < self.decay_middle[1] < self.decay_until:
            raise ValueError(
                f"target.decay_middle {self.decay_middle[0]:g} {self.decay_middle[1]:g}: the second number is a part of the run, "
                f"between 0 and target.decay_until {self.decay_until:g}"
            )

    def decay_at(self, step: int, steps: int) -> float:
        """Returns the decay of the average in an update; the first update has step 1."""
        progress = (step - 1) / steps
        middle = [] if self.decay_middle is None else [(self.decay_middle[1], self.decay_middle[0])]
        for (start, low), (end, high) in pairwise([(0.0, self.decay), *middle, (self.decay_until, self.decay_end)]):
            if progress < end:
                return low + (high - low) * (progress - start) / (end - start)
        return self.decay_end


class Average(nn.Module):
    """The moving average of an encoder, without gradients and drop path."""

    def __init__(self, encoder: Any, block_output: BlockOutput = "block") -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.encoder.block_output = block_output

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode, also if the model is set to training mode."""
        return super().train(False)

    def forward(self, patches: Tensor, grid: Grid, mask: Mask | None, blocks: tuple[int, ...] = ()) -> Features:
        """Computes features as an encoder does."""
        return self.encoder(patches, grid, mask, blocks)

    def tokens(self, patches: Tensor, grid: Grid, blocks: tuple[int, ...] | None, mask: Mask | None) -> list[Tensor]:
        """Returns these blocks' outputs, counted from 1 (None: the normed last output), for the mask's tokens, (B, M, D) each."""
        found: Features = self(patches, grid, mask, blocks or ())
        chosen = [found.last] if blocks is None else [found.blocks[block] for block in blocks]
        return [one[:, found.prefix :] for one in chosen]

    def restart(self, encoder: nn.Module) -> None:
        """Sets the average equal to the encoder."""
        self.encoder.load_state_dict(encoder.state_dict())

    def follow(self, encoder: nn.Module, decay: float, made: Tensor) -> None:
        """Updates the average from the encoder if the update was made."""
        follow(list(self.encoder.parameters()), list(encoder.parameters()), decay, made)
