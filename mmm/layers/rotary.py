"""Rotary positions (Su et al., "RoFormer", 2021) on the axes of a grid: queries and keys are turned by angles of their places.

A head's channels are taken in pairs, and each pair is turned by place times frequency. Of n axes each has the same number of
frequencies, f = c // (2 n), the first axis first; channels that are left over are not turned.

Shapes: B rows, N tokens of the grid, R prefix tokens, M encoded tokens, n axes of the grid, h heads, c channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.tokens import Grid, take

RotaryKind = Literal["none", "axial", "vjepa2", "dinov3"]


@dataclass(frozen=True)
class Rotary:
    """The angles of some tokens.

    Attributes:
        cos, sin: (B or 1, M, c), 1 and 0 for tokens that are not turned.
        interleaved: whether a pair is two neighbouring channels (V-JEPA 2, EVA) or channels i and i + c / 2 (DINOv3).
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def apply(self, x: Tensor) -> Tensor:
        """Turns queries or keys, (B, M, h, c) -> (B, M, h, c), in the precision of the angles; returns that of x."""
        if self.interleaved:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        return (x * self.cos.unsqueeze(2) + turned * self.sin.unsqueeze(2)).to(x.dtype)


def make_rotary(
    kind: RotaryKind, grid: Grid, channels: int, where: Tensor, *, prefix: int = 0, dtype: torch.dtype
) -> Rotary | None:
    """The angles of prefix tokens, which are not turned, and of tokens at these places of the grid.

    Args:
        kind: `axial`, V-JEPA 2 and timm's EVA: places count tokens, and frequencies are 10000^(-i / f), i < f. `vjepa2`: the same
            with the fault that V-JEPA 2's released weights were trained with, where the two channels of a pair have different
            frequencies. `dinov3`: places are those of the tokens' centres on [-1, 1], periods 100^(i / f).
        channels: c.
        where: int64 (B or 1, M).
        prefix: R.
        dtype: of the model's weights; angles have at least 32 bits.

    Returns:
        For M' = R + M tokens; None for `none`.
    """
    if kind == "none":
        return None
    dtype = dtype if dtype.itemsize >= 4 else torch.float32
    places = _places(kind, grid, where.device, dtype)  # (N, n)
    share = channels // (2 * len(grid))  # f
    steps = torch.arange(share, device=where.device, dtype=dtype) / share
    angles = places[..., None] * (2 * math.pi * 100.0**-steps if kind == "dinov3" else 10000.0**-steps)  # (N, n, f)
    left = channels - 2 * share * len(grid)
    if kind == "dinov3":
        half = F.pad(angles.flatten(1), (0, left // 2))
        table = torch.cat([half, half], dim=1)  # (N, c)
    elif kind == "vjepa2":
        table = F.pad(torch.cat([angles, angles], dim=2).flatten(1), (0, left))
    else:
        table = F.pad(angles.flatten(1).repeat_interleave(2, dim=1), (0, left))
    turned = F.pad(take(table[None].expand(len(where), -1, -1), where), (0, 0, prefix, 0))  # (B, R + M, c)
    return Rotary(turned.cos(), turned.sin(), interleaved=kind != "dinov3")


def check_rotary(part: str, kind: RotaryKind, width: int, heads: int) -> None:
    """Raises ValueError where heads of this width cannot be turned in pairs."""
    if kind != "none" and (width // heads) % 2:
        raise ValueError(f"{part}.rotary {kind} turns channels in pairs, and {part}.width {width} / heads {heads} is odd")


def _places(kind: RotaryKind, grid: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The coordinates of each token on each axis, (N, n)."""
    axes = [torch.arange(size, device=device, dtype=dtype) for size in grid]
    if kind == "dinov3":
        axes = [(2 * axis + 1) / size - 1 for axis, size in zip(axes, grid, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
