"""Clusters of directions: k-means on the unit sphere (Dhillon and Modha, "Concept decompositions", Machine Learning 2001).

Shapes: n points of D values, K centres.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.rng import sample_keys, scores

SCORES = 2**26  # number of similarities that are in memory at the same time


@torch.no_grad()
def spherical_kmeans(points: Tensor, clusters: int, iterations: int, seed: int = 0) -> Tensor:
    """Returns K centres of norm 1, (K, D), of points (n, D) with any norms; n is at least K.

    The initial centres are random points. A cluster without points is moved to the point with the smallest similarity to its
    centre, the next such cluster to the point with the second smallest, and so on.
    """
    points = F.normalize(points, dim=1)
    chance = scores(sample_keys(seed, 0, 0), len(points))[0].to(points.device)
    centres = points[chance.argsort()[:clusters]].clone()
    for _ in range(iterations):
        codes, fit = nearest(points, centres)
        empty = torch.bincount(codes, minlength=clusters) == 0
        sums = torch.zeros_like(centres).index_add_(0, codes, points)
        worst = fit.argsort(stable=True)[(empty.cumsum(0) - 1).clamp(min=0)]  # the first empty cluster gets the worst point
        centres = F.normalize(torch.where(empty[:, None], points[worst], sums), dim=1)
    return centres


@torch.no_grad()
def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the centre with the smallest angle to each point, int64 (n,), and their scalar product, (n,)."""
    with torch.autocast(points.device.type, enabled=False):  # bf16 would not distinguish two similar centres
        found = [(part @ centres.T).max(1) for part in points.split(max(1, SCORES // len(centres)))]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])
