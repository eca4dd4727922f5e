"""Gathering of tokens, and the number of tokens that remain visible for a given ratio.

Shapes: B samples, k rows per sample, N tokens of the grid, K chosen tokens.
"""

from __future__ import annotations

from torch import Tensor

Grid = tuple[int, ...]  # (H', W') of an image, (T', H', W') of a clip


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gathers the tokens of `values` at `index`.

    Args:
        values: (B, N, ...).
        index: int64 (kB, K). The rows of a sample are consecutive: rows ik .. ik + k - 1 belong to sample i.

    Returns:
        (kB, K, ...).
    """
    rows, many = index.shape[0], values.shape[0]  # not `len`, which would fix the batch size of an exported graph
    assert rows % many == 0, f"{rows} rows of indices for {many} samples"
    flat = index.reshape(many, -1)  # (kB, K) -> (B, kK)
    trailing = values.shape[2:]
    wide = flat.reshape(*flat.shape, *(1 for _ in trailing)).expand(*flat.shape, *trailing)  # a view: no index per element
    return values.gather(1, wide).reshape(*index.shape, *trailing)  # (B, kK, ...) -> (kB, K, ...)


def repeat_rows(values: Tensor, rows: int) -> Tensor:
    """Repeats the row of each sample consecutively, (B, ...) -> (rows, ...). If there is nothing to repeat, no copy is made."""
    samples = values.shape[0]
    return values if samples == rows else values.repeat_interleave(rows // samples, dim=0)


def keep_count(ratio: float, tokens: int) -> int:
    """Returns how many of `tokens` remain visible when the fraction `ratio` is hidden: the nearest whole number.

    MAE truncates instead. At a ratio of 0.75 both agree on every grid in its papers; at 0.9 they may differ by one token: of 196
    tokens, 20 remain visible here and 19 in MAE; of 1,568 tokens, 157 and 156. VideoMAE truncates the number of hidden positions:
    on its own grid of 14 x 14 both hide 176 at 0.9 and 147 at 0.75.
    """
    return tokens - round(ratio * tokens)
