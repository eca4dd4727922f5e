"""Multinomial logistic regression on frozen features with few labels. A part of the labels chooses the L2 penalty.

The labels that are used, and those that choose the penalty, are drawn by key. The test samples are scored once.

Shapes: n labelled samples, m test samples, D values a feature, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.rng import sample_keys, scores, stream
from mmm.evaluate.progress import progress

LABELS = 101  # number of a stream of random numbers for this file; those of `mmm.core.rng.Stream` are for training
PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)  # from strong to weak, because each fit starts from the weights of the fit before
BLOCK = 2**26  # number of logits in memory at once: 256 MiB in fp32
HELD_BACK = 0.2  # fraction of the labels that choose the penalty


def few_labels(labels: Tensor, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws `each` samples of every class by key (all samples of a smaller class), and splits them.

    Args:
        labels: labels of all training samples, int64 (N,).
        each: labels per class.
        seed: random seed of the draw.

    Returns:
        Two sorted lists of positions in `labels`: the samples to fit, and the samples that choose the penalty, a fifth of each
        class with more than one label.
    """
    chance = scores(stream(sample_keys(seed, 0, torch.arange(len(labels), device=labels.device)), LABELS), 1)[:, 0]
    order = chance.argsort()
    order = order[labels[order].argsort(stable=True)]  # sorted by class, in random order within a class, (N,)
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts)[labels[order]]  # start of the class of each sample
    rank = torch.arange(len(labels), device=labels.device) - first
    taken = counts.clamp(max=each)[labels[order]]
    held = (taken * HELD_BACK).round().clamp(min=1).where(taken > 1, 0)
    fit, choose = order[(rank >= held) & (rank < taken)], order[rank < held]
    return fit.sort().values, choose.sort().values


class Logistic:
    """Multinomial logistic regression: the mean cross-entropy plus `penalty` / 2 times the squared weights.

    The bias has no penalty, as in scikit-learn, whose C is 1 / (penalty n). The result is deterministic: full batches and a convex
    problem.
    """

    def __init__(self, features: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.weight = torch.zeros(features, classes, dtype=torch.float32, device=device, requires_grad=True)
        self.bias = torch.zeros(classes, dtype=torch.float32, device=device, requires_grad=True)

    def fit(self, x: Tensor, labels: Tensor, penalty: float, *, iterations: int = 100, tolerance: float = 1e-5) -> Logistic:
        """Optimises the weights for x (n, D) and labels int64 (n,), starting from their present values."""
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
        """Returns the logits, (m, D) -> (m, C)."""
        return x @ self.weight + self.bias


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Returns the share of samples (m, C) whose highest logit is that of their label."""
    return (logits.argmax(1) == labels).cpu().double().mean().item()


def few_label_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, each: int = 200, seed: int = 0
) -> dict[str, float]:
    """Trains on `each` labels per class and scores the test samples.

    Args:
        train: features (N, D), on the device of the computation. Few of them are used.
        train_labels: int64 (N,).
        test: features (m, D).
        test_labels: int64 (m,).
        each: labels per class.
        seed: random seed of the draw of labels.

    Returns:
        `top1`, the test accuracy in [0, 1]; `labels`, the number of labels that were used; `penalty`, the chosen penalty, or 0.01
        if no label could choose it.
    """
    fit, choose = few_labels(train_labels, each, seed)
    used = torch.cat([fit, choose]).sort().values
    classes = int(torch.cat([train_labels[used], test_labels]).max()) + 1
    penalty = 0.01
    if len(choose):
        found = try_penalties(train, train_labels, fit, choose, PENALTIES, classes, iterations=30, tolerance=1e-4)
        penalty = PENALTIES[found.index(max(found))]  # the strongest of equally good penalties
    logits = predict(train[used], train_labels[used], test, penalty, classes)
    return {"top1": accuracy(logits, test_labels), "labels": len(used), "penalty": penalty}


def predict(
    x: Tensor, labels: Tensor, test: Tensor, penalty: float, classes: int, *, iterations: int = 100, tolerance: float = 1e-5
) -> Tensor:
    """Fits samples (n, D) with one penalty, and returns the logits of test samples, (m, D) -> (m, C); both are standardised."""
    fitted, scored = standardise(x, test)
    model = Logistic(x.shape[1], classes, x.device).fit(fitted, labels, penalty, iterations=iterations, tolerance=tolerance)
    with torch.no_grad():
        return model(scored)


def try_penalties(
    x: Tensor,
    labels: Tensor,
    fit: Tensor,
    choose: Tensor,
    penalties: Sequence[float],
    classes: int,
    *,
    iterations: int,
    tolerance: float,
) -> list[float]:
    """Fits some samples with each penalty, and returns the accuracies on other samples.

    Args:
        x: features (n, D).
        labels: int64 (n,).
        fit, choose: positions of the samples to fit and to score.
        penalties: from strong to weak, because each fit starts from the weights of the fit before.
    """
    inner, outer = standardise(x[fit], x[choose])
    model = Logistic(x.shape[1], classes, x.device)
    return [
        accuracy(model.fit(inner, labels[fit], penalty, iterations=iterations, tolerance=tolerance)(outer), labels[choose])
        for penalty in progress(penalties, len(penalties), "penalties of the linear classifier")
    ]


def standardise(fitted: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Standardises both tables by the mean and standard deviation of the fitted samples, (n, D) and (m, D).

    A constant value is only centred.
    """
    spread, centre = torch.std_mean(fitted.cpu().double(), dim=0, correction=0)  # on the CPU: not every device has fp64
    spread = spread.where(spread > 1e-6 * (1 + centre.abs()), 1.0)
    return (fitted - centre.to(fitted)) / spread.to(fitted), (scored - centre.to(fitted)) / spread.to(fitted)
