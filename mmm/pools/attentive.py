"""Cross-attention pooling: a learned query attends to all tokens (Bardes et al., "Revisiting Feature Prediction for Learning Visual
Representations from Video", 2024, V-JEPA's probe; Chen et al., "Context Autoencoder", IJCV 2023, section 3, its attentive probe).

Shapes: B samples, R prefix tokens, M tokens of the grid, D width, Q queries, h heads, c values per head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import AboveZero, Positive
from mmm.core.registry import PartConfig
from mmm.core.types import Shape
from mmm.layers.transformer import MLP
from mmm.pools.base import Pool, pools

HEAD = 64  # default number of values per head: that of every published vision transformer except the largest


@pools.register("attentive")
class AttentivePool(Pool):
    """query + attention(query, norm tokens), then + mlp(norm .); prefix tokens are treated like all others."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        queries: Positive = 1
        """Number of learned queries; their outputs are concatenated, so that the width is this number times the encoder's."""

        heads: Positive | None = None
        """Number of attention heads. None: one per 64 values of the width."""

        mlp_ratio: AboveZero | None = 4.0
        """Ratio of the hidden width of the MLP after the attention to the width. None: no MLP, as in CAE's probe."""

    config: Config

    def __init__(self, config: Config, *, encoder: Shape) -> None:
        """Builds the pool for an encoder of this shape.

        Raises:
            ValueError: the encoder's width is not a multiple of the heads.
        """
        super().__init__()
        width, heads = encoder.width, config.heads or max(1, encoder.width // HEAD)
        if width % heads:
            raise ValueError(f"pool.heads {heads} do not divide the encoder's width {width}; choose a divisor")
        self.config, self.width, self.num_heads = config, width * config.queries, heads
        self.query = nn.Parameter(torch.empty(1, config.queries, width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm2 = None if config.mlp_ratio is None else nn.LayerNorm(width, eps=1e-6)
        self.mlp = None if config.mlp_ratio is None else MLP(width, round(width * config.mlp_ratio))
        self._initialise()

    def _initialise(self) -> None:
        """Initialises as V-JEPA: normal with a standard deviation of 0.02, truncated at 2; biases 0."""
        nn.init.trunc_normal_(self.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pools tokens, (B, R + M, D) -> (B, Q D)."""
        query = self.query.expand(tokens.shape[0], -1, -1)
        q = rearrange(self.q(query), "b q (h c) -> b h q c", h=self.num_heads)
        k, v = rearrange(self.kv(self.norm1(tokens)), "b m (two h c) -> two b h m c", two=2, h=self.num_heads)
        pooled = query + rearrange(F.scaled_dot_product_attention(q, k, v), "b h q c -> b q (h c)")  # (B, Q, D)
        if self.mlp is not None and self.norm2 is not None:
            pooled = pooled + self.mlp(self.norm2(pooled))
        return pooled.flatten(1)
