"""Top-1, top-5 and per-class accuracy of several classifiers on the same samples, on any number of processes.

Shapes: S classifiers, b samples, V views of each, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from mmm.evaluate.batches import rank_and_world

TOP = 5


def mean_of_views(logits: Tensor, views: int) -> Tensor:
    """Returns the mean of the softmax over the views of each sample, as in published results on videos.

    Args:
        logits: (..., b V, K), with the views of a sample next to each other.
        views: V.

    Returns:
        float32 (..., b, K).
    """
    return logits.float().softmax(-1).unflatten(-2, (-1, views)).mean(-2)


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts the classes that are ranked above the right one. The lower of two classes with equal scores ranks higher.

    Args:
        scores: (..., b, K). If a score of a sample is NaN, its class counts as ranked last.
        labels: int64 (b,).

    Returns:
        int64 (..., b), 0 where the right class is first.
    """
    classes = scores.shape[-1]
    own = scores.gather(-1, labels[:, None].expand(*scores.shape[:-1], 1))  # (..., b, 1)
    earlier = torch.arange(classes, device=scores.device) < labels[:, None]  # (b, K)
    ahead = ((scores > own) | ((scores == own) & earlier)).sum(-1)
    return ahead.where(~scores.isnan().any(-1), classes)


class Tally:
    """Counts the samples of each class, and the samples whose class is ranked first or among the first five.

    Attributes:
        seen: int64 (K,).
        first, among: int64 (S, K).
    """

    def __init__(self, classifiers: int, classes: int, device: torch.device | str = "cpu") -> None:
        """Starts with counts of zero."""
        self.counts = torch.zeros(1 + 2 * classifiers, classes, dtype=torch.int64, device=device)
        (self.seen,), self.first, self.among = self.counts.split([1, classifiers, classifiers])  # views

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Adds samples: scores (S, b, K) and labels int64 (b,)."""
        ahead = ranks(scores, labels)  # (S, b)
        self.seen += labels.bincount(minlength=len(self.seen))
        for count, limit in ((self.first, 1), (self.among, TOP)):
            count.index_add_(1, labels, (ahead < limit).long())

    def gather(self) -> Tally:
        """Sums the counts over all processes, and returns the tally."""
        if rank_and_world()[1] > 1:
            distributed.all_reduce(self.counts)
        return self

    def top1(self) -> list[float]:
        """Returns the top-1 accuracy of each classifier, in [0, 1]."""
        return (self.first.sum(1).cpu().double() / self.seen.sum().cpu()).tolist()

    def result(self, classifier: int) -> dict[str, Any]:
        """Returns the accuracies of one classifier, in [0, 1]: `top1`, `top5`, `per_class` (None for a class without samples) and
        `mean_per_class`; and `samples`, the number of samples."""
        first, among, seen = (count.cpu().double() for count in (self.first[classifier], self.among[classifier], self.seen))
        shares = (first / seen)[seen > 0]
        return {
            "top1": (first.sum() / seen.sum()).item(),
            "top5": (among.sum() / seen.sum()).item(),
            "mean_per_class": shares.mean().item(),
            "samples": int(seen.sum()),
            "per_class": [right / all_ if all_ else None for right, all_ in zip(first.tolist(), seen.tolist(), strict=True)],
        }
