"""A plain vision transformer with attention and relative positions inside windows (ViTDet, Li et al., ECCV 2022).

Shapes: B samples, (H, W) the grid, N = H W, w side of a window, D width, h heads, c values of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid
from mmm.layers.transformer import Attention, SelfAttention


def default_global_blocks(depth: int) -> tuple[int, ...]:
    """Returns four blocks for global attention, the last one of each quarter of the depth: 3, 6, 9 and 12 of 12."""
    return tuple(sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)}))


class DecomposedBias(Attention):
    """Attention that adds q · R of the relative row and of the relative column to its scores (MViTv2). R starts at zero."""

    def __init__(self, heads: int, channels: int, grid: tuple[int, int]) -> None:
        """Builds the tables for queries and keys of one grid, without prefix tokens.

        Args:
            channels: values of a head.
        """
        super().__init__(heads)
        self.grid = grid
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, channels))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, channels))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, h, N, c) each -> (B, h, N, c)."""
        assert valid is None  # a whole grid has no padding
        height, width = self.grid
        query = q.unflatten(2, self.grid)  # (B, h, H, W, c)
        of_rows = torch.einsum("bnhwc,hkc->bnhwk", query, _relative(self.rows, height).to(q.dtype))
        of_columns = torch.einsum("bnhwc,wkc->bnhwk", query, _relative(self.columns, width).to(q.dtype))
        bias = of_rows[..., :, None] + of_columns[..., None, :]  # (B, h, H, W, H, W)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(4, 5).flatten(2, 3))


def _relative(table: Tensor, length: int) -> Tensor:
    """Returns the entry for each pair of places along an axis, (2 L - 1, c) -> (L, L, c)."""
    places = torch.arange(length, device=table.device)
    return table[places[:, None] - places + length - 1]


class WindowedEncoder(nn.Module):
    """Runs an encoder's blocks on whole images, with attention inside windows except in a few global blocks.

    Class tokens and registers are left out, and the last norm too, as in ViTDet.
    """

    def __init__(
        self, encoder: nn.Module, grid: Grid, *, window: int | None, global_blocks: tuple[int, ...], relative: bool
    ) -> None:
        """Prepares an encoder, which is not a part of this module.

        Args:
            grid: grid of the images, (H, W).
            window: side of a window in tokens. None: all attention is global.
            global_blocks: blocks with global attention, counted from 1.
            relative: whether each block's attention gets a `DecomposedBias`.

        Raises:
            ValueError: the encoder is not a plain vision transformer of images, or a block does not exist.
        """
        super().__init__()
        plain: Any = encoder
        blocks = getattr(encoder, "blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not hasattr(encoder, "embed") or len(grid) != 2:
            raise ValueError(
                "detection needs an encoder of images whose blocks or stages it can read: encoder.name vit, hiera or swin"
            )
        if getattr(plain.config, "rotary", "none") != "none":
            raise ValueError(
                f"encoder.rotary {plain.config.rotary}: windows have no rotations; detection needs encoder.rotary none"
            )
        if getattr(plain.config, "relative_bias", "none") != "none":
            raise ValueError(
                f"encoder.relative_bias {plain.config.relative_bias}: windows have their own relative positions; "
                "detection needs encoder.relative_bias none"
            )
        if wrong := [number for number in global_blocks if not 1 <= number <= len(blocks)]:
            raise ValueError(f"detector.global_blocks {wrong[0]}: the encoder has the blocks 1 to {len(blocks)}")
        self.grid, self.window = (grid[0], grid[1]), window
        self.everywhere = set(range(1, len(blocks) + 1)) if window is None else set(global_blocks)
        for number, block in enumerate(blocks, start=1):
            attention: Any = block.attn
            assert isinstance(attention, SelfAttention)
            if relative:
                own = self.grid if number in self.everywhere or window is None else (window, window)
                attention.attention = DecomposedBias(attention.num_heads, plain.shape.width // attention.num_heads, own)

    def forward(self, encoder: nn.Module, patches: Tensor) -> Tensor:
        """Encodes the raw values of all tokens, (B, N, P) -> (B, D, H, W)."""
        plain: Any = encoder
        where = torch.arange(patches.shape[1], device=patches.device)[None]
        x = plain.embed(patches, where, self.grid)[:, plain.shape.prefix :].unflatten(1, self.grid)  # (B, H, W, D)
        for number, block in enumerate(plain.blocks, start=1):
            if number in self.everywhere or self.window is None:
                x = block(x.flatten(1, 2)).unflatten(1, self.grid)
            else:
                x = in_windows(block, x, self.window)
        return x.movedim(-1, 1)


def in_windows(block: nn.Module, x: Tensor, window: int) -> Tensor:
    """Applies a block inside windows, (B, H, W, D) -> (B, H, W, D). The map is padded with zeros at its end to whole windows."""
    batch, height, width, _ = x.shape
    down, right = -height % window, -width % window
    x = F.pad(x, (0, 0, 0, right, 0, down))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    parts = x.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)  # (B, rows, columns, w, w, D)
    parts = block(parts.flatten(3, 4).flatten(0, 2))  # (B rows columns, w w, D)
    parts = parts.unflatten(0, (batch, rows, columns)).unflatten(3, (window, window)).transpose(2, 3)
    return parts.flatten(3, 4).flatten(1, 2)[:, :height, :width]
