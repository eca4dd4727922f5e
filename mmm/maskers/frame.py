"""Masking of whole frames of clips: random frames (MAE-ST's time-only masks, Feichtenhofer et al., NeurIPS 2022), or the last ones.

Shapes: mB masks, T' frames of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmm.core.checks import Fraction
from mmm.core.rng import permutation
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, maskers, squares


@dataclass(frozen=True, kw_only=True)
class FramesConfig(MaskerConfig):
    """Base of the `Config` of maskers that hide whole frames."""

    ratio: Fraction = 0.5
    """Fraction of the frames of tokens that are hidden."""

    def validate(self) -> None:
        super().validate()
        self.refuse("unit")


class FramesMasker(Masker):
    """Base of maskers whose unit is a frame of tokens."""

    def members(self, grid: Grid) -> Tensor:
        """The tokens of each frame, int64 (T', H' W').

        Raises:
            ValueError: the grid is that of an image.
        """
        if len(grid) < 3:
            raise ValueError(f"masker.name {self.config.name} hides frames of clips, and the grid {grid} is an image's")
        return squares(grid).view(grid[0], -1)


@maskers.register("frame")
class FrameMasker(FramesMasker):
    """Hides whole frames, at random."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FramesConfig):
        pass

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        return permutation(keys, grid[0])


@maskers.register("causal")
class CausalMasker(FramesMasker):
    """Hides the last frames of a clip. If only a part is predicted, it is the frames that directly follow the visible ones."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FramesConfig):
        pass

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        """Returns the visible frames in order, and then the hidden ones from the last to the nearest."""
        time = torch.arange(grid[0], device=keys.device)
        return torch.cat([time[:seen], time[seen:].flip(0)]).expand(len(keys), -1)
