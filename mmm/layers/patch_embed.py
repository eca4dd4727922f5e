"""The linear embedding of tokens.

Shapes: B samples, M tokens, P values a token, C channels, s... a token's size, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Module):
    """Embeds tokens by one linear layer, whose weight is laid out as timm's convolution holds it: (D, C, s...).

    Only the tokens that are given are embedded. On all tokens it equals the strided convolution.
    """

    linear = staticmethod(F.linear)

    def __init__(self, token: tuple[int, ...], channels: int, width: int) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(token)]
        self.proj = convolution(channels, width, token, token)  # holds the weights and torch's own bias; never called

    def forward(self, patches: Tensor) -> Tensor:
        """(B, M, P) -> (B, M, D)."""
        weight = self.proj.weight.movedim(1, -1).flatten(1)  # (D, C, s...) -> (D, s... C), the order of `split`
        return self.linear(patches, weight, self.proj.bias)
