"""Random masking (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mmm.core.rng import permutation
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, maskers


@maskers.register("random")
class RandomMasker(Masker):
    """Hides single tokens, uniformly over the grid; in clips, over space and time (MAE-ST, OmniMAE)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        pass

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        return permutation(keys, math.prod(grid))
