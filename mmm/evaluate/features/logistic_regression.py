"""A linear classifier from few labels on frozen features: multinomial logistic regression with a chosen L2 penalty.

The labels are drawn, and part of them held back to choose the penalty, by key; the test part is used once, to score.

Shapes: n labelled samples, m test samples, D values a feature, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.rng import sample_keys, scores, stream
from mmm.evaluate.progress import progress

LABELS = 101  # this file's stream of draws; those of `mmm.core.rng.Stream` belong to training
PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)  # from strong to weak, so that each fit starts from its stronger neighbour's
BLOCK = 2**26  # logits held at once: 256 MiB in fp32
HELD_BACK = 0.2  # fraction of the labels that choose the penalty


def few_labels(labels: Tensor, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws `each` samples of every class (all, where it has fewer), and splits them, by key.

    Args:
        labels: int64 (N,), of all training samples.
        each: labels a class.
        seed: of the draw.

    Returns:
        Positions in `labels`, sorted: those to fit on and those that choose the penalty, which are a fifth of each class's
        and none of a class with a single label.
    """
    chance = scores(stream(sample_keys(seed, 0, torch.arange(len(labels), device=labels.device)), LABELS), 1)[:, 0]
    order = chance.argsort()
    order = order[labels[order].argsort(stable=True)]  # by class, and by chance within one, (N,)
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts)[labels[order]]  # where each one's class begins
    rank = torch.arange(len(labels), device=labels.device) - first
    taken = counts.clamp(max=each)[labels[order]]
    held = (taken * HELD_BACK).round().clamp(min=1).where(taken > 1, 0)
    fit, choose = order[(rank >= held) & (rank < taken)], order[rank < held]
    return fit.sort().values, choose.sort().values


class Logistic:
    """Multinomial logistic regression: the mean cross-entropy plus `penalty` / 2 times the squared weights.

    The bias is free, as in scikit-learn, whose C is 1 / (penalty n). Deterministic: full batches, a convex problem.
    """

    def __init__(self, features: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.weight = torch.zeros(features, classes, dtype=torch.float32, device=device, requires_grad=True)
        self.bias = torch.zeros(classes, dtype=torch.float32, device=device, requires_grad=True)

    def fit(self, x: Tensor, labels: Tensor, penalty: float, *, iterations: int = 100, tolerance: float = 1e-5) -> Logistic:
        """Goes on from the present weights to the optimum for x (n, D) and labels int64 (n,)."""
        search = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=iterations,
            tolerance_grad=tolerance,
            tolerance_change=0.01 * tolerance,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        rows = max(1, BLOCK // len(self.bias))

        def objective() -> Tensor:
            search.zero_grad()
            loss = penalty / 2 * self.weight.square().sum()
            loss.backward()
            for some, theirs in zip(x.split(rows), labels.split(rows), strict=True):
                part = F.cross_entropy(self(some), theirs, reduction="sum") / len(x)
                part.backward()
                loss = loss.detach() + part.detach()
            return loss

        with torch.enable_grad():
            search.step(objective)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, (m, D) -> (m, C)."""
        return x @ self.weight + self.bias

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """The share of x (m, D) whose highest logit is their label's."""
        return (self(x).argmax(1) == labels).cpu().double().mean().item()


def few_label_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, each: int = 200, seed: int = 0
) -> dict[str, float]:
    """Trains on `each` labels a class and scores the test part.

    Args:
        train: features (N, D) of which few are used, on the device that computes.
        train_labels: int64 (N,).
        test: features (m, D).
        test_labels: int64 (m,).
        each: labels a class.
        seed: of the draw of labels.

    Returns:
        `top1`, the test accuracy in [0, 1]; `labels`, how many were used in all; `penalty`, the one that was chosen.
    """
    fit, choose = few_labels(train_labels, each, seed)
    used = torch.cat([fit, choose]).sort().values
    classes = int(torch.cat([train_labels[used], test_labels]).max()) + 1
    penalty = _best_penalty(train, train_labels, fit, choose, classes)
    centre, spread = statistics(train[used])
    model = Logistic(train.shape[1], classes, train.device)
    model.fit((train[used] - centre) / spread, train_labels[used], penalty)
    top1 = model.accuracy((test - centre) / spread, test_labels)
    return {"top1": top1, "labels": len(used), "penalty": penalty}


def _best_penalty(train: Tensor, labels: Tensor, fit: Tensor, choose: Tensor, classes: int) -> float:
    """The penalty with the highest accuracy on the held-back labels, the stronger of equals; 0.01 where none were held back."""
    if not len(choose):
        return 0.01
    centre, spread = statistics(train[fit])
    inner, outer = ((train[part] - centre) / spread for part in (fit, choose))
    model, found = Logistic(train.shape[1], classes, train.device), []
    for penalty in progress(PENALTIES, len(PENALTIES), "penalties of the linear classifier"):
        found.append(model.fit(inner, labels[fit], penalty, iterations=30, tolerance=1e-4).accuracy(outer, labels[choose]))
    return PENALTIES[found.index(max(found))]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each value, (D,) each; a value that never changes has 1."""
    spread, centre = torch.std_mean(x.cpu().double(), dim=0, correction=0)  # on the CPU: not every device has fp64
    return centre.to(x), spread.where(spread > 1e-6 * (1 + centre.abs()), 1.0).to(x)
