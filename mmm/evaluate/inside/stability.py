"""Changes of tokens by each layer, and amplification of small changes.

According to the theory of Cao, Xu and Clifton (2022), skip connections keep representations stable across layers. The measures of
this library are relative change and cosine between the input and the output of a block, and the gain of a small random change.

Shapes: B samples, M tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def layer_changes(layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the relative change and the cosine of each step from one layer to the next, averaged over tokens.

    Args:
        layers: the input of the first block, then the output of each block, (B, M, D) each.

    Returns:
        ||x' - x|| / ||x|| and cos(x, x'), fp32 (layers - 1,) each.
    """
    pairs = [(before.float(), after.float()) for before, after in pairwise(layers)]
    change = [((after - before).norm(dim=-1) / before.norm(dim=-1)).mean() for before, after in pairs]
    cosine = [F.cosine_similarity(before, after, dim=-1).mean() for before, after in pairs]
    return torch.stack(change), torch.stack(cosine)


def noise_gain(block: Callable[[Tensor], Tensor], x: Tensor, *, share: float = 0.01, seed: int = 0) -> float:
    """Returns the mean over samples of ||F(x + d) - F(x)|| / ||d||, for a random d whose norm is a share of the norm of x.

    Args:
        block: maps (B, M, D) to (B, M, D).
        x: input of the block.
        share: share of the norm of each sample's tokens.
        seed: random seed of the direction.
    """
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    noise = noise * share * _size(x) / _size(noise)
    return (_size(block(x + noise) - block(x)) / _size(noise)).mean().item()


def _size(x: Tensor) -> Tensor:
    """Returns the Frobenius norm of each sample, (B, 1, 1)."""
    return x.flatten(1).norm(dim=1)[:, None, None]
