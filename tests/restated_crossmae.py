"""CrossMAE implemented a second time, from published facts alone (Fu et al., TMLR 2025, and the shapes of its released files); it
shares nothing with mmm.

It uses the simple and slow computation wherever it can: a convolution over all patches and positions before the gather, fusion as a
sum over maps, one query and one head at a time in the decoder, loops over samples. Weights have the names of the released files,
and the tables of positions are among them: the released ones are computed in fp32, and so differ a little from the exact ones.

Shapes: L tokens of the grid, M tokens that were encoded (class token first), D width, p side of a patch.
"""

from __future__ import annotations

import math

import torch
from restated_mae import attention, block, norm, patches
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def table(side: int, dim: int) -> Tensor:
    """Returns the released table, fp32 (1 + L, D) of a square grid: frequencies and angles in fp32, positions not rescaled."""
    frequency = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim / 4.0))
    rows = [torch.zeros(dim)]
    for y in range(side):
        for x in range(side):
            angles = [torch.tensor(float(place)) * frequency for place in (x, y)]
            rows.append(torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())]))
    return torch.stack(rows)


def linear(x: Tensor, w: Weights, at: str) -> Tensor:
    return x @ w[at + ".weight"].T + w[at + ".bias"]


def normed(x: Tensor, w: Weights, at: str) -> Tensor:
    return norm(x, w[at + ".weight"], w[at + ".bias"], 1e-6)


def depth(w: Weights, prefix: str) -> int:
    return sum(name.startswith(prefix + ".") and name.endswith("norm1.bias") for name in w)


def encode(image: Tensor, w: Weights, keep: list[int], p: int, heads: int, use_input: bool) -> list[Tensor]:
    """Returns the maps of one image that fusion may mix, (M, D) each: the first block's input, if requested, and each output."""
    x = F.conv2d(image[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=p)[0].flatten(1).T  # (L, D)
    x = x + w["pos_embed"][0, 1:]
    x = torch.cat([w["cls_token"][0] + w["pos_embed"][0, :1], torch.stack([x[i] for i in keep])])
    maps = [x] if use_input else []
    for i in range(depth(w, "blocks")):
        x = block(x, w, f"blocks.{i}.", heads, 1e-6)
        maps.append(x)  # without a norm
    return maps


def mixture(maps: list[Tensor], w: Weights, layer: int) -> Tensor:
    """Returns the input of a decoder block; without fusion, the last map with MAE's final norm, which CrossMAE lacks."""
    if "norm.weight" in w:
        return normed(maps[-1], w, "norm")
    mixed = torch.zeros_like(maps[0])
    for i, one in enumerate(maps):
        mixed = mixed + w["wfm.linear.weight"][layer, i] * one
    return normed(mixed, w, f"dec_norms.{layer}")


def look(query: Tensor, source: Tensor, w: Weights, at: str, heads: int) -> Tensor:
    """Computes the cross-attention of one query (d,) to the source (M, D)."""
    q, kv = linear(query, w, at + ".q"), linear(source, w, at + ".kv")
    width = len(q)
    k, v, dim = kv[:, :width], kv[:, width:], width // heads
    out = []
    for head in range(heads):
        mine = slice(head * dim, (head + 1) * dim)
        out.append((k[:, mine] @ q[mine] / math.sqrt(dim)).softmax(dim=0) @ v[:, mine])
    return linear(torch.cat(out), w, at + ".proj")


def predict(maps: list[Tensor], w: Weights, expected: list[int], heads: int) -> Tensor:
    """Returns the predictions of the tokens `expected` of one image, (Q, p p C)."""
    queries = [w["mask_token"][0, 0] + w["decoder_pos_embed"][0, 1 + i] for i in expected]
    for layer in range(depth(w, "decoder_blocks")):
        at, source = f"decoder_blocks.{layer}", mixture(maps, w, layer)
        if f"{at}.norm0.weight" in w:
            together = torch.stack(queries)
            queries = list(together + attention(normed(together, w, f"{at}.norm0"), w, f"{at}.self_attn.", heads))
        for i, query in enumerate(queries):
            query = query + look(normed(query, w, f"{at}.norm1"), source, w, f"{at}.cross_attn", heads)
            y = linear(normed(query, w, f"{at}.norm2"), w, f"{at}.mlp.fc1")
            queries[i] = query + linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), w, f"{at}.mlp.fc2")
    return torch.stack([linear(normed(query, w, "decoder_norm"), w, "decoder_pred") for query in queries])


def predict_together(maps: list[Tensor], w: Weights, keep: list[int], expected: list[int], heads: int) -> Tensor:
    """Runs MAE's decoder for one image on mixed maps: encoded tokens and mask tokens attend to each other. Returns (Q, p p C)."""
    places = torch.stack([w["decoder_pos_embed"][0, row] for row in [0] + [1 + i for i in [*keep, *expected]]])
    tokens = [*linear(mixture(maps, w, 0), w, "decoder_embed"), *(w["mask_token"][0, 0] for _ in expected)]
    x = torch.stack(tokens) + places
    for layer in range(depth(w, "decoder_blocks")):
        x = block(x, w, f"decoder_blocks.{layer}.", heads, 1e-6)
    return linear(normed(x[-len(expected) :], w, "decoder_norm"), w, "decoder_pred")


def one(
    image: Tensor, w: Weights, keep: list[int], expected: list[int], p: int, heads: int, decoder_heads: int
) -> tuple[Tensor, Tensor]:
    """Returns the predictions and the targets of one image, (Q, p p C) each; target patches are standardised."""
    fused = "wfm.linear.weight" in w
    maps = encode(image, w, keep, p, heads, fused and w["wfm.linear.weight"].shape[1] == depth(w, "blocks") + 1)
    together = "decoder_embed.weight" in w
    prediction = predict_together(maps, w, keep, expected, decoder_heads) if together else predict(maps, w, expected, decoder_heads)
    raw = torch.stack([patches(image, p)[i] for i in expected])
    centred = raw - raw.mean(1, keepdim=True)
    return prediction, centred / ((centred**2).sum(1, keepdim=True) / (raw.shape[1] - 1) + 1e-6) ** 0.5


def loss(
    images: Tensor, w: Weights, keeps: list[list[int]], expected: list[list[int]], p: int, heads: int, decoder_heads: int
) -> tuple[Tensor, Tensor]:
    """Returns CrossMAE's loss of a batch (B, C, H, W), and the predictions (B, Q, p p C)."""
    rows = zip(images, keeps, expected, strict=True)
    each = [one(image, w, keep, ask, p, heads, decoder_heads) for image, keep, ask in rows]
    prediction, right = torch.stack([a for a, _ in each]), torch.stack([b for _, b in each])
    return ((prediction - right) ** 2).mean(), prediction
