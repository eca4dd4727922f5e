"""Learned attention biases for each head and pair of relative positions (BEiT: Bao et al., ICLR 2022; Swin), on images.

A table has a row for each offset between two tokens, and three rows for a class token: to the others, from the others, to itself.

Shapes: B rows, M tokens (a class token first), (H, W) the grid, h heads, r = (2 H - 1) (2 W - 1) + 3 rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid


def make_table(grid: Grid, heads: int) -> nn.Parameter:
    """Returns a table of zeros, (r, h)."""
    height, width = grid
    return nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1) + 3, heads))


class RelativeTable(nn.Module):
    """A table that all blocks share, with timm's name of the weight."""

    def __init__(self, grid: Grid, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = make_table(grid, heads)


def relative_index(grid: Grid, where: Tensor, prefix: int) -> Tensor:
    """Returns the row of the table for each pair of tokens (query, key).

    Args:
        grid: (H, W).
        where: positions of the tokens on the grid, int64 (B, M).
        prefix: 0 or 1 class tokens before them.

    Returns:
        int64 (B, prefix + M, prefix + M).
    """
    height, width = grid
    places = torch.stack([where // width, where % width])  # (2, B, M)
    apart = places[..., :, None] - places[..., None, :]  # (2, B, M, M)
    index = (apart[0] + height - 1) * (2 * width - 1) + apart[1] + width - 1
    if not prefix:
        return index
    rows = (2 * height - 1) * (2 * width - 1)
    index = F.pad(index, (1, 0), value=rows + 1)  # from the others to the class token
    first = torch.full_like(index[:, :1], rows)
    first[:, :, 0] = rows + 2
    return torch.cat([first, index], dim=1)


def resize_table(table: Tensor, home: Grid, grid: Grid) -> Tensor:
    """Interpolates a table for another grid, bilinearly as in transformers, (r, h) -> (r', h). The class token's rows are kept."""
    if home == grid:
        return table
    (height, width), size = home, [2 * side - 1 for side in grid]
    image = table[:-3].unflatten(0, (2 * height - 1, 2 * width - 1)).movedim(-1, 0)[None]  # (1, h, 2 H - 1, 2 W - 1)
    resized = F.interpolate(image, size=size, mode="bilinear")[0].movedim(0, -1).flatten(0, 1)
    return torch.cat([resized, table[-3:]])


@dataclass(frozen=True)
class RelativePlaces:
    """The relative positions of the tokens in a forward pass.

    Attributes:
        index: int64 (B or 1, M, M), see `relative_index`.
        home: the grid of the tables.
        grid: the grid of the tokens.
        shared: the table that all blocks share, (r, h). None: each block has its own.
    """

    index: Tensor
    home: Grid
    grid: Grid
    shared: Tensor | None

    def bias(self, own: Tensor | None) -> Tensor:
        """Returns the bias of the attention scores, from a block's own table or the shared one, (B or 1, h, M, M)."""
        table = own if self.shared is None else self.shared
        assert table is not None
        return resize_table(table, self.home, self.grid)[self.index].movedim(-1, 1)
