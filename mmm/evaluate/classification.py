"""Accuracy of a classifier on any number of processes. Each input counts once, with the mean over its views.

Shapes: b inputs, V views of each, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.classifier import Classifier
from mmm.core.modes import evaluating
from mmm.data import Clips, Images, Problem
from mmm.data.loading.loader import prepare
from mmm.evaluate.batches import all_gather, check_read, read_batches
from mmm.evaluate.metrics import Tally, mean_of_views


@torch.no_grad()
def classify(
    model: Classifier, part: Images | Clips, *, batch_size: int, device: torch.device, problems: list[Problem]
) -> dict[str, Any]:
    """Scores a classifier. Unreadable inputs are left out and reported, never replaced.

    Args:
        model: unwrapped. Its mode is not changed.
        part: samples with labels. Its config determines which views of an input are averaged.
        batch_size: number of views per process and batch.
        problems: unreadable inputs of this process are added here.

    Returns:
        The values of `Tally.result`; `loss`, the mean cross-entropy of the mean of the views, without label smoothing; and
        `unreadable`, the number of inputs that were left out.

    Raises:
        ValueError: no input could be read.
    """
    data, views = part.config, part.config.views
    tally, losses = Tally(1, model.head.classes, device), [torch.zeros((), device=device)]  # a sum for each batch
    with evaluating(model):
        for batch in read_batches(part, "scores", problems, batch_size=batch_size):
            batch = batch.to(device)
            assert batch.labels is not None
            labels, logits = batch.labels[::views], model(prepare(batch, data, train=False))  # (b,), (b V, K)
            tally.add(mean_of_views(logits, views)[None], labels)
            losses.append(F.nll_loss(log_mean_of_views(logits, views), labels, reduction="sum"))
    check_read(len(losses) > 1, part, problems)
    loss = math.fsum(value for own in all_gather(torch.stack(losses).tolist()) for value in own)
    result = tally.gather().result(0)
    return result | {"loss": loss / result["samples"], "unreadable": len(part) - result["samples"]}


def log_mean_of_views(logits: Tensor, views: int) -> Tensor:
    """Computes the logarithm of `mean_of_views`, also for probabilities that are too small for fp32. (b V, K) -> fp32 (b, K)."""
    shares = logits.float().log_softmax(-1).unflatten(0, (-1, views))  # (b, V, K)
    return shares.logsumexp(1) - math.log(views)


def format_classification(found: Mapping[str, Any]) -> str:
    """Returns the scores of a fine-tuned classifier as text."""
    protocol = found["protocol"]
    views = f", {protocol['clips']} clips x {protocol['crops']} crops" if protocol["views"] > 1 else ""
    how = "trained from scratch" if protocol["model"] == "scratch" else f"fine-tuned from {protocol['model']}"
    lines = [
        f"{how}: top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}, "
        f"mean over classes {found['mean_per_class']:.2%}, loss {found['loss']:.4f}",
        f"  of {found['samples']:,} test samples ({protocol['test']['where']}{views}), weights of step {found['step']:,}",
    ]
    if found["unreadable"]:
        lines.append(f"  {found['unreadable']} test inputs could not be read and are not counted")
    return "\n".join(lines)
