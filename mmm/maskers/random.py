"""Random masking (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmm.core.checks import Positive
from mmm.core.rng import permutation
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, maskers


@maskers.register("random")
class RandomMasker(Masker):
    """Hides tokens one by one, uniformly over the grid; of clips, over space and time (MAE-ST, OmniMAE)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        unit: Positive = 1
        """Side of the squares of tokens that are hidden together (SimMIM: 2, for squares of 32 pixels)."""

    config: Config

    def members(self, grid: Grid) -> Tensor:
        """Squares of `unit` x `unit` tokens of one frame, (U, unit^2)."""
        side = self.config.unit
        if any(size % side for size in grid[-2:]):
            raise ValueError(f"masker.unit {side} does not divide the grid {grid}; choose a common divisor of its sides")
        tokens = torch.arange(math.prod(grid)).view(-1, grid[-2] // side, side, grid[-1] // side, side)  # (T', h, a, w, b)
        return tokens.transpose(2, 3).reshape(-1, side * side)  # (T' h w, a b)

    def order(self, keys: Tensor, grid: Grid) -> Tensor:
        return permutation(keys, math.prod(grid) // self.config.unit**2)
