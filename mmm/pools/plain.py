"""Pools without weights: the mean of the tokens, or the class token.

Shapes: B samples, R prefix tokens (class token), M tokens of the grid, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmm.core.registry import PartConfig
from mmm.core.types import Shape
from mmm.pools.base import Pool, pools


@pools.register("mean")
class MeanPool(Pool):
    """The mean of the grid's tokens, without prefix tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        pass

    config: Config

    def __init__(self, config: Config, *, encoder: Shape) -> None:
        """Builds the pool for an encoder of this shape."""
        super().__init__()
        self.config, self.width, self.prefix = config, encoder.width, encoder.prefix

    def forward(self, tokens: Tensor) -> Tensor:
        """Pools tokens, (B, R + M, D) -> (B, D)."""
        return tokens[:, self.prefix :].mean(1)


@pools.register("class")
class ClassPool(Pool):
    """The class token, or the mean of several (Pixio)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        pass

    config: Config

    def __init__(self, config: Config, *, encoder: Shape) -> None:
        """Builds the pool for an encoder of this shape.

        Raises:
            ValueError: the encoder has no class token.
        """
        super().__init__()
        if not encoder.class_tokens:
            raise ValueError("pool.name class needs a class token, and this encoder has none; use --pool.name mean")
        self.config, self.width, self.class_tokens = config, encoder.width, encoder.class_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Pools tokens, (B, R + M, D) -> (B, D)."""
        return tokens[:, : self.class_tokens].mean(1)
