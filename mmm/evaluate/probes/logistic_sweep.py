"""The exact linear probe: logistic regression on features, to convergence, for each of several L2 penalties.

The problem is convex and has one solution, and there is no schedule and no augmentation. Only the samples that choose the penalty
are drawn at random.

Shapes: n training samples, m test samples, D values a feature, K classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmm.core.checks import AboveZero, CheckedConfig, Positive
from mmm.core.registry import PartConfig
from mmm.evaluate.features.logistic_regression import few_labels, predict, try_penalties
from mmm.evaluate.features.table import FeatureTable, extract_features
from mmm.evaluate.metrics import Tally
from mmm.evaluate.probes.setup import ProbeSetup
from mmm.pools import pools

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CheckedConfig):
    """The penalties that are tried, and the stopping conditions of a fit."""

    penalties: tuple[AboveZero, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
    """Penalties to try: factors of half the squared weights, which are added to the mean cross-entropy. A fifth of the training
    samples of each class is used to choose one."""
    iterations: Positive = 200
    """Largest number of iterations of L-BFGS."""
    tolerance: AboveZero = 1e-5
    """A fit stops when the largest entry of the gradient is below this value."""

    flag = "exact"

    def validate(self) -> None:
        if not self.penalties:
            raise ValueError("exact.penalties is empty; give one number above 0, or several")


def sweep(setup: ProbeSetup, pool: PartConfig, config: SweepConfig, *, batch_size: int, seed: int) -> dict[str, Any]:
    """Fits the features of all samples outside the test split. The feature of a video is the mean over its views.

    Args:
        pool: a pool without weights.
        batch_size: number of samples that the encoder gets at once.
        seed: random seed for drawing the samples that choose the penalty.

    Returns:
        The result of `fit_penalties`, and `unreadable`, the number of unreadable inputs.

    Raises:
        ValueError: the pool has weights.
    """
    pooling = pools.build(pool, encoder=setup.model.encoder.shape)
    if any(True for _ in pooling.parameters()):
        raise ValueError(f"the exact probe needs a pool without weights, and pool {pool.name} is trained; use mean or class")
    device = setup.accelerator.device

    def extract(x: Tensor) -> Tensor:
        return pooling(setup.tokens(x).float())

    splits = setup.splits
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    tables = [extract_features(part, {"": extract}, device=device, batch_size=batch_size)[""] for part in parts]
    fitted, test = _joined(tables[:-1], device), _joined(tables[-1:], device)
    found = fit_penalties(*fitted, *test, splits.classes, config, seed)
    return found | {"unreadable": sum(len(table.problems) for table in tables)}


def _joined(tables: list[FeatureTable], device: torch.device) -> tuple[Tensor, Tensor]:
    values, labels = zip(*(table.labelled(device) for table in tables), strict=True)
    return torch.cat(values), torch.cat(labels)


def fit_penalties(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int, config: SweepConfig, seed: int = 0
) -> dict[str, Any]:
    """Chooses a penalty with a fifth of the training samples, fits all training samples with it, and scores the test samples once.

    Features are standardised by the fitted samples.

    Args:
        train: (n, D), on the device of the computation.
        train_labels: int64 (n,).
        test: (m, D).
        test_labels: int64 (m,).

    Returns:
        `tried`, the `top1` of each penalty on the held-back samples (`held_back`); `chosen`, the position of the best penalty, and
        `penalty`, its value (the stronger of equally good ones); and the accuracies on the test samples, see `Tally.result`.
    """
    fit, choose = few_labels(train_labels, each=len(train_labels), seed=seed)
    penalties = sorted(config.penalties, reverse=True)  # from strong to weak: each fit starts from the weights of the fit before
    tried: list[dict[str, Any]] = []
    if len(choose):
        accuracies = try_penalties(
            train, train_labels, fit, choose, penalties, classes, iterations=config.iterations, tolerance=config.tolerance
        )
        tried = [{"penalty": penalty, "held_back": {"top1": top1}} for penalty, top1 in zip(penalties, accuracies, strict=True)]
    elif len(penalties) > 1:
        raise ValueError("no class has two training samples, so none can choose among exact.penalties; give one penalty")
    best = max(range(len(penalties)), key=lambda place: tried[place]["held_back"]["top1"] if tried else 0.0)
    if len(penalties) > 1 and best in (0, len(penalties) - 1):
        logger.warning(
            "the best penalty, %g, is the first or the last of those that were tried; extend exact.penalties beyond it",
            penalties[best],
        )
    stop: Any = {"iterations": config.iterations, "tolerance": config.tolerance}
    tally = Tally(1, classes, test.device)
    tally.add(predict(train, train_labels, test, penalties[best], classes, **stop)[None], test_labels)
    return {"tried": tried, "chosen": best, "penalty": penalties[best]} | tally.result(0)
