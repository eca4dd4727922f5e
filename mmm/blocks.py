"""The transformer blocks that encoders and decoders share: timm's, with MAE's initialisation."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

QKVBias = Literal["all", "qv", "none"]
EmbedInit = Literal["xavier", "torch"]


class QueryValueLinear(nn.Linear):
    """Queries, keys and values of (B, M, D) as (B, M, 3D), with biases of queries and values alone (BEiT, VideoMAE).

    A key's bias adds the same to all of a query's scores, and softmax takes it away again.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, 3D)."""
        return F.linear(x, self.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))


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
    norm: Any = partial(nn.LayerNorm, eps=epsilon)
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    biased = qkv_bias == "all"
    blocks = [Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=biased, norm_layer=norm, drop_path=rate) for rate in rates]
    for block in blocks if qkv_bias == "qv" else ():
        block.attn.qkv = QueryValueLinear(width)
    return nn.ModuleList(blocks)


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
