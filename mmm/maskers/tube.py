"""Tube masking (Tong et al., "VideoMAE", NeurIPS 2022, section 3.3): the same spatial mask in all frames."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmm.core.checks import Fraction
from mmm.core.rng import permutation
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, maskers


@maskers.register("tube")
class TubeMasker(Masker):
    """Hides the same places in every frame, so that a hidden token cannot be copied from its neighbour in time."""

    through_time = True

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        ratio: Fraction = 0.9
        """Fraction of the places of a frame that are hidden: of 14 x 14 places at 0.9, 176 are hidden and 20 visible."""

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        return permutation(keys, grid[-2] * grid[-1])
