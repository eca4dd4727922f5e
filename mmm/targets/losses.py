"""Losses per token, and their mean.

Shapes: B rows, Q tokens, K values (or classes) per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

ValueLoss = Literal["mse", "scaled_mse", "l1", "smooth_l1", "cosine"]


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes 1 - cosine similarity."""
    return 1 - F.cosine_similarity(prediction, target, dim=-1)


def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the cross-entropy of K logits and an int64 class."""
    return F.cross_entropy(prediction.transpose(1, -1), target, reduction="none")


def soft_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the cross-entropy of K logits and the shares of K classes."""
    return -(target * prediction.log_softmax(-1)).sum(-1)


def scaled_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the sum of squared differences divided by the square root of their number (data2vec 2.0)."""
    return (prediction - target).square().sum(-1) / prediction.shape[-1] ** 0.5


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda prediction, target: F.mse_loss(prediction, target, reduction="none").mean(-1),
    "l1": lambda prediction, target: F.l1_loss(prediction, target, reduction="none").mean(-1),
    "smooth_l1": lambda prediction, target: F.smooth_l1_loss(prediction, target, reduction="none").mean(-1),
    "scaled_mse": scaled_mse,
    "cosine": cosine,
    "cross_entropy": cross_entropy,
    "soft_cross_entropy": soft_cross_entropy,
}


def mean_loss(loss: str, prediction: Tensor, target: Tensor | tuple[Tensor, ...], weight: Tensor | None) -> Tensor:
    """Computes the mean loss over tokens, in fp32 or better for any precision of the forward pass.

    Args:
        loss: a name in `LOSSES`.
        prediction: (B, Q, K).
        target: (B, Q, K), or int64 (B, Q) for cross_entropy.
        weight: factor of each token's loss, (B, Q), or None.

    Returns:
        The mean, (). The sum is divided by the number of tokens; dividing by the sum of weights would couple the batch's samples.
    """
    assert isinstance(target, Tensor), "one loss is of one target"
    exact = prediction if prediction.dtype.itemsize >= 4 else prediction.float()
    each = LOSSES[loss](exact, target)  # (B, Q)
    return each.mean() if weight is None else (each * weight.to(each.dtype)).mean()
