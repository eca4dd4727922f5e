"""Attention of the predicted tokens of a decoder to visible and to hidden tokens.

Two measures, averaged over samples and predicted tokens, and over heads where no head is named:

- the share of each set of tokens: the attention to prefix, visible, the token itself and the other hidden tokens, which sums to 1;
- the attention to one token of a set, relative to even attention: 1 means that tokens of the set get the same attention as the
average token.

CrossMAE's argument against MAE's decoder rests on attention (Fu et al., TMLR 2025, figure 1 and table 6): 1.42 to visible tokens,
0.39 to masked ones. Those are mean weights for one key, summed over the 8 blocks and 16 heads of the decoder, with the class token
among the visible: 50 * 1.418 + 147 * 0.388 = 127.9 = 8 * 16 (the rows of table 6 sum to 16 each with 50 keys, and not with 49). In
the measures of this file, visible and class tokens get 55.4 % of the attention, each of these tokens 2.18 times as much as under
even attention, and a masked token 0.60 times as much. `crossmae` in the result is the measure of CrossMAE.

The weights are computed a second time from the input of each attention layer; the decoder itself runs unchanged.

Shapes: B samples, h heads, c values a head, Q predicted tokens, R prefix tokens, V visible, M encoded (R + V + blanks), K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.types import Features
from mmm.layers.relative_bias import RelativePlaces
from mmm.layers.transformer import CrossAttention, SelfAttention

SETS = ("prefix", "visible", "itself", "other_hidden")
READS = {"all": "encoded and predicted tokens", "encoded": "encoded tokens", "predicted": "predicted tokens"}
See = Callable[[str, nn.Module, tuple[Tensor, ...]], None]


@contextmanager
def watching(decoder: nn.Module, see: See) -> Iterator[None]:
    """Calls `see` with the name, the module and the input of each attention layer of a decoder before it runs.

    Raises:
        ValueError: the decoder has no attention layer of a supported type.
    """
    layers = {name: part for name, part in decoder.named_modules() if isinstance(part, (SelfAttention, CrossAttention))}
    if not layers:
        raise ValueError(f"a decoder of type {type(decoder).__name__} has no attention layer; give a model whose decoder has one")
    handles = [part.register_forward_pre_hook(partial(see, name)) for name, part in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(layer: nn.Module, inputs: tuple[Any, ...], queries: slice = slice(None)) -> Tensor:
    """Returns the attention weights of a layer, fp32 (B, h, queries, K), computed from its inputs.

    Args:
        layer: self-attention or cross-attention.
        inputs: as `watching` passes them on. If relative positions are among them, their bias is added to the scores.
        queries: the queries whose weights are returned; by default all.
    """
    assert isinstance(layer, (SelfAttention, CrossAttention))
    q, k, _ = (rearrange(value, "b n (h c) -> b h n c", h=layer.num_heads) for value in layer.queries_keys_values(*inputs[:2]))
    q, k = q[:, :, queries].float(), k.float()
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    for relative in inputs:
        if isinstance(relative, RelativePlaces) and isinstance(layer, SelfAttention):
            scores = scores + relative.bias(layer.relative_position_bias_table)[:, :, queries].float()
    return scores.softmax(dim=3)


@dataclass
class Layer:
    """Attention of one layer, summed over samples.

    Attributes:
        reads: `all`, `encoded` or `predicted` tokens.
        shares: share of each of `SETS` by head, summed over the samples, fp64 (h, 4).
        evenly: the shares of even attention, (4,).
        keys: K.
        heads: h.
    """

    reads: str
    shares: Tensor
    evenly: Tensor
    keys: int
    heads: int


@dataclass
class DecoderAttention:
    """Accumulates the attention of a decoder over batches.

    Attributes:
        layers: attention of each layer by name, in the order of the decoder.
        samples: number of samples.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    samples: int = 0

    @torch.no_grad()
    def add(self, decoder: nn.Module, features: Features, mask: Mask, grid: tuple[int, ...]) -> None:
        """Runs the decoder once, and adds its attention."""
        rows = len(mask.predict)

        def see(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weights = attention_weights(layer, inputs, slice(-mask.predict.shape[1], None))
            reads, counts = _sets(layer, weights, features, mask)
            shares = _shares(weights, counts) * rows
            evenly = torch.tensor(counts, dtype=torch.float64) / weights.shape[3]
            none = torch.zeros_like(shares)
            known = self.layers.setdefault(name, Layer(reads, none, evenly, weights.shape[3], weights.shape[1]))
            known.shares += shares

        with watching(decoder, see):
            decoder(features, mask, grid)
        self.samples += rows

    def result(self) -> dict[str, Any]:
        """Returns the results as plain numbers: for each layer and its heads, and the mean over the layers that read the same
        tokens."""
        layers = [
            {"layer": name, **self._numbers([layer]), "heads": (layer.shares / self.samples).tolist()}
            for name, layer in self.layers.items()
        ]
        found: dict[str, Any] = {"layers": layers, "mean": {}}
        for reads in dict.fromkeys(layer.reads for layer in self.layers.values()):
            found["mean"][reads] = self._numbers([layer for layer in self.layers.values() if layer.reads == reads])
        return found

    def _numbers(self, layers: list[Layer]) -> dict[str, Any]:
        """Returns the mean over layers that read the same tokens."""
        share = torch.stack([layer.shares.mean(0) for layer in layers]).mean(0) / self.samples
        evenly = layers[0].evenly
        one = {
            "visible": _ratio(share[1], evenly[1]),
            "hidden": _ratio(share[2:].sum(), evenly[2:].sum()),
        }
        return {
            "crossmae": self._summed(layers),
            "reads": layers[0].reads,
            "share": dict(zip(SETS, share.tolist(), strict=True)) | {"hidden": share[2:].sum().item()},
            "evenly": dict(zip(SETS, evenly.tolist(), strict=True)) | {"hidden": evenly[2:].sum().item()},
            "to_one_token": one,
        }

    def _summed(self, layers: list[Layer]) -> dict[str, float | None]:
        """Returns CrossMAE's measure: the mean attention to one key, summed over heads; prefix tokens count as visible."""
        found: dict[str, float | None] = {}
        for name, sets in (("visible", slice(0, 2)), ("masked", slice(2, 4))):
            counts = [(layer.evenly[sets].sum() * layer.keys).item() for layer in layers]
            each = [
                (layer.shares[:, sets].sum() / self.samples).item() / count
                for layer, count in zip(layers, counts, strict=True)
                if count
            ]
            found[name] = sum(each) if each else None
        return found


def _sets(layer: nn.Module, weights: Tensor, features: Features, mask: Mask) -> tuple[str, tuple[int, int, int, int]]:
    """Returns which tokens a layer reads, and the number of its keys in each of `SETS`. Keys are in this order along K, except for
    the token itself."""
    queries, keys = weights.shape[2:]
    encoded = features.prefix + features.where.shape[1]
    if isinstance(layer, CrossAttention):
        return "encoded", (features.prefix, mask.visible.shape[1], 0, keys - features.prefix - mask.visible.shape[1])
    if keys == queries:
        return "predicted", (0, 0, 1, keys - 1)
    assert keys == encoded + queries, f"{keys} keys are neither {queries} predicted tokens nor {encoded} encoded ones and them"
    return "all", (features.prefix, mask.visible.shape[1], 1, keys - features.prefix - mask.visible.shape[1] - 1)


def _shares(weights: Tensor, counts: tuple[int, int, int, int]) -> Tensor:
    """Returns the share of each set by head, averaged over samples and queries, fp64 (h, 4). Predicted tokens, if any, are the last
    keys."""
    weights = weights.cpu().double()
    each = weights.mean((0, 2))  # (h, K)
    prefix, visible, itself, _ = counts
    own = weights[..., -weights.shape[2] :].diagonal(dim1=2, dim2=3).mean((0, 2)) if itself else each.new_zeros(len(each))
    first, second, rest = (part.sum(1) for part in each.split([prefix, visible, each.shape[1] - prefix - visible], dim=1))
    return torch.stack([first, second, own, rest - own], dim=1)


def _ratio(share: Tensor, evenly: Tensor) -> float | None:
    """Returns the attention to one token of a set relative to even attention. None: the set is empty."""
    return (share / evenly).item() if evenly else None
