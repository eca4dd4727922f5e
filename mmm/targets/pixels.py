"""Pixels as the target, in the published conventions.

MAE (He et al., CVPR 2022, section 3) standardises each patch over all its values, with epsilon inside the root; VideoMAE each
tube and channel of un-normalised pixels, with epsilon outside; OmniMAE each channel with epsilon inside; SimMIM not at all.

Shapes: kmB rows, B samples, N tokens, Q predicted tokens, P values a token, C channels, n = P / C pixels a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import NonNegative
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, Input
from mmm.targets.base import Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.losses import ValueLoss, mean_loss


@targets.register("pixels")
class PixelTarget(Target):
    """The pixels of the hidden tokens, standardised or not."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetConfig):
        standardise: Literal["patch", "channel", "none"] = "patch"
        """To mean 0 and variance 1 over a token (MAE's norm_pix), over each channel of a token (VideoMAE), or not at all."""

        epsilon: NonNegative = 1e-6
        """Added where a token's variance may be zero."""

        epsilon_inside: bool = True
        """Add epsilon to the variance, inside the root (MAE), rather than to the deviation (VideoMAE)."""

        unbiased: bool = True
        """Divide the variance by n - 1 (MAE, VideoMAE) rather than n (BootMAE)."""

        pixels: Literal["normalised", "unit"] = "normalised"
        """Take pixels as the model gets them (MAE) or scaled back to [0, 1] (VideoMAE)."""

        loss: ValueLoss = "mse"
        """Loss of a token."""

    config: Config
    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: nn.Module) -> None:
        """Builds it for tokens of this size, in pixels (and frames); pixels need no teacher, so the encoder is not kept."""
        super().__init__()
        width = data.channels * math.prod(token)
        values = width if config.standardise == "patch" else width // data.channels
        if config.standardise != "none" and values <= int(config.unbiased):
            raise ValueError(
                f"target.standardise {config.standardise} needs more than one value a token; use none, or larger tokens"
            )
        self.config, self.width = config, width
        self.register_buffer("mean", torch.tensor(data.mean), persistent=False)
        self.register_buffer("std", torch.tensor(data.std), persistent=False)

    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """The patches, of which only the predicted ones are standardised."""
        return TokenTargets(patches)

    @torch.no_grad()
    def pick(self, token_targets: TokenTargets, mask: Mask) -> Tensor:
        """Returns the pixels of the predicted tokens as they are to be predicted, fp32 (kmB, Q, P)."""
        raw = self._source(take(token_targets.tokens, mask.predict))
        centre, spread = self._statistics(raw)
        return ((raw - centre) / spread).flatten(2)

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """The mean loss of a predicted token, ()."""
        return mean_loss(self.config.loss, prediction, target, mask.weight)

    @property
    def uses_original(self) -> bool:
        """Whether `show` needs the original's own mean and deviation, which a real prediction would not have."""
        return self.config.standardise != "none"

    @torch.no_grad()
    def show(self, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor:
        """Predictions as pixels that can be joined to a picture: normalised as the model's input is, (kmB, Q, P).

        Where the target is standardised, a prediction holds no brightness or contrast: the ORIGINAL's are put back, token by
        token, and `uses_original` says so.
        """
        centre, spread = self._statistics(self._source(take(patches, mask.predict)))
        pixels = prediction.to(centre.dtype).unflatten(2, (-1, len(self.mean))) * spread + centre  # (kmB, Q, n, C)
        if self.config.pixels == "unit":
            pixels = (pixels - self.mean) / self.std
        return pixels.flatten(2)

    def _source(self, patches: Tensor) -> Tensor:
        """The pixels that the statistics are taken of, (kmB, Q, P) -> (kmB, Q, n, C)."""
        patches = patches if patches.dtype.itemsize >= 4 else patches.float()
        pixels = patches.unflatten(2, (-1, len(self.mean)))
        return pixels * self.std + self.mean if self.config.pixels == "unit" else pixels

    def _statistics(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the centre, which is subtracted, and the spread, which is divided by; both broadcast over (kmB, Q, n, C)."""
        if self.config.standardise == "none":
            return pixels.new_zeros(()), pixels.new_ones(())
        over = (2, 3) if self.config.standardise == "patch" else (2,)
        variance, centre = torch.var_mean(pixels, dim=over, correction=int(self.config.unbiased), keepdim=True)
        epsilon = self.config.epsilon
        return centre, (variance + epsilon).sqrt() if self.config.epsilon_inside else variance.sqrt() + epsilon
