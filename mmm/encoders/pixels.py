"""Puts visible tokens back into an input, for encoders whose first layer is a convolution of overlapping patches."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor

from mmm.core.tokens import Grid


def join_visible(visible: Tensor, where: Tensor, grid: Grid, token: tuple[int, ...]) -> Tensor:
    """Returns the input with zeros in the places of all tokens that are not visible.

    Args:
        visible: raw values of the visible tokens, (mB, V, P), the channel fastest.
        where: place on the grid of each of them, (mB, V); or (1, N) for all tokens in order.
        grid: the arrangement of the N tokens.
        token: a token's size, s... / grid.

    Returns:
        (mB, C, s...).
    """
    if len(where) != len(visible):
        patches = visible  # all tokens, in order
    else:
        patches = visible.new_zeros(len(visible), math.prod(grid), visible.shape[2])
        patches = patches.scatter(1, where[..., None].expand_as(visible), visible)  # (mB, N, P)
    inner, outer = [f"i{axis}" for axis in range(len(grid))], [f"o{axis}" for axis in range(len(grid))]
    boxes = " ".join(f"({o} {i})" for o, i in zip(outer, inner, strict=True))
    sizes = dict(zip(inner, token, strict=True)) | dict(zip(outer, grid, strict=True))
    return rearrange(patches, f"b ({' '.join(outer)}) ({' '.join(inner)} c) -> b c {boxes}", **sizes)
