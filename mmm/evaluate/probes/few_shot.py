"""An attentive probe trained on few labels: a learned query attends to all tokens of a frozen encoder.

Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", 2024, section 4. The encoder runs
once, and its tokens stay in memory. Several learning rates are tried at once. The rate with the best accuracy on held-back labels
is then used to train on all labels.

Shapes: n labelled samples, m test samples, R prefix tokens, N tokens of the grid, D the encoder's width, S learning rates, K
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mmm.classifier import HeadConfig
from mmm.core.checks import AboveZero, CheckedConfig, Limit, Positive
from mmm.core.rng import integers, sample_keys, stream
from mmm.core.types import Shape
from mmm.evaluate.probes.heads import Probes, make_probe_optimizer, probes_loss
from mmm.pools import AttentivePool
from mmm.train.config import TrainConfig
from mmm.train.schedule import learning_rate, set_learning_rate

AtLeastTwo = Annotated[int, Limit("of at least 2, because some labels choose the learning rate", lambda value: value >= 2)]
BATCHES = 103  # number of a stream of random numbers for this file
WARMUP = 0.1  # share of the updates over which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(CheckedConfig):
    """The labels and the training of few-shot probes."""

    labels_per_class: AtLeastTwo = 25
    """Labels per class, chosen by key. A fifth of them first chooses the learning rate, and is then used for training too."""

    heads: Positive | None = None
    """Attention heads of the probe. None: the encoder's width divided by 64."""

    rates: tuple[AboveZero, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates that are tried for each encoder."""

    steps: Positive = 300
    """Number of updates of a probe."""

    batch_size: Positive = 64
    """Labelled samples per update."""

    label_seed: int = 0
    """Random seed for the choice of labels, the batches and the initial weights of the probes."""

    flag = "evaluate.few_shot"

    def validate(self) -> None:
        if not self.rates:
            raise ValueError("evaluate.few_shot.rates is empty; give one learning rate, or several")


def probe_few_shot(
    train: tuple[Tensor, Tensor], chooses: Tensor, test: tuple[Tensor, Tensor], shape: Shape, classes: int, config: FewShotConfig
) -> dict[str, Any]:
    """Chooses a learning rate, trains with it on all labels, and scores the test samples.

    Args:
        train: tokens (n, R + N, D) and labels int64 (n,), on the device of the computation.
        chooses: True for the labels that are first held back to choose the learning rate, bool (n,).
        test: tokens (m, R + N, D) and labels (m,) to score.
        shape: shape of the encoder.
        classes: K.

    Returns:
        `top1` on the test samples; the chosen `rate`; `held_back`, the accuracy of each rate on the held-back labels.
    """
    tokens, labels = train
    centre, spread = tokens.mean((0, 1)), tokens.std((0, 1)).clamp(min=1e-6)  # (D,) each, as in batch norm
    tokens = (tokens - centre) / spread
    tried = _train(tokens[~chooses], labels[~chooses], config.rates, shape, classes, config)
    right = _accuracies(tried, tokens[chooses], labels[chooses])
    rate = config.rates[max(range(len(right)), key=right.__getitem__)]  # the first of equally good rates
    final = _train(tokens, labels, (rate,), shape, classes, config)
    top1 = _accuracies(final, (test[0] - centre) / spread, test[1])[0]
    return {"top1": top1, "rate": rate, "held_back": dict(zip(map(str, config.rates), right, strict=True))}


def _train(tokens: Tensor, labels: Tensor, rates: Sequence[float], shape: Shape, classes: int, config: FewShotConfig) -> Probes:
    """Trains a probe for each learning rate, all on the same batches: tokens (n, R + N, D), labels int64 (n,)."""
    pool, seed = AttentivePool.Config(heads=config.heads), config.label_seed
    probes = Probes(len(rates), pool, HeadConfig(), encoder=shape, classes=classes, seed=seed).to(tokens.device)
    schedule = TrainConfig(steps=config.steps, batch_size=config.batch_size, learning_rate=1.0)
    optimizer = make_probe_optimizer(probes, rates, schedule, "adamw", momentum=0.0)
    draws = integers(stream(sample_keys(seed, 0, torch.arange(config.steps)), BATCHES), len(labels), config.batch_size)
    for step, rows in enumerate(draws.to(tokens.device)):
        set_learning_rate(optimizer, learning_rate(step, config.steps, 1.0, WARMUP * config.steps, 0.0))
        probes_loss(probes, (tokens[rows], labels[rows]), step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return probes


@torch.no_grad()
def _accuracies(probes: Probes, tokens: Tensor, labels: Tensor) -> list[float]:
    """Returns the accuracy of each probe."""
    logits = torch.cat([probes(part) for part in tokens.split(256)], dim=1)  # (S, m, K)
    shares: list[float] = (logits.argmax(2) == labels).cpu().double().mean(1).tolist()
    return shares
