"""The transformer blocks that encoders and decoders share, under timm's names, with MAE's initialisation.

Shapes: B samples, M tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.layers.cpu_bf16 import LayerNorm, Linear, attend, linear

QKVBias = Literal["all", "qv", "none"]
EmbedInit = Literal["xavier", "torch"]


class QueryValueLinear(Linear):
    """Queries, keys and values of (B, M, D) as (B, M, 3D), with biases of queries and values alone (BEiT, VideoMAE).

    A key's bias adds the same to all of a query's scores, and softmax takes it away again.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, 3D)."""
        return linear(x, self.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other."""

    def __init__(self, width: int, heads: int, qkv_bias: QKVBias = "all") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv = Linear(width, 3 * width, bias=qkv_bias == "all")
        self.proj = Linear(width, width)
        if qkv_bias == "qv":
            self.qkv = QueryValueLinear(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, M, 3D) -> (B, M, D) each
        return self.proj(attend(q, k, v, self.num_heads))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, epsilon: float, drop_path: float, qkv_bias: QKVBias) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=epsilon)
        self.attn = SelfAttention(width, heads, qkv_bias)
        self.norm2 = LayerNorm(width, eps=epsilon)
        self.mlp = MLP(width, round(width * mlp_ratio))
        from timm.layers import DropPath  # here: timm takes longer to import than torch

        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def make_blocks(
    width: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    epsilon: float = 1e-6,
    drop_path: float = 0.0,
    qkv_bias: QKVBias = "all",
) -> nn.ModuleList:
    """Pre-norm blocks x + attention(norm x), x + mlp(norm x) on (B, M, D); drop path rises linearly to its full rate."""
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        Block(width, heads, mlp_ratio=mlp_ratio, epsilon=epsilon, drop_path=rate, qkv_bias=qkv_bias) for rate in rates
    )


def initialise(module: nn.Module) -> None:
    """MAE's initialisation (models_mae.py), for `Module.apply`.

    Linear weights are Xavier-uniform, q, k and v as one matrix; biases 0; norms 1 and 0. Convolutions (the patch embedding's
    holder) are Xavier-uniform as the matrix they stand for, and keep torch's own bias, as there.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
