"""A learned bias of attention for each relative position, as in BEiT and in MAE's segmentation.

Shapes: B samples, h heads, M tokens (prefix first), (H, W) the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid
from mmm.layers.relative_bias import make_table, relative_index
from mmm.layers.transformer import Attention, SelfAttention


class RelativeBias(Attention):
    """Attention whose scores get a bias for each head and relative position. Biases start at zero.

    The class token has three biases: for its attention to other tokens, for their attention to it, and for its attention to itself.
    """

    index: Tensor

    def __init__(self, heads: int, grid: tuple[int, int], prefix: int) -> None:
        """Builds the table of biases for one grid and 0 or 1 prefix tokens."""
        super().__init__(heads)
        height, width = grid
        self.grid = grid
        self.table = make_table(grid, heads)
        self.register_buffer("index", relative_index(grid, torch.arange(height * width)[None], prefix)[0], persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, h, M, c) each -> (B, h, M, c).

        Raises:
            ValueError: the tokens have another grid.
        """
        assert valid is None  # a whole grid has no padding
        if q.shape[2] != len(self.index):
            raise ValueError(
                f"relative positions are learned for a grid of {self.grid[0]} x {self.grid[1]} tokens; evaluate in windows "
                "(data.whole_maps false)"
            )
        bias = self.table[self.index].movedim(-1, 0)[None].to(q.dtype)  # (1, h, M, M)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def add_relative_bias(encoder: nn.Module, grid: Grid) -> None:
    """Adds a bias to the attention of each block, in place.

    Raises:
        ValueError: the encoder has several prefix tokens, or its blocks have no self-attention to which a bias can be added.
    """
    plain: Any = encoder
    blocks = getattr(encoder, "blocks", None)
    if plain.shape.prefix > 1 or not isinstance(blocks, nn.ModuleList) or len(grid) != 2:
        raise ValueError("relative_bias is for encoders of images with at most one prefix token; leave it out")
    if getattr(plain.config, "relative_bias", "none") != "none":
        raise ValueError(
            f"relative_bias: this encoder has encoder.relative_bias {plain.config.relative_bias} already; leave it out"
        )
    for block in blocks:
        attention = getattr(block, "attn", None)
        if not isinstance(attention, SelfAttention):
            raise ValueError("relative_bias needs blocks of self-attention; leave it out")
        attention.attention = RelativeBias(attention.num_heads, (grid[0], grid[1]), plain.shape.prefix)
