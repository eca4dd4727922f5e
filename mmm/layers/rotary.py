"""Rotary positions (Su et al., "RoFormer", 2021) on the axes of a grid: queries and keys are turned by angles of their places.

A head's channels are taken in pairs, and each pair is turned by place times frequency. Of n axes each has the same number of
frequencies, f = c // (2 n), the first axis first; channels that are left over are not turned.

Shapes: B rows, N tokens of the grid, R prefix tokens, r of them registers, M encoded tokens, n axes of the grid, h heads, c
channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.tokens import Grid, take
from mmm.layers.packing import Packing

RotaryKind = Literal["none", "axial", "vjepa2", "dinov3", "capi"]
HALVES = ("dinov3", "capi")  # a pair is channels i and i + c / 2


@dataclass(frozen=True)
class Rotary:
    """The angles of some tokens.

    Attributes:
        cos, sin: (B or 1, M, c), 1 and 0 for tokens that are not turned.
        interleaved: whether a pair is two neighbouring channels (V-JEPA 2, EVA) or channels i and i + c / 2 (DINOv3, CAPI).
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    @classmethod
    def packed(cls, rotations: Sequence[Rotary | None], packing: Packing) -> Rotary | None:
        """Joins the angles of groups of tokens; None where they are not turned."""
        turned = [one for one in rotations if one is not None]
        if not turned:
            return None
        cos, sin = (packing.pack([getattr(one, name) for one in turned]) for name in ("cos", "sin"))
        return cls(cos, sin, turned[0].interleaved)

    def apply(self, x: Tensor) -> Tensor:
        """Turns queries or keys, (B, M, h, c) -> (B, M, h, c), in the precision of the angles; returns that of x."""
        if self.interleaved:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        return (x * self.cos.unsqueeze(2) + turned * self.sin.unsqueeze(2)).to(x.dtype)


def make_rotary(
    kind: RotaryKind, grid: Grid, channels: int, where: Tensor, *, prefix: int = 0, around: int = 0, dtype: torch.dtype
) -> Rotary | None:
    """The angles of prefix tokens and of tokens at these places of the grid.

    Args:
        kind: `axial`, V-JEPA 2 and timm's EVA: places count tokens, and frequencies are 10000^(-i / f), i < f. `vjepa2`: the same
            with the fault that V-JEPA 2's released weights were trained with, where the two channels of a pair have different
            frequencies. `dinov3`: places are those of the tokens' centres on [-1, 1], periods 100^(i / f). `capi`: places run from
            0 to 1 on each axis, ends included, frequencies fall from 7 to 0.0007 turns, and the two channels of a pair follow
            different axes, as in CAPI's released weights.
        channels: c.
        where: int64 (B or 1, M).
        prefix: R; these tokens are not turned, except for registers that stand around the others.
        around: r, how many of the prefix tokens, the last of them, stand around the rectangle of the others; see `edge_places`.
        dtype: of the model's weights; angles have at least 32 bits.

    Returns:
        For M' = R + M tokens; None for `none`.
    """
    if kind == "none":
        return None
    dtype = dtype if dtype.itemsize >= 4 else torch.float32
    table = _places(kind, grid, where.device, dtype)  # (N, n)
    places = take(table[None].expand(len(where), -1, -1), where)  # (B, M, n)
    if around:
        places = torch.cat([edge_places(places, around), places], dim=1)  # (B, r + M, n)
    share = channels // (2 * len(grid))  # f
    angles = places[..., None] * _frequencies(kind, share, where.device, dtype)  # (B, r + M, n, f)
    left = channels - 2 * share * len(grid)
    if kind == "dinov3":
        half = F.pad(angles.flatten(2), (0, left // 2))
        turned = torch.cat([half, half], dim=2)  # (B, r + M, c)
    elif kind in ("vjepa2", "capi"):
        turned = F.pad(torch.cat([angles, angles], dim=3).flatten(2), (0, left))
    else:
        turned = F.pad(angles.flatten(2).repeat_interleave(2, dim=2), (0, left))
    turned = F.pad(turned, (0, 0, prefix - around, 0))  # (B, R + M, c)
    return Rotary(turned.cos(), turned.sin(), interleaved=kind not in HALVES)


def edge_places(places: Tensor, count: int) -> Tensor:
    """Coordinates of registers on the four sides of the rectangle that tokens (B, M, 2) span, in turn (CAPI), (B, count, 2)."""
    side = count // 4
    steps = torch.arange(side, device=places.device, dtype=places.dtype) / side
    zeros, ones = torch.zeros_like(steps), torch.ones_like(steps)
    rows, columns = torch.cat([steps, ones, 1 - steps, zeros]), torch.cat([zeros, steps, ones, 1 - steps])
    low, high = places.amin(1, keepdim=True), places.amax(1, keepdim=True)  # (B, 1, 2)
    return low + torch.stack([rows, columns], dim=-1) * (high - low)


def check_rotary(part: str, kind: RotaryKind, width: int, heads: int) -> None:
    """Raises ValueError where heads of this width cannot be turned in pairs."""
    if kind != "none" and (width // heads) % 2:
        raise ValueError(f"{part}.rotary {kind} turns channels in pairs, and {part}.width {width} / heads {heads} is odd")


def _places(kind: RotaryKind, grid: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The coordinates of each token on each axis, (N, n)."""
    if kind == "capi":
        axes = [torch.linspace(0, 1, size, device=device, dtype=dtype) for size in grid]
    else:
        axes = [torch.arange(size, device=device, dtype=dtype) for size in grid]
    if kind == "dinov3":
        axes = [(2 * axis + 1) / size - 1 for axis, size in zip(axes, grid, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _frequencies(kind: RotaryKind, share: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Angles of a distance of 1, (f,)."""
    if kind == "capi":
        return 2 * math.pi * 7 * 10000.0 ** -torch.linspace(0, 1, share, device=device, dtype=dtype)
    steps = torch.arange(share, device=device, dtype=dtype) / share
    return 2 * math.pi * 100.0**-steps if kind == "dinov3" else 10000.0**-steps
