"""Masks given by the user as pixels to hide, painted by hand or taken from an image.

Shapes: B samples, N tokens of the grid, V visible, Q hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, squares


def mask_from_pixels(hidden: Any, grid: Grid, *, samples: int | None = None, share: float = 0.5, blank: bool = False) -> Mask:
    """Returns a mask that hides and predicts all tokens of whose pixels at least a share is painted.

    Args:
        hidden: a tensor or array of any size, 0 for visible pixels and 1 (or True) for hidden ones: (H, W) or, for a clip,
            (T, H, W); or one for each sample, (B, H, W), (B, T, H, W). For a clip, (H, W) hides the same pixels in all frames.
        grid: the arrangement of the tokens.
        samples: B. One mask is used for all of them. None: the number of masks.
        share: share of a token's pixels.
        blank: give the encoder a mask token in place of each hidden token.

    Raises:
        ValueError: the shape does not fit, no token or every token is hidden, or samples hide different numbers of tokens.
    """
    values = torch.as_tensor(hidden).float()
    values = values.expand(samples or 1, *values.shape) if values.dim() in (2, len(grid)) else values
    if values.dim() == 3 < len(grid) + 1:
        values = values[:, None]  # (B, H, W) -> (B, 1, H, W): one frame for all
    if values.dim() != len(grid) + 1 or not values.numel():
        raise ValueError(f"hidden pixels are {tuple(torch.as_tensor(hidden).shape)} for a grid of tokens {grid}; give (H, W)")
    if samples is not None and len(values) != samples:
        raise ValueError(
            f"hidden pixels are given for {len(values)} samples, and there are {samples}; give one for each, or one for all"
        )
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    covered = pool(values[:, None], grid).flatten(1) >= share  # (B, N)
    counts = covered.sum(1)
    count, tokens = int(counts[0]), math.prod(grid)
    if int(counts.min()) != int(counts.max()):
        raise ValueError(
            f"the samples hide from {int(counts.min())} to {int(counts.max())} tokens; all masks of a batch must hide the "
            "same number: give the samples one at a time"
        )
    if not 0 < count < tokens:
        raise ValueError(
            f"the painted pixels hide {count} of {tokens} tokens; paint at least {share:g} of one token's pixels, and leave one "
            "token visible"
        )
    order = covered.to(torch.int8).argsort(dim=1, stable=True)  # visible ones first, each in the grid's order
    visible, predict = order[:, : tokens - count], order[:, tokens - count :]
    return Mask(visible, predict, predict if blank else None)


class PaintedMasker(Masker):
    """Hides the same painted pixels in every sample; used in place of a model's masker."""

    def __init__(self, hidden: Any, config: MaskerConfig) -> None:
        """Keeps the pixels. Units and blank tokens are those of `config`, which is the config of the replaced masker."""
        super().__init__(MaskerConfig(unit=config.unit, blank=config.blank))
        self.hidden = torch.as_tensor(hidden)

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns one mask for each sample, of whole units; see `mask_from_pixels`."""
        units = mask_from_pixels(self.hidden, self.unit_grid(grid), samples=len(keys))
        members = squares(grid, self.config.unit)
        visible, hidden = (members[index].flatten(1).to(keys.device) for index in (units.visible, units.predict))
        return Mask(visible, hidden, hidden if self.config.blank else None)
