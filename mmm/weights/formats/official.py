"""What the official layouts share: what their files leave unsaid.

Heads stand in no file: the published sizes say how many a width has. Positions do not say their grid, nor pixels their colours.

Legend: p side of a patch, C channels, N tokens of the grid, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmm.core.tokens import Grid, coordinates, sine_cosine
from mmm.encoders.vit import SIZES
from mmm.weights.matching import listed

HEADS = {width: heads for width, _, heads in SIZES.values()}
DECODER_HEADS = {256: 8, 512: 16}


def refuse_odd(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuses what are no weights.

    Raises:
        ValueError: naming what is no dense tensor of real numbers.
    """
    odd = [name for name, value in weights.items() if not value.is_floating_point() or value.layout is not torch.strided]
    if odd:
        raise ValueError(f"{source} holds something else than dense real numbers under {listed(odd)}")


def grid_of(tokens: int, patch: int, image_size: int | tuple[int, int] | None, source: str) -> Grid:
    """The grid (H', W') that a table of positions for N `tokens` is for.

    Raises:
        ValueError: where N is no square and no size is given, or the size does not fit.
    """
    if image_size is None:
        side = math.isqrt(tokens)
        if side * side != tokens or not tokens:
            raise ValueError(f"{source} has positions for {tokens} tokens, which make no square; give image_size=(height, width)")
        return side, side
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid = tuple(side // patch for side in sides)
    if len(sides) != 2 or min(grid) < 1 or any(side % patch for side in sides) or math.prod(grid) != tokens:
        raise ValueError(f"image_size={image_size} does not fit {source}, which has {tokens} patches of {patch} x {patch} pixels")
    return grid


def heads_of(argument: str, given: int | None, width: int, published: Mapping[int, int], source: str) -> int:
    """The heads that are given or, of a published width, its own.

    Raises:
        ValueError: naming the argument to give, or that does not divide the width.
    """
    heads = published.get(width) if given is None else given
    if heads is None:
        raise ValueError(f"{source} has a width of {width}, and no published size says how many heads that has; give {argument}=")
    if heads < 1 or width % heads:
        raise ValueError(f"{argument}={heads} does not divide the width of {width} in {source}; give a divisor")
    return heads


def is_fixed(table: Tensor, grid: Grid) -> bool:
    """Whether the table (1, 1 + N, D) holds sines and cosines of this grid, to the precision in which it was stored."""
    if table.shape[2] % 2:
        return False
    fixed = sine_cosine(coordinates(grid), table.shape[2])
    rounded = torch.equal(table, table.bfloat16().to(table.dtype))  # bf16 is off by up to 2^-9
    return torch.allclose(table[0, 1:].double(), fixed, atol=2**-8 if rounded else 1e-3)
