"""Visible tokens that are predicted at their own places beside hidden ones, with weights (V-JEPA 2.1, 2026).

Shapes: mB masks, V visible and Q predicted tokens, E = V echoed ones, n axes of the grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.positions import coordinates
from mmm.core.tokens import Grid, take


def echo_visible(mask: Mask, grid: Grid, weight: float, *, by_distance: bool) -> Mask:
    """Appends all visible tokens to the predicted tokens of a mask.

    The loss, a plain mean over all predicted tokens, is then mean(hidden) + weight * mean(visible * share). The share is 1 or, by
    distance, 1 / sqrt(d), where d is the Euclidean distance in tokens to the nearest predicted hidden token.

    Args:
        mask: without weights.
        grid: of its tokens.
        weight: of the mean over visible tokens.
        by_distance: see above.
    """
    hidden, shown = mask.predict.shape[1], mask.visible.shape[1]
    share = 1 / nearest_distance(mask.visible, mask.predict, grid).sqrt() if by_distance else torch.ones_like(mask.visible).float()
    weights = torch.cat([torch.ones_like(mask.predict).float() / hidden, share * (weight / shown)], dim=1) * (hidden + shown)
    return replace(mask, predict=torch.cat([mask.predict, mask.visible], dim=1), weight=weights, echo=shown)


def nearest_distance(tokens: Tensor, others: Tensor, grid: Grid) -> Tensor:
    """The Euclidean distance of each token to the nearest of the others of its row, in tokens, (mB, V), (mB, Q) -> fp32 (mB, V)."""
    places = coordinates(grid).to(tokens.device, torch.float32, non_blocking=True)[None]  # (1, N, n)
    one, other = (take(places.expand(len(tokens), -1, -1), index) for index in (tokens, others))  # (mB, V, n), (mB, Q, n)
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").amin(2)
