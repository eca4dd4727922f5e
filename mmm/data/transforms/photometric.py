"""Photometric distortion of colour images (Liu et al., "SSD", ECCV 2016; mmsegmentation's values), drawn from the samples' keys.

Shapes: B samples, (h, w) pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmm.core.rng import Stream, stream, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, 0.5, 0.5, 18.0  # largest changes: of 255, factors, and degrees


def distort(x: Tensor, keys: Tensor) -> Tensor:
    """Changes brightness, contrast, saturation and hue, each for half of the samples. Contrast is changed before or after the other
    two.

    Args:
        x: float (B, 3, h, w), RGB from 0 to 255.
        keys: (B,).

    Returns:
        float (B, 3, h, w), from 0 to 255.
    """
    draws = uniform(stream(keys, Stream.PHOTOMETRIC), 9)  # (B, 9)
    signed = (2 * draws[:, :4] - 1).view(-1, 4, 1, 1, 1).unbind(1)
    done = (draws[:, 4:8] < 0.5).view(-1, 4, 1, 1, 1).unbind(1)
    late = (draws[:, 8] < 0.5).view(-1, 1, 1, 1)
    x = x + torch.where(done[0], BRIGHTNESS * signed[0], 0.0)
    factor = torch.where(done[1], 1 + CONTRAST * signed[1], 1.0)
    x = (x * torch.where(late, 1.0, factor)).clamp(0, 255)
    x = _saturate(x, torch.where(done[2], 1 + SATURATION * signed[2], 1.0), torch.where(done[3], HUE * signed[3], 0.0))
    return (x * torch.where(late, factor, 1.0)).clamp(0, 255)


def _saturate(x: Tensor, factor: Tensor, degrees: Tensor) -> Tensor:
    """Multiplies the saturation and turns the hue of RGB from 0 to 255, in HSV."""
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)  # (B, 1, h, w)
    chroma = value - least
    safe = chroma.clamp(min=1e-6)
    red, green, blue = x.split(1, dim=1)
    hue = torch.where(
        value == red, (green - blue) / safe, torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = hue + degrees / 60  # sixths of a turn
    chroma = (chroma * factor).minimum(value)
    # f(n) = v - c max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6: the usual inverse without branches
    parts = []
    for offset in (5, 3, 1):
        k = (offset + hue) % 6
        parts.append(value - chroma * torch.minimum(torch.minimum(k, 4 - k), torch.ones_like(k)).clamp(min=0))
    return torch.cat(parts, dim=1)
