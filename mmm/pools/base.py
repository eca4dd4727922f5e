"""The interface of a pool."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from mmm.core.registry import PartConfig, Registry

pools: Registry[Pool] = Registry("pool")


class Pool(nn.Module):
    """Turns a sample's tokens into one vector. Built with the `encoder`'s shape.

    Attributes:
        config: the user's choices.
        width: of what it gives, D'.
    """

    config: PartConfig
    width: int

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """(B, R + M, D), `Features.last`, the R prefix tokens first -> (B, D')."""
