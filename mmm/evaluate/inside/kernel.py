"""Measures of attention as an integral kernel over tokens, and of the number of directions that features use.

"How to Understand Masked Autoencoders" (Cao, Xu and Clifton, 2022) reads attention as a learned, non-symmetric kernel. The paper
gives no procedure to measure it; each measure here states its formula.

Shapes: B samples, h heads, c values of a head, D width, N tokens, n rows of features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def asymmetry(query: Tensor, key: Tensor) -> float:
    """Returns the asymmetry of the bilinear form of one head.

    With M = Wq^T Wk it is ||M - M^T|| / (2 ||M||): 0 for a symmetric form, 1 for a skew-symmetric one, about 0.71 for random
    weights. It is computed from c x c products alone: sqrt((t1 - t2) / (2 t1)) with t1 = tr(Wq Wq^T Wk Wk^T) and
    t2 = tr((Wk Wq^T)^2).

    Args:
        query: the head's query weights, (c, D); a preceding norm's gain is multiplied into the columns.
        key: the head's key weights, (c, D).
    """
    query, key = query.detach().cpu().double(), key.detach().cpu().double()
    total = ((query @ query.T) * (key @ key.T)).sum()
    mixed = key @ query.T  # (c, c)
    swapped = (mixed * mixed.T).sum()
    return ((total - swapped) / (2 * total)).clamp(min=0).sqrt().item()


def spectrum(matrix: Tensor) -> Tensor:
    """Returns the singular values of each matrix as shares of their sum, from large to small.

    Args:
        matrix: (..., N, M).

    Returns:
        fp64 (..., min(N, M)).
    """
    values = torch.linalg.svdvals(matrix.detach().cpu().double())
    return values / values.sum(-1, keepdim=True)


def effective_rank(shares: Tensor) -> Tensor:
    """Returns exp(entropy) of a spectrum (Roy and Vetterli, 2007).

    It is N for an N x N identity and 1 for attention that is the same for every query.

    Args:
        shares: as `spectrum` returns them, (..., K).

    Returns:
        fp64 (...), between 1 and K.
    """
    return torch.special.entr(shares).sum(-1).exp()


def participation_ratio(features: Tensor) -> float:
    """Returns (sum of l)^2 / sum of l^2 over the eigenvalues l of the features' covariance: the effective number of directions.

    Args:
        features: (n, D), at least 2 rows.
    """
    x = features.detach().cpu().double()
    x = x - x.mean(0)
    gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T  # the same eigenvalues except for zeros
    return (gram.trace() ** 2 / gram.square().sum()).item()
