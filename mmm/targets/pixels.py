"""Pixels as the target, in the published conventions.

MAE (He et al., CVPR 2022, section 3) standardises each patch over all its values, with epsilon inside the root. VideoMAE
standardises each tube and channel of un-normalised pixels, with epsilon outside, and OmniMAE each channel, with epsilon inside.
SimMIM does not standardise. PixMIM (Liu et al., arXiv 2303.02416) removes high frequencies; MotionMAE (Yang et al., arXiv
2210.04154) also predicts differences between frames.

Shapes: kmB rows, B samples, N tokens, Q predicted tokens, P values per token, C channels, n = P / C pixels per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmm.core.checks import Limit, NonNegative
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, Input
from mmm.targets.base import Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.losses import ValueLoss, mean_loss

Cutoff = Annotated[float, Limit("above 0, at most 0.5", lambda value: 0 < value <= 0.5)]


@targets.register("pixels")
class PixelTarget(Target):
    """The pixels of the hidden tokens, standardised or not."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetConfig):
        standardise: Literal["patch", "channel", "none"] = "patch"
        """Standardise to mean 0 and variance 1 over each token (patch: MAE's norm_pix) or over each channel of a token (channel:
        VideoMAE)."""

        epsilon: NonNegative = 1e-6
        """Small number that keeps the division by the standard deviation finite."""

        epsilon_inside: bool = True
        """Add epsilon to the variance, inside the root (MAE). False: add it to the deviation (VideoMAE)."""

        unbiased: bool = True
        """Divide the variance by n - 1 (MAE, VideoMAE). False: by n (BootMAE)."""

        pixels: Literal["normalised", "unit"] = "normalised"
        """Scale of the pixels. normalised: as in the model's input (MAE). unit: scaled back to [0, 1] (VideoMAE)."""

        low_pass: Cutoff | None = None
        """Highest frequency that is kept, in cycles per pixel, in all directions of a frame (PixMIM: 40 in 224 pixels, 0.18).
        None: all frequencies."""

        differences: bool = False
        """Predict the difference between each frame and the previous one (MotionMAE), 0 for the first frame."""

        loss: ValueLoss = "mse"
        """Loss per token."""

    config: Config
    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: nn.Module) -> None:
        """Builds the target for tokens of this size, in pixels (and frames). The encoder is not used."""
        super().__init__()
        width = data.channels * math.prod(token)
        values = width if config.standardise == "patch" else width // data.channels
        if config.standardise != "none" and values <= int(config.unbiased):
            raise ValueError(
                f"target.standardise {config.standardise} needs more than one value a token; use none, or larger tokens"
            )
        if config.differences and len(data.size) == 2:
            raise ValueError("target.differences needs the frames of a clip, and these samples are images; leave it out")
        self.config, self.width, self.token = config, width, token
        self.register_buffer("mean", torch.tensor(data.mean), persistent=False)
        self.register_buffer("std", torch.tensor(data.std), persistent=False)

    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the filtered patches; standardisation follows later, for the predicted tokens only."""
        return TokenTargets(self._filtered(patches, grid))

    @torch.no_grad()
    def pick(self, token_targets: TokenTargets, mask: Mask) -> Tensor:
        """Returns the target pixels of the predicted tokens, fp32 (kmB, Q, P)."""
        raw = self._source(take(token_targets.tokens, mask.predict))
        centre, spread = self._statistics(raw)
        return ((raw - centre) / spread).flatten(2)

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the mean loss per predicted token, ()."""
        return mean_loss(self.config.loss, prediction, target, mask.weight)

    @property
    def uses_original(self) -> bool:
        """True if `show` uses the original's mean and standard deviation, which a prediction does not contain."""
        return self.config.standardise != "none"

    @property
    def shows_pixels(self) -> bool:
        """False for differences of frames."""
        return not self.config.differences

    @torch.no_grad()
    def show(self, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor | None:
        """Returns predictions as pixels that can be joined to an image, normalised like the model's input, (kmB, Q, P).

        If the target is standardised, a prediction contains no brightness or contrast; those of the ORIGINAL token are used, and
        `uses_original` is True. Returns None for differences of frames.
        """
        if self.config.differences:
            return None
        centre, spread = self._statistics(self._source(take(patches, mask.predict)))
        pixels = prediction.to(centre.dtype).unflatten(2, (-1, len(self.mean))) * spread + centre  # (kmB, Q, n, C)
        if self.config.pixels == "unit":
            pixels = (pixels - self.mean) / self.std
        return pixels.flatten(2)

    @torch.no_grad()
    def _filtered(self, patches: Tensor, grid: Grid) -> Tensor:
        """Removes high frequencies, or computes differences of frames, (B, N, P) -> (B, N, P)."""
        if self.config.low_pass is None and not self.config.differences:
            return patches
        clips, tokens = "b c (t p) (h q) (w r)", "b (t h w) (p q r c)"
        sizes = dict(zip("thwpqr", (*(1, *grid)[-3:], *(1, *self.token)[-3:]), strict=True))
        frames = rearrange(patches if patches.dtype.itemsize >= 4 else patches.float(), f"{tokens} -> {clips}", **sizes)
        if self.config.low_pass is not None:
            frames = low_pass(frames, self.config.low_pass)
        if self.config.differences:
            frames = frames.diff(dim=2, prepend=frames[:, :, :1])
        return rearrange(frames, f"{clips} -> {tokens}", **sizes)

    def _source(self, patches: Tensor) -> Tensor:
        """Returns the pixels from which the statistics are computed, (kmB, Q, P) -> (kmB, Q, n, C)."""
        patches = patches if patches.dtype.itemsize >= 4 else patches.float()
        pixels = patches.unflatten(2, (-1, len(self.mean)))
        return pixels * self.std + self.mean if self.config.pixels == "unit" else pixels

    def _statistics(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean to subtract and the standard deviation to divide by; both broadcast over (kmB, Q, n, C)."""
        if self.config.standardise == "none":
            return pixels.new_zeros(()), pixels.new_ones(())
        over = (2, 3) if self.config.standardise == "patch" else (2,)
        variance, centre = torch.var_mean(pixels, dim=over, correction=int(self.config.unbiased), keepdim=True)
        epsilon = self.config.epsilon
        return centre, (variance + epsilon).sqrt() if self.config.epsilon_inside else variance.sqrt() + epsilon


def low_pass(frames: Tensor, cutoff: float) -> Tensor:
    """Removes frequencies of more than `cutoff` cycles per pixel, (..., H, W) -> (..., H, W)."""
    high, wide = frames.shape[-2:]
    vertical = torch.fft.fftfreq(high, device=frames.device)[:, None]  # (H, 1)
    kept = vertical.square() + torch.fft.rfftfreq(wide, device=frames.device).square() <= cutoff**2  # (H, W // 2 + 1)
    return torch.fft.irfft2(torch.fft.rfft2(frames) * kept, s=(high, wide))
