"""Attention and features of one sample's tokens, computed once and then read token by token.

Shapes: N tokens of the grid, D width, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid
from mmm.evaluate.attention.decoder_attention import attention_weights, watching
from mmm.evaluate.features.table import inference
from mmm.evaluate.inside.maps import feature_colours
from mmm.layers.transformer import SelfAttention
from mmm.model import MaskedModel


@dataclass(frozen=True)
class Inside:
    """Features and attention of a whole sample.

    Attributes:
        tokens: features of the grid's tokens, fp32 (N, D).
        pooled: their mean, (1, D).
        grid: (H', W') or (T', H', W').
        prefix: number of prefix tokens.
        layers: the encoder's self-attention layers, each with its inputs; empty if it has none of a known kind.
    """

    tokens: Tensor
    pooled: Tensor
    grid: Grid
    prefix: int
    layers: list[tuple[SelfAttention, tuple[Any, ...]]]

    @property
    def heads(self) -> int:
        """Number of heads of a layer; 0 if there is no attention to show."""
        return self.layers[0][0].num_heads if self.layers else 0

    @torch.no_grad()
    def attention(self, block: int, head: int | None, token: int) -> Tensor:
        """Returns the attention of a token to the grid's tokens in a block, (N,), as a share of its attention to all tokens.

        Args:
            block: counted from 1.
            head: counted from 1. None: the mean over the heads.
            token: number of the token in the grid's order.

        Raises:
            ValueError: the encoder has no attention to show.
        """
        if not self.layers:
            raise ValueError("the encoder of this model has no self-attention of a known kind, so there is none to show")
        layer, inputs = self.layers[block - 1]
        row = self.prefix + token
        weights = attention_weights(layer, inputs, slice(row, row + 1))[0, :, 0, self.prefix :]  # (h, N)
        return (weights.mean(0) if head is None else weights[head - 1]).cpu()

    def similarity(self, token: int) -> Tensor:
        """Returns the cosine between the features of a token and those of each token, (N,)."""
        unit = F.normalize(self.tokens, dim=1)
        return unit @ unit[token]

    def colours(self) -> Tensor:
        """Returns the first three principal components of the tokens as red, green and blue, (N, 3)."""
        return feature_colours(self.tokens[None], centre_places=False)[0]


def look_inside(model: MaskedModel, x: Tensor) -> Inside:
    """Encodes a whole sample, normalised (1, C, s...), and keeps the inputs of its attention layers."""
    kept: list[tuple[SelfAttention, tuple[Any, ...]]] = []

    def see(_: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(layer, SelfAttention):
            kept.append((layer, inputs))

    with inference(model):
        if any(isinstance(part, SelfAttention) for part in model.encoder.modules()):
            with watching(model.encoder, see):
                features = model.encode(x)
        else:
            features = model.encode(x)
    grid, count = model.tokenizer.grid(x), features.last.shape[1]
    whole = [(layer, inputs) for layer, inputs in kept if inputs[0].shape[:2] == (1, count)]  # no attention in windows
    return Inside(features.tokens[0].float().cpu(), features.pooled().cpu(), grid, features.prefix, whole)
