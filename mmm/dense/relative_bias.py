"""A learned bias of attention for each relative position, as in BEiT and in MAE's segmentation.

Shapes: B samples, h heads, M tokens (prefix first), (H, W) the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid
from mmm.layers.transformer import Attention, SelfAttention


class RelativeBias(Attention):
    """Attention whose scores get a bias for each head and relative position. Biases start at zero.

    The class token has three biases: to the others, from the others, and to itself.
    """

    index: Tensor

    def __init__(self, heads: int, grid: tuple[int, int], prefix: int) -> None:
        """Builds the table of biases for one grid and 0 or 1 prefix tokens."""
        super().__init__(heads)
        height, width = grid
        self.grid = grid
        self.table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1) + 3, heads))
        self.register_buffer("index", relative_index(grid, prefix), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, h, M, c) each -> (B, h, M, c).

        Raises:
            ValueError: the tokens are of another grid.
        """
        assert valid is None  # a whole grid has no padding
        if q.shape[2] != len(self.index):
            raise ValueError(
                f"relative positions are learned for a grid of {self.grid[0]} x {self.grid[1]} tokens; evaluate in windows "
                "(data.whole_maps false)"
            )
        bias = self.table[self.index].movedim(-1, 0)[None].to(q.dtype)  # (1, h, M, M)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def relative_index(grid: tuple[int, int], prefix: int) -> Tensor:
    """Returns the row of the table for each pair of tokens (query, key), int64 (M, M)."""
    height, width = grid
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)  # (2, N)
    apart = places[:, :, None] - places[:, None]  # (2, N, N)
    index = (apart[0] + height - 1) * (2 * width - 1) + apart[1] + width - 1
    if not prefix:
        return index
    rows = (2 * height - 1) * (2 * width - 1)
    whole = torch.empty(len(index) + 1, len(index) + 1, dtype=torch.int64)
    whole[1:, 1:], whole[0], whole[:, 0], whole[0, 0] = index, rows, rows + 1, rows + 2
    return whole


def add_relative_bias(encoder: nn.Module, grid: Grid) -> None:
    """Gives the attention of each block a bias, in place.

    Raises:
        ValueError: the encoder has several prefix tokens, or blocks of another kind.
    """
    plain: Any = encoder
    blocks = getattr(encoder, "blocks", None)
    if plain.shape.prefix > 1 or not isinstance(blocks, nn.ModuleList) or len(grid) != 2:
        raise ValueError("relative_bias is for encoders of images with at most one prefix token; leave it out")
    for block in blocks:
        attention = getattr(block, "attn", None)
        if not isinstance(attention, SelfAttention):
            raise ValueError("relative_bias needs blocks of self-attention; leave it out")
        attention.attention = RelativeBias(attention.num_heads, (grid[0], grid[1]), plain.shape.prefix)
