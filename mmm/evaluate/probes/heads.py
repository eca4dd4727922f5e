"""Several heads on the same frozen tokens, trained at once: each batch is encoded once for all of them.

The heads differ only in their learning rates. They share the batches, but each has its own gradient.

Shapes: B samples of a batch, R prefix tokens, N tokens of the grid, D the encoder's width, D' the pool's width, S heads, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.classifier import Head, HeadConfig
from mmm.core.registry import PartConfig
from mmm.core.types import Shape
from mmm.pools import Pool, pools
from mmm.train.config import TrainConfig
from mmm.train.optimizer import ADAMW_BETAS

Optimizer = Literal["lars", "adamw"]


def has_weights(pool: nn.Module) -> bool:
    """True if a pool is trained, so that it needs the tokens in every update."""
    return any(True for _ in pool.parameters())


class Probes(nn.Module):
    """S heads, each with its own pool if the pool has weights. They compute in fp32 for every precision of the encoder."""

    def __init__(self, count: int, pool: PartConfig, head: HeadConfig, *, encoder: Shape, classes: int, seed: int) -> None:
        """Initialises all heads with the same weights, drawn from the seed."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            made = []
            for _ in range(count):
                torch.default_generator.manual_seed(seed)
                pooling = pools.build(pool, encoder=encoder)
                made.append((pooling, Head(head, width=pooling.width, classes=classes)))
        shared: Pool = made[0][0]
        self.shared = None if has_weights(shared) else shared
        self.pools = nn.ModuleList(pooling for pooling, _ in made) if has_weights(shared) else None
        self.heads = nn.ModuleList(last for _, last in made)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Returns the features that training needs: tokens (B, R + N, D), or (B, D') pooled if the pool has no weights."""
        return tokens.float() if self.shared is None else self.shared(tokens.float())

    def forward(self, values: Tensor) -> Tensor:
        """Returns the logits (S, B, K) for values from `prepare`."""
        with torch.autocast(values.device.type, enabled=False):
            if self.pools is None:
                return torch.stack([head(values) for head in self.heads])
            return torch.stack([head(pool(values)) for pool, head in zip(self.pools, self.heads, strict=True)])

    def parts(self, number: int) -> tuple[nn.Module, nn.Module]:
        """Returns the pool and the head of one probe. Together with the encoder they form a `Classifier`."""
        pool = self.shared if self.pools is None else self.pools[number]
        assert pool is not None
        return pool, self.heads[number]


def probes_loss(probes: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
    """Returns the sum of the mean cross-entropies of the heads, (). The gradient of each head depends only on its own loss.

    Args:
        probes: `Probes`, wrapped or unwrapped.
        batch: values and labels.
    """
    values, labels = batch
    logits = probes(values)  # (S, B, K)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits))) * len(logits)


def make_probe_optimizer(
    probes: Probes, rates: Sequence[float], config: TrainConfig, kind: Optimizer, momentum: float
) -> torch.optim.Optimizer:
    """Makes one optimizer for all probes. The learning rate of each probe is a multiple of that of the schedule.

    With LARS (You et al., arXiv 1708.03888; implementation of timm), weight decay and trust ratio apply to matrices only, as in
    MAE's linear probe. The alternative is AdamW.
    """
    groups: list[dict[str, Any]] = []
    for number, rate in enumerate(rates):
        pool, head = probes.parts(number)
        weights = [weight for part in (pool, head) for weight in part.parameters()]
        matrices, vectors = ([weight for weight in weights if (weight.ndim > 1) == matrix] for matrix in (True, False))
        for group, decay, adapt in ((matrices, config.weight_decay, True), (vectors, 0.0, False)):
            extra = {"always_adapt": adapt} if kind == "lars" else {}
            groups += [{"params": group, "weight_decay": decay, "lr_scale": rate} | extra] if group else []
    if kind == "lars":
        from timm.optim.lars import Lars

        return Lars(groups, lr=config.learning_rate, momentum=momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas or ADAMW_BETAS, fused=True)
