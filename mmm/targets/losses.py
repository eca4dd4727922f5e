"""Losses of one token, and their mean.

Shapes: B rows, Q tokens, K values (or classes) a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

ValueLoss = Literal["mse", "scaled_mse", "l1", "smooth_l1", "cosine"]


def cosine(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine similarity."""
    return 1 - F.cosine_similarity(predicted, wanted, dim=-1)


def cross_entropy(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of K logits with an int64 class."""
    return F.cross_entropy(predicted.transpose(1, -1), wanted, reduction="none")


def soft_cross_entropy(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of K logits with the shares of K classes."""
    return -(wanted * predicted.log_softmax(-1)).sum(-1)


def scaled_mse(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The sum of squared differences over the root of their number (data2vec 2.0): mse times that root."""
    return (predicted - wanted).square().sum(-1) / predicted.shape[-1] ** 0.5


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda predicted, wanted: F.mse_loss(predicted, wanted, reduction="none").mean(-1),
    "l1": lambda predicted, wanted: F.l1_loss(predicted, wanted, reduction="none").mean(-1),
    "smooth_l1": lambda predicted, wanted: F.smooth_l1_loss(predicted, wanted, reduction="none").mean(-1),
    "scaled_mse": scaled_mse,
    "cosine": cosine,
    "cross_entropy": cross_entropy,
    "soft_cross_entropy": soft_cross_entropy,
}


def mean_loss(loss: str, predicted: Tensor, wanted: Tensor | tuple[Tensor, ...], weight: Tensor | None) -> Tensor:
    """The mean over tokens of a token's loss, in fp32 (or better) whatever the forward's precision.

    Args:
        loss: a name in `LOSSES`.
        predicted: (B, Q, K).
        wanted: (B, Q, K), or int64 (B, Q) for cross_entropy.
        weight: (B, Q), a factor of each token's loss, or None.

    Returns:
        (). The mean over all tokens, not over the sum of the weights, which would couple the samples of a batch.
    """
    assert isinstance(wanted, Tensor), "one loss is of one target"
    exact = predicted if predicted.dtype.itemsize >= 4 else predicted.float()
    each = LOSSES[loss](exact, wanted)  # (B, Q)
    return each.mean() if weight is None else (each * weight.to(each.dtype)).mean()
