"""Block-wise masking (Bao et al., "BEiT", ICLR 2022, algorithm 1), vectorised and with exact counts; in clips also boxes of space
and time (Wei et al., "MaskFeat", CVPR 2022, section 4.2).

Shapes: mB masks, R rectangles drawn for each, U = H' W' places or, of boxes, T' H' W'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.checks import Fraction, NonNegative, Share
from mmm.core.mask import Mask
from mmm.core.rng import permutation, uniform
from mmm.core.tokens import Grid
from mmm.maskers.base import Masker, MaskerConfig, inside, maskers

# of 100,000 masks of 14 x 14 at a ratio of 0.75, 99.69 % are full after 16 rectangles and all after 32; at 0.9, 99.3 % after 32
RECTANGLES = 32
ASPECTS = 1024  # steps from `aspect` to its inverse: a table, because exp differs by a bit from device to device


@maskers.register("block")
class BlockMasker(Masker):
    """Hides rectangles until the count is reached. In clips, a rectangle is hidden in all frames, or is a box of some frames.

    BEiT's own loop hides at most the count, and the number varies. Here all rectangles of a batch are drawn at once, and tokens are
    hidden in the order of the first rectangle that covers them. From the last rectangle, only as many tokens are taken, at random,
    as the exact count needs. In the rare case that all rectangles cover too few tokens, single tokens are added.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        ratio: Fraction = 0.6
        """Fraction of all tokens that are hidden."""

        smallest: Share = 0.08
        """Area of the smallest rectangle, as a fraction of the image (BEiT: 16 of 196 tokens)."""

        largest: Share = 0.4
        """Area of the largest rectangle, as a fraction of the image."""

        aspect: Share = 0.3
        """Smallest ratio of a rectangle's height to its width; the largest is 1 / `aspect`."""

        duration: Literal["all", "random"] = "all"
        """Extent of a rectangle in time: all frames of a clip, or drawn for each from one to all (MaskFeat)."""

        inner_weight: NonNegative = 0.0
        """Additional weight of a predicted token's loss: this times the hidden share of the 3 x 3 tokens around it (BootMAE: 1)."""

        def validate(self) -> None:
            super().validate()
            if self.inner_weight:
                self.refuse("predict_visible")
            if self.smallest > self.largest:
                raise ValueError(f"masker.smallest {self.smallest:g} is above masker.largest {self.largest:g}")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.through_time = config.duration == "all"
        steps = [(2 * step + 1) / ASPECTS - 1 for step in range(ASPECTS)]  # -1 to 1
        self.aspects = [config.aspect**step for step in steps]  # no buffer: a masker need not be moved to its keys' device

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch; see `Masker.forward`."""
        mask = super().forward(keys, grid, step=step, steps=steps)
        if not self.config.inner_weight:
            return mask
        hidden = torch.ones(len(mask.visible), math.prod(grid), device=keys.device).scatter(1, mask.visible, 0.0)
        around = F.avg_pool2d(hidden.view(-1, 1, *grid[-2:]), 3, stride=1, padding=1).view(len(hidden), -1)  # (mB, N)
        return replace(mask, weight=1 + self.config.inner_weight * around.gather(1, mask.predict))

    def order(self, keys: Tensor, grid: Grid, seen: int) -> Tensor:
        covered = self._covered(keys, grid)  # (mB, R, U)
        units, which = covered.shape[2], torch.arange(RECTANGLES, device=keys.device)
        first = torch.where(covered, which[:, None], RECTANGLES).amin(1)  # the first rectangle over each place, (mB, U)
        # uncovered places come first (visible); then the rectangles, last to first, so that the last one is cut to the count
        rank = (RECTANGLES - first) * units + permutation(keys + 1, units)  # random within a rectangle; (mB, U)
        order = rank.argsort(dim=1)
        # which hidden places are predicted does not depend on the rectangle that hides them
        shuffled = seen + permutation(keys + 2, units - seen)  # (mB, U - seen)
        return torch.cat([order[:, :seen], order.gather(1, shuffled)], dim=1)

    def _covered(self, keys: Tensor, grid: Grid) -> Tensor:
        """Marks the places in each rectangle, bool (mB, R, U)."""
        height, width = grid[-2:]
        top, bottom, left, right = self._rectangles(keys, height, width)  # (mB, R) each
        rows, columns = inside(top, bottom - top, height), inside(left, right - left, width)
        plane = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # (mB, R, H' W')
        if self.through_time or len(grid) < 3:
            return plane
        long, start = uniform(keys + 5, 2 * RECTANGLES).unflatten(1, (2, RECTANGLES)).unbind(1)
        frames = 1 + (long * grid[0]).long()
        times = inside((start * (grid[0] - frames + 1)).long(), frames, grid[0])  # (mB, R, T')
        return (times[..., :, None] & plane[..., None, :]).flatten(2)

    def _rectangles(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, bottom, left and right of R rectangles a mask, in tokens, each int64 (mB, R)."""
        area, aspect, y, x = uniform(keys, 4 * RECTANGLES).unflatten(1, (4, RECTANGLES)).unbind(1)
        area = (self.config.smallest + area * (self.config.largest - self.config.smallest)) * height * width
        ratio = torch.tensor(self.aspects, device=keys.device)[(aspect * ASPECTS).long()]  # log-uniform, height over width
        tall = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
        return top.long(), (top + tall).long(), left.long(), (left + wide).long()
