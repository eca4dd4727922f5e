"""Rotary positions (Su et al., "RoFormer", 2021) on the axes of a grid: positions rotate queries and keys.

The channels of a head form pairs, and each pair is rotated by position times frequency. Each of the n axes has the same number of
frequencies, f = c // (2 n), the first axis first; the remaining channels are not rotated.

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
    """The rotation angles of some tokens.

    Attributes:
        cos, sin: (B or 1, M, c), 1 and 0 for tokens that are not rotated.
        interleaved: whether a pair is two neighbouring channels (V-JEPA 2, EVA) or channels i and i + c / 2 (DINOv3, CAPI).
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    @classmethod
    def packed(cls, rotations: Sequence[Rotary | None], packing: Packing) -> Rotary | None:
        """Joins the angles of groups of tokens. None: the tokens are not rotated."""
        turned = [one for one in rotations if one is not None]
        if not turned:
            return None
        cos, sin = (packing.pack([getattr(one, name) for one in turned]) for name in ("cos", "sin"))
        return cls(cos, sin, turned[0].interleaved)

    def apply(self, x: Tensor) -> Tensor:
        """Rotates queries or keys, (B, M, h, c) -> (B, M, h, c). Computes in the precision of the angles, and returns that of x."""
        if self.interleaved:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        return (x * self.cos.unsqueeze(2) + turned * self.sin.unsqueeze(2)).to(x.dtype)


def make_rotary(
    kind: RotaryKind, grid: Grid, channels: int, where: Tensor, *, prefix: int = 0, around: int = 0, dtype: torch.dtype
) -> Rotary | None:
    """Returns the angles of prefix tokens and of tokens at the given positions of the grid.

    Args:
        kind: `axial` (V-JEPA 2, timm's EVA): positions count tokens, and frequencies are 10000^(-i / f), i < f. `vjepa2`: the same,
            but with the error of V-JEPA 2's released weights, where the two channels of a pair have different frequencies.
            `dinov3`: positions are those of the tokens' centres on [-1, 1], periods 100^(i / f). `capi`: positions run from
            0 to 1 on each axis, ends included, frequencies fall from 7 to 0.0007 turns, and the two channels of a pair belong to
            different axes, as in CAPI's released weights.
        channels: c.
        where: positions of the tokens, int64 (B or 1, M).
        prefix: R; prefix tokens are not rotated, except for registers that are placed around the other tokens.
        around: r, the number of registers, the last of the prefix tokens, placed around the rectangle of the other tokens; see
            `edge_places`.
        dtype: type of the model's weights; angles have at least 32 bits.

    Returns:
        The angles of R + M tokens; None for `none`.
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
    """Returns coordinates of registers on the four sides, in turn, of the rectangle of tokens (B, M, 2) (CAPI), (B, count, 2)."""
    side = count // 4
    steps = torch.arange(side, device=places.device, dtype=places.dtype) / side
    zeros, ones = torch.zeros_like(steps), torch.ones_like(steps)
    rows, columns = torch.cat([steps, ones, 1 - steps, zeros]), torch.cat([zeros, steps, ones, 1 - steps])
    low, high = places.amin(1, keepdim=True), places.amax(1, keepdim=True)  # (B, 1, 2)
    return low + torch.stack([rows, columns], dim=-1) * (high - low)


def check_rotary(part: str, kind: RotaryKind, width: int, heads: int) -> None:
    """Raises ValueError if the channels of a head cannot be rotated in pairs."""
    if kind != "none" and (width // heads) % 2:
        raise ValueError(f"{part}.rotary {kind} turns channels in pairs, and {part}.width {width} / heads {heads} is odd")


def _places(kind: RotaryKind, grid: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the coordinates of each token on each axis, (N, n)."""
    if kind == "capi":
        axes = [torch.linspace(0, 1, size, device=device, dtype=dtype) for size in grid]
    else:
        axes = [torch.arange(size, device=device, dtype=dtype) for size in grid]
    if kind == "dinov3":
        axes = [(2 * axis + 1) / size - 1 for axis, size in zip(axes, grid, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _frequencies(kind: RotaryKind, share: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the angles for a distance of 1, (f,)."""
    if kind == "capi":
        return 2 * math.pi * 7 * 10000.0 ** -torch.linspace(0, 1, share, device=device, dtype=dtype)
    steps = torch.arange(share, device=device, dtype=dtype) / share
    return 2 * math.pi * 100.0**-steps if kind == "dinov3" else 10000.0**-steps
