"""The interface of pools."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from mmm.core.registry import PartConfig, Registry

pools: Registry[Pool] = Registry("pool")


class Pool(nn.Module):
    """Combines the tokens of a sample into one vector. It is built with the shape of the `encoder`.

    Attributes:
        config: options of the pool.
        width: width of the pooled vector, D'.
    """

    config: PartConfig
    width: int

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Pools `Features.last`, with the R prefix tokens first, (B, R + M, D) -> (B, D')."""
