"""Errors of predictions by distance to the nearest visible token, by spatial frequency, and by motion.

Shapes: B samples, C channels, H and W pixels, N tokens, Q predicted and V visible tokens, a axes of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.tokens import take

DISTANCES = (1.0, math.sqrt(2), 2.0, math.sqrt(5), math.inf)
"""Upper ends of the bins for the distance from a hidden token to its nearest visible token, from centre to centre, in tokens."""


def nearest_visible(mask: Mask, places: Tensor) -> Tensor:
    """Returns the distance of each predicted token to the nearest visible one, (B, Q).

    Args:
        mask: one row per sample.
        places: positions of all tokens, (N, a).
    """
    places = places.expand(len(mask.visible), *places.shape)
    return torch.cdist(take(places, mask.predict), take(places, mask.visible)).amin(2)


class ErrorByBin:
    """Accumulates the squared error of predicted tokens by a measure of each token, such as its distance.

    Args:
        ends: upper ends of the bins; the last is infinite.
    """

    def __init__(self, ends: Sequence[float]) -> None:
        """Starts with no token."""
        self.ends = ends
        self.sums, self.counts = torch.zeros(len(ends), dtype=torch.float64), torch.zeros(len(ends), dtype=torch.int64)

    def add(self, error: Tensor, measure: Tensor) -> None:
        """Adds predicted tokens: their mean squared error, and the measure, of one shape."""
        bins = torch.bucketize(measure.detach().cpu(), torch.tensor(self.ends[:-1]) * (1 + 1e-4)).flatten()  # allows for rounding
        self.sums.index_add_(0, bins, error.detach().cpu().double().flatten())
        self.counts += torch.bincount(bins, minlength=len(self.ends))

    def result(self) -> list[dict[str, float | int | None]]:
        """Returns one row per bin: its upper end, the number of tokens, and their mean squared error."""
        return [
            {"up_to": None if math.isinf(end) else end, "tokens": int(count), "error": (total / count).item() if count else None}
            for end, count, total in zip(self.ends, self.counts, self.sums, strict=True)
        ]


class ErrorByFrequency:
    """Accumulates the energy of an error and of the original by spatial frequency.

    Energies are summed over samples and channels before they are divided. A Hann window prevents the edges of the image from
    contributing to all frequencies.
    """

    def __init__(self, bins: int = 8) -> None:
        """Starts with no sample.

        Args:
            bins: rings of equal width from 0 to the Nyquist frequency of an axis, 0.5 cycles per pixel.
        """
        self.bins = bins
        self.error, self.energy = torch.zeros(bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.float64)

    def add(self, prediction: Tensor, original: Tensor) -> None:
        """Adds images, (B, C, H, W) each. The frames of clips are passed as images."""
        height, width = original.shape[-2:]
        window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
        vertical, horizontal = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
        radius = (vertical[:, None] ** 2 + horizontal**2).sqrt()  # cycles per pixel
        ring = (radius / 0.5 * self.bins).long()
        for total, image in ((self.error, prediction - original), (self.energy, original - original.mean((-2, -1), keepdim=True))):
            power = torch.fft.rfft2(image.detach().cpu().float() * window).abs().square().double().sum((0, 1))  # (H, W // 2 + 1)
            inside = ring < self.bins
            total.index_add_(0, ring[inside], power[inside])

    def result(self) -> list[dict[str, float]]:
        """Returns one row per ring: its upper end in cycles per pixel, and the error's energy over the original's."""
        share = self.error / self.energy.clamp(min=1e-30)
        return [{"up_to": 0.5 * (number + 1) / self.bins, "share": value.item()} for number, value in enumerate(share)]


MOTIONS = (0.01, 0.02, 0.04, 0.08, math.inf)
"""Upper ends of the bins for the motion of a token: mean change of a pixel from frame to frame, with pixels in [0, 1]."""


def token_motion(clip: Tensor, split: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the mean absolute change of the pixels of each token from a frame to the next one, (B, N).

    The last frame gets the change of the frame before it.

    Args:
        clip: (B, C, T, H, W) in [0, 1], of at least two frames.
        split: the tokenizer's `split`, which returns raw values (B, N, P).
    """
    change = (clip[:, :, 1:] - clip[:, :, :-1]).abs()
    return split(torch.cat([change, change[:, :, -1:]], dim=2)).mean(2)
