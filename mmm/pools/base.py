"""The interface of pools."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from mmm.core.registry import PartConfig, Registry

pools: Registry[Pool] = Registry("pool")


class Pool(nn.Module):
    """Combines the tokens of a sample into one vector. It is built with the shape of the `encoder`.

    Attributes:
        config: the user's choices.
        width: D', of the pooled vector.
    """

    config: PartConfig
    width: int

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """(B, R + M, D), `Features.last`, the R prefix tokens first -> (B, D')."""
