"""Positions of tokens: fixed tables, learned tables, and positions for grids of another size.

Shapes: N tokens of the grid, n axes of the grid, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid

Fixed = Literal["sine_cosine", "flat_sine_cosine"]  # positions that are not trained
Positions = Literal["sine_cosine", "flat_sine_cosine", "learned"]
Resize = Literal["interpolate", "antialias", "recompute"]  # how positions for another grid are obtained
# the axes of the grid that a learned table is for, by the table's name: all of them, places or times
TABLE_AXES = {"pos_embed": slice(None), "pos_embed_spatial": slice(1, None), "pos_embed_temporal": slice(1)}


def coordinates(grid: Grid) -> Tensor:
    """Returns the coordinates of each token, in tokens: float64 (N, n), the last axis fastest."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    return torch.stack(axes, dim=-1).flatten(0, -2)  # (N, n)


def sine_cosine(coords: Tensor, width: int) -> Tensor:
    """Returns fixed n-D positions: each axis has an equal share of the width, half sines and half cosines.

    The last axis (columns) comes first, as in MAE's published table (util/pos_embed.py: "w goes first"), to which this is equal for
    two axes. If the number of axes does not divide the width, each axis gets the next even share and the end is cut, as in V-JEPA's
    table.

    Args:
        coords: (N, n), in tokens.
        width: D, even.

    Returns:
        float64 (N, D). Frequencies are 10000^(-i / (d / 2)) for i < d / 2, where d is the share of an axis.
    """
    if width % 2:
        raise ValueError(f"sine-cosine positions need an even width, not {width}")
    share = 2 * math.ceil(width / (2 * coords.shape[1]))
    frequencies = 10000.0 ** -(torch.arange(share // 2, dtype=torch.float64, device=coords.device) / (share / 2))
    angles = coords.double().flip(1)[..., None] * frequencies  # (N, n, d/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]  # (N, D)


def flat_sine_cosine(tokens: int, width: int) -> Tensor:
    """Returns VideoMAE's fixed positions, which depend on the flat index of a token (time first): sines in the even channels and
    cosines in the odd ones.

    Args:
        tokens: N.
        width: D.

    Returns:
        float64 (N, D). Angles are n / 10000^(2 floor(j / 2) / D) for n < N, j < D.
    """
    places = torch.arange(width)
    index, exponents = torch.arange(tokens, dtype=torch.float64), (places - places % 2).double() / width
    angles = index[:, None] / 10000.0**exponents  # (N, D)
    return torch.where(places % 2 == 0, angles.sin(), angles.cos())


def resize_positions(table: Tensor, old: Grid, new: Grid, *, antialias: bool = False) -> Tensor:
    """Interpolates a table of positions for another grid, (1, N_old, D) -> (1, N_new, D).

    Bicubic without corner alignment for two axes; trilinear for three. The values do not change if the grid is the same.

    Args:
        table: (1, N_old, D).
        old, new: the grids.
        antialias: use timm's cubic kernel (`resample_abs_pos_embed`) instead of that of MAE and transformers; only for two axes.
    """
    if old == new:
        return table
    if len(old) != len(new):
        raise ValueError(f"positions of a grid of {len(old)} axes {old} cannot be resized to one of {len(new)} {new}")
    if antialias and len(old) != 2:
        raise ValueError(f"resize_positions antialias is for images; positions of {len(old)} axes need interpolate or recompute")
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(old)]
    image = table.transpose(1, 2).unflatten(2, old)  # (1, D, *old)
    resized = F.interpolate(image, size=new, mode=mode, align_corners=False, antialias=antialias)
    return resized.flatten(2).transpose(1, 2)  # (1, N_new, D)


def resize_tables(tables: Mapping[str, Tensor], old: Grid, new: Grid) -> dict[str, Tensor]:
    """Returns learned tables by name, interpolated for another grid; see `TABLE_AXES` and `resize_positions`."""
    return {name: resize_positions(table, old[TABLE_AXES[name]], new[TABLE_AXES[name]]) for name, table in tables.items()}


def sum_of_tables(tables: Mapping[str, Tensor]) -> Tensor:
    """Returns the positions of all tokens, (1, N, D): the only table, or the sums of the tables of places and of times."""
    if "pos_embed" in tables:
        return tables["pos_embed"]
    places, times = tables["pos_embed_spatial"], tables["pos_embed_temporal"]  # (1, H' W', D), (1, T', D)
    return (times[:, :, None] + places[:, None]).flatten(1, 2)


def positions(table: Tensor, home: Grid, grid: Grid, prefix: int, kind: Positions, resize: Resize = "interpolate") -> Tensor:
    """Returns the positions of a grid: the stored table on its home grid, elsewhere a resized or newly computed table.

    Args:
        table: (1, prefix + N_home, D); the first `prefix` rows belong to prefix tokens (class token).
        home, grid: grid of the table, and grid of the result.
        prefix: number of prefix tokens.
        kind: kind of the table.
        resize: how positions for another grid are obtained.

    Returns:
        (1, prefix + N, D).
    """
    if grid == home:
        return table
    head, body = table[:, :prefix], table[:, prefix:]
    if resize == "recompute":
        body = fixed_positions(grid, table.shape[2], kind)[None].to(table)
    else:
        body = resize_positions(body, home, grid, antialias=resize == "antialias")
    return torch.cat([head, body], dim=1)


def fixed_positions(grid: Grid, width: int, kind: Positions) -> Tensor:
    """Returns sines and cosines for every token of a grid, float32 (N, D), on the CPU.

    Raises:
        ValueError: the positions are learned, and so cannot be computed.
    """
    if kind == "learned":
        raise ValueError("learned positions cannot be computed; only sine_cosine and flat_sine_cosine can")
    table = sine_cosine(coordinates(grid), width) if kind == "sine_cosine" else flat_sine_cosine(math.prod(grid), width)
    return table.float()


def position_table(grid: Grid, width: int, prefix: int, kind: Positions) -> nn.Parameter:
    """Returns a table (1, R + N, D): fixed sines and cosines with zeros for prefix tokens, or learned positions with small initial
    values."""
    if kind == "learned":
        return learned_table(prefix + math.prod(grid), width)
    body = fixed_positions(grid, width, kind)
    return nn.Parameter(torch.cat([torch.zeros(prefix, width), body])[None], requires_grad=False)


def learned_table(tokens: int, width: int) -> nn.Parameter:
    """Returns a table of learned positions with small initial values, (1, N, D)."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
