"""Histograms of oriented gradients as the target (Wei et al., "MaskFeat", CVPR 2022; slowfast/models/operators.py).

The histograms are computed from normalised pixels, separately for each channel. Gradients are computed with Sobel's kernels, with
reflection at the border. Each gradient adds its magnitude to the bin of its unsigned orientation, measured from the vertical.
Magnitudes are summed over square cells, and the histogram of each cell has norm 1. Only the first frame of a tube is used.

Shapes: B samples (T' frames per sample), C channels, H and W pixels, h and w tokens, o orientations, c cells along a token's side,
N tokens, K = C o c^2 values per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import Positive
from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import Features, Input
from mmm.targets.base import Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.losses import ValueLoss, mean_loss


@targets.register("hog")
class HogTarget(Target):
    """Histograms of oriented gradients in the cells of each token."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetConfig):
        cell: Positive = 8
        """Side in pixels of a cell, which has one histogram; a divisor of the token's side."""

        orientations: Positive = 9
        """Number of bins of a histogram, over half a turn."""

        loss: ValueLoss = "mse"
        """Loss per token."""

    config: Config

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: nn.Module) -> None:
        """Builds the target for tokens of this size. The encoder is not used."""
        super().__init__()
        if any(side % config.cell for side in token[-2:]):
            raise ValueError(f"target.cell {config.cell} does not divide the token's side {token[-1]}; choose a divisor")
        self.config, self.token = config, token
        cells = math.prod(side // config.cell for side in token[-2:])
        self.width = data.channels * config.orientations * cells

    @torch.no_grad()
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the histograms of every token, (B, N, K), in fp32 or better."""
        x = x if x.dtype.itemsize >= 4 else x.float()
        frames = x[:, :, :: self.token[0]].transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x  # (B T', C, H, W)
        histograms = self._histograms(frames)  # (B T', C, o, H / cell, W / cell)
        shape = {"h": grid[-2], "w": grid[-1], "t": len(frames) // len(x)}
        return TokenTargets(rearrange(histograms, "(b t) c o (h y) (w x) -> b (t h w) (c o y x)", **shape))

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the mean loss per predicted token, ()."""
        return mean_loss(self.config.loss, prediction, target, mask.weight)

    def _histograms(self, x: Tensor) -> Tensor:
        """Returns histograms, (B, C, H, W) -> (B, C, o, H / cell, W / cell)."""
        padded, config = F.pad(x, (1, 1, 1, 1), mode="reflect"), self.config
        rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]  # (B, C, H, W + 2)
        columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]  # (B, C, H + 2, W)
        across, down = rows[..., :-2] - rows[..., 2:], columns[:, :, :-2] - columns[:, :, 2:]  # (B, C, H, W)
        size = torch.hypot(across, down)
        bins = (torch.atan2(across, down) / math.pi * config.orientations).floor() % config.orientations
        votes = torch.stack([self._sums(size * (bins == one)) for one in range(config.orientations)], dim=2)
        return F.normalize(votes, dim=2)

    def _sums(self, values: Tensor) -> Tensor:
        """Returns sums over cells, (B, C, H, W) -> (B, C, H / cell, W / cell)."""
        return values.unflatten(3, (-1, self.config.cell)).sum(4).unflatten(2, (-1, self.config.cell)).sum(3)
