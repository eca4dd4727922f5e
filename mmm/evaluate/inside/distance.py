"""Distances over which tokens attend, and the number of tokens that they read.

Shapes: B samples, h heads, Q queries, K keys, a axes of the grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RINGS = (1.0, 2.0, 4.0, 8.0, math.inf)
"""Upper ends of the rings of distance, in tokens: the token itself and its neighbours first."""


def token_places(grid: tuple[int, ...], token: tuple[int, ...]) -> Tensor:
    """Returns the position of each token's centre, in pixels (and frames), fp32 (N, a), in the grid's order.

    Args:
        grid: number of tokens along each axis.
        token: size of a token along each axis, in pixels (and frames).
    """
    axes = [torch.arange(count, dtype=torch.float32) * size for count, size in zip(grid, token, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def attention_distance(weights: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Returns the mean distance over which each head attends (Dosovitskiy et al., ICLR 2021, figure 11).

    Attention to tokens without a position (class token, registers) is left out, and the rest is divided by its sum. Common code
    omits the division, so that heads that attend to the class token look local.

    Args:
        weights: (B, h, Q, K) over the keys that have a position.
        queries: positions of the queries, (B or 1, Q, a).
        keys: positions of the keys, (B or 1, K, a).

    Returns:
        fp32 (h,), in the unit of the positions.
    """
    away = torch.cdist(queries, keys)[:, None]  # (B or 1, 1, Q, K)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights * away).sum(-1).mean((0, 2))


def even_distance(queries: Tensor, keys: Tensor) -> float:
    """Returns the distance that evenly spread attention would have: the mean over all pairs."""
    return torch.cdist(queries, keys).mean().item()


def ring_shares(weights: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the share of each head's attention by distance ring, and the share that even attention would have.

    Args:
        weights: (B, h, Q, K).
        queries: positions in tokens, (B or 1, Q, a).
        keys: positions in tokens, (B or 1, K, a).

    Returns:
        fp32 (h, len(RINGS)) and (len(RINGS),), rows of sum 1.
    """
    away = torch.cdist(queries, keys)
    ring = torch.bucketize(away, torch.tensor(RINGS[:-1], device=away.device) + 1e-4)  # (B or 1, Q, K)
    inside = torch.nn.functional.one_hot(ring, len(RINGS)).to(weights.dtype)  # (B or 1, Q, K, rings)
    weights = weights / weights.sum(-1, keepdim=True)
    shares = torch.einsum("bhqk,bqkr->hr", weights, inside.expand(len(weights), -1, -1, -1)) / weights[:, 0, :, 0].numel()
    return shares, inside.mean((0, 1, 2))


def tokens_read(weights: Tensor) -> Tensor:
    """Returns exp(entropy) of each head's attention, the effective number of keys that it reads, fp32 (h,).

    Args:
        weights: (B, h, Q, K), rows of sum 1.
    """
    return torch.special.entr(weights).sum(-1).exp().mean((0, 2))


def rollout(weights: list[Tensor]) -> Tensor:
    """Returns attention rollout (Abnar and Zuidema, ACL 2020): the product over layers of (mean over heads + identity) / 2.

    It ignores values and MLPs.

    Args:
        weights: one (B, h, K, K) per layer, first layer first.

    Returns:
        (B, K, K), rows of sum 1.
    """
    result: Tensor | None = None
    for layer in weights:
        mixed = (layer.mean(1) + torch.eye(layer.shape[-1], device=layer.device, dtype=layer.dtype)) / 2
        mixed = mixed / mixed.sum(-1, keepdim=True)
        result = mixed if result is None else mixed @ result
    assert result is not None, "rollout needs at least one layer"
    return result
