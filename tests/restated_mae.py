"""MAE implemented a second time, from published facts alone (He et al., CVPR 2022, and its released shapes), without code of mmm.

It uses the simple and slow computation wherever it can: a convolution for patches, positions before the gather, one head at a time,
mask tokens inserted in raster order, a 0/1 mask in the loss, and loops over samples and tokens. Weights have the official names.

Shapes: B samples, L tokens, D width, p side of a patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def table(height: int, width: int, dim: int) -> Tensor:
    """Returns fixed positions, float64 (1 + L, D): zeros for the class token; columns in the first half, rows in the second."""
    rows = [[0.0] * dim]
    for y in range(height):
        for x in range(width):
            row = []
            for place in (x, y):
                angles = [place / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + epsilon) ** 0.5 * weight + bias


def attention(x: Tensor, w: Weights, at: str, heads: int) -> Tensor:
    """Computes self-attention of one sample x, (M, D)."""
    dim = x.shape[1] // heads
    q, k, v = (x @ w[at + "qkv.weight"].T + w[at + "qkv.bias"]).chunk(3, dim=1)
    out = []
    for head in range(heads):
        mine = slice(head * dim, (head + 1) * dim)
        scores = q[:, mine] @ k[:, mine].T / math.sqrt(dim)
        out.append(scores.softmax(dim=1) @ v[:, mine])
    return torch.cat(out, dim=1) @ w[at + "proj.weight"].T + w[at + "proj.bias"]


def block(x: Tensor, w: Weights, at: str, heads: int, epsilon: float) -> Tensor:
    x = x + attention(norm(x, w[at + "norm1.weight"], w[at + "norm1.bias"], epsilon), w, at + "attn.", heads)
    y = norm(x, w[at + "norm2.weight"], w[at + "norm2.bias"], epsilon) @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"]
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return x + y @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"]


def patches(image: Tensor, p: int) -> Tensor:
    """Splits an image into patches, (C, H, W) -> (L, p p C): rows of pixels, then columns, the channel fastest."""
    tokens = []
    for top in range(0, image.shape[1], p):
        for left in range(0, image.shape[2], p):
            tokens.append(image[:, top : top + p, left : left + p].permute(1, 2, 0).reshape(-1))
    return torch.stack(tokens)


def one(
    image: Tensor, w: Weights, keep: list[int], p: int, heads: int, decoder_heads: int, norm_pix: bool, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Returns the squared error of each token of one image, (L,), and the 0/1 mask with 1 for hidden tokens."""
    high, wide = image.shape[1] // p, image.shape[2] // p
    positions = table(high, wide, len(w["cls_token"].flatten())).float().to(image)  # stored in fp32
    x = F.conv2d(image[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=p)[0].flatten(1).T  # (L, D)
    x = x + positions[1:]
    x = torch.cat([w["cls_token"][0] + positions[:1], torch.stack([x[i] for i in keep])])
    for i in range(sum(name.startswith("blocks.") and name.endswith("norm1.bias") for name in w)):
        x = block(x, w, f"blocks.{i}.", heads, epsilon)
    x = norm(x, w["norm.weight"], w["norm.bias"], epsilon)
    x = x @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]
    full = [x[0]] + [x[1 + keep.index(i)] if i in keep else w["mask_token"][0, 0] for i in range(high * wide)]
    x = torch.stack(full) + table(high, wide, x.shape[1]).float().to(image)
    for i in range(sum(name.startswith("decoder_blocks.") and name.endswith("norm1.bias") for name in w)):
        x = block(x, w, f"decoder_blocks.{i}.", decoder_heads, epsilon)
    x = norm(x, w["decoder_norm.weight"], w["decoder_norm.bias"], epsilon)
    prediction = (x @ w["decoder_pred.weight"].T + w["decoder_pred.bias"])[1:]
    expected = patches(image, p)
    if norm_pix:
        centred = expected - expected.mean(1, keepdim=True)
        expected = centred / ((centred**2).sum(1, keepdim=True) / (expected.shape[1] - 1) + 1e-6) ** 0.5
    hidden = torch.tensor([0.0 if i in keep else 1.0 for i in range(high * wide)]).to(image)
    return ((prediction - expected) ** 2).mean(1), hidden


def loss(images: Tensor, w: Weights, keeps: list[list[int]], p: int, heads: int, decoder_heads: int, norm_pix: bool) -> Tensor:
    """Returns MAE's loss of a batch (B, C, H, W), whose samples keep the tokens `keeps`."""
    each = [one(image, w, keep, p, heads, decoder_heads, norm_pix, 1e-6) for image, keep in zip(images, keeps, strict=True)]
    error, hidden = torch.stack([e for e, _ in each]), torch.stack([h for _, h in each])
    return (error * hidden).sum() / hidden.sum()
