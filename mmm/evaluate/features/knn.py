"""Weighted nearest neighbours on frozen features: a classifier without training.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4: each of the k
nearest training samples by cosine similarity s votes for its class with exp(s / 0.07).

Shapes: n training samples, m test samples, b of them in one block, D values a feature, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.evaluate.metrics import ranks
from mmm.evaluate.progress import progress

TEMPERATURE = 0.07  # of the votes; Wu et al., section 3.4
BLOCK = 2**26  # number of similarities in memory at once: 256 MiB in fp32


def neighbour_votes(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 20) -> Tensor:
    """Sums the votes of the k nearest training samples for each class.

    Args:
        train: features (n, D), fp32, on the device that computes.
        labels: int64 (n,).
        test: features (m, D).
        classes: C.
        k: neighbours that vote; all n if there are fewer.

    Returns:
        (m, C), 0 if no neighbour belongs to the class.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least one neighbour must vote")
    bank, k = F.normalize(train, dim=1), min(k, len(train))
    votes = test.new_zeros(len(test), classes)
    rows = max(1, BLOCK // len(train))
    blocks = range(0, len(test), rows)
    for first in progress(blocks, len(test), "nearest neighbours of test features", lambda first: rows):
        nearest = (F.normalize(test[first : first + rows], dim=1) @ bank.T).topk(k, dim=1)  # (b, k)
        weights = ((nearest.values - 1) / TEMPERATURE).exp()  # the common factor exp(-1 / 0.07) does not change the order
        votes[first : first + rows].scatter_add_(1, labels[nearest.indices], weights)
    return votes


def accuracy(votes: Tensor, labels: Tensor, top: int = 1) -> float:
    """Returns the share of samples whose class is among the `top` classes with most votes. A class without votes never counts as
    predicted.

    Among classes with equal votes the one with the lower number comes first, so that the result does not depend on sorting.

    Args:
        votes: (m, C).
        labels: int64 (m,).
        top: number of classes that count as predicted.
    """
    own = votes.gather(1, labels[:, None])[:, 0]  # (m,)
    return ((ranks(votes, labels) < top) & (own > 0)).cpu().double().mean().item()


def nearest_neighbours(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> dict[str, float]:
    """Returns the top-1 and top-5 accuracy, in [0, 1], of test features (m, D) with neighbours from training features (n, D)."""
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    votes = neighbour_votes(train, train_labels, test, classes, k)
    return {"top1": accuracy(votes, test_labels), "top5": accuracy(votes, test_labels, 5)}
