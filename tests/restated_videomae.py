"""VideoMAE implemented a second time, from published facts alone (Tong et al., NeurIPS 2022, and its released shapes); it shares
nothing with mmm.

It uses the simple and slow computation wherever it can: a 3-D convolution for tubes, positions before the gather, one head at a
time, a 0/1 map of one frame repeated over the time slots, pixels scaled back one channel at a time, and loops over samples and
tokens. Weights have the names of the official file.

Shapes: B samples, T frames, L tokens, D width, t frames and p pixels of a tube's sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def table(tokens: int, dim: int) -> Tensor:
    """Returns fixed positions of the flat index, float64 (L, D): sine, cosine, sine, cosine, ..."""
    rows = [[place / 10000 ** (2 * (j // 2) / dim) for j in range(dim)] for place in range(tokens)]
    return torch.tensor([[math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(row)] for row in rows], dtype=torch.float64)


def tube(hidden: list[int], slots: int) -> list[int]:
    """Repeats the map of one frame, 1 where a position is hidden, for all time slots."""
    return [bit for _ in range(slots) for bit in hidden]


def hidden_places(places: int, ratio: float) -> int:
    """Returns the number of hidden positions of a frame."""
    return int(ratio * places)


def norm(x: Tensor, w: Weights, at: str, epsilon: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + epsilon) ** 0.5 * w[at + ".weight"] + w[at + ".bias"]


def attention(x: Tensor, w: Weights, at: str, heads: int) -> Tensor:
    """Computes self-attention of one sample x, (M, D); the keys have no bias."""
    width = x.shape[1]
    dim, weight = width // heads, w[at + "qkv.weight"]
    q = (x @ weight[:width].T + w[at + "q_bias"]) * dim**-0.5
    k = x @ weight[width : 2 * width].T
    v = x @ weight[2 * width :].T + w[at + "v_bias"]
    out = []
    for head in range(heads):
        mine = slice(head * dim, (head + 1) * dim)
        out.append((q[:, mine] @ k[:, mine].T).softmax(dim=1) @ v[:, mine])
    return torch.cat(out, dim=1) @ w[at + "proj.weight"].T + w[at + "proj.bias"]


def blocks(x: Tensor, w: Weights, stack: str, heads: int) -> Tensor:
    for i in range(sum(name.startswith(stack) and name.endswith("norm1.bias") for name in w)):
        at = f"{stack}{i}."
        x = x + attention(norm(x, w, at + "norm1"), w, at + "attn.", heads)
        y = norm(x, w, at + "norm2") @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"]
        x = x + (y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))) @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"]
    return x


def targets(clip: Tensor, t: int, p: int, standardised: bool) -> Tensor:
    """Returns the targets (L, t p p C) of a normalised clip (C, T, H, W): pixels in [0, 1], each channel of a tube standardised."""
    channels, frames, height, width = clip.shape
    std, mean = torch.tensor(STD).to(clip), torch.tensor(MEAN).to(clip)  # kept in fp32, like the original
    whole = torch.stack([clip[c] * std[c] + mean[c] for c in range(channels)])
    tokens = []
    for first in range(0, frames, t):
        for top in range(0, height, p):
            for left in range(0, width, p):
                box = whole[:, first : first + t, top : top + p, left : left + p]
                columns = []
                for channel in box:
                    values = channel.reshape(-1)
                    if standardised:
                        centred = values - values.mean()
                        values = centred / (((centred**2).sum() / (len(values) - 1)) ** 0.5 + 1e-6)
                    columns.append(values)
                tokens.append(torch.stack(columns, dim=1).reshape(-1))  # the channel is the fastest
    return torch.stack(tokens)


def one(clip: Tensor, w: Weights, hidden: list[int], t: int, p: int, heads: int, decoder_heads: int, standardised: bool) -> Tensor:
    """Returns the squared errors of the hidden tokens of one clip, (L_hidden, t p p C)."""
    keep = [i for i, bit in enumerate(hidden) if not bit]
    away = [i for i, bit in enumerate(hidden) if bit]
    proj = w["encoder.patch_embed.proj.weight"]
    x = F.conv3d(clip[None], proj, w["encoder.patch_embed.proj.bias"], stride=(t, p, p))[0].flatten(1).T  # (L, D)
    x = (x + table(len(hidden), x.shape[1]).float().to(x))[keep]
    x = norm(blocks(x, w, "encoder.blocks.", heads), w, "encoder.norm") @ w["encoder_to_decoder.weight"].T
    places = table(len(hidden), x.shape[1]).float().to(x)
    asked = torch.stack([w["mask_token"][0, 0] + places[i] for i in away])
    x = blocks(torch.cat([x + places[keep], asked]), w, "decoder.blocks.", decoder_heads)[len(keep) :]
    prediction = norm(x, w, "decoder.norm") @ w["decoder.head.weight"].T + w["decoder.head.bias"]
    return (prediction - targets(clip, t, p, standardised)[away]) ** 2


def loss(
    clips: Tensor, w: Weights, hidden: list[list[int]], t: int, p: int, heads: int, decoder_heads: int, standardised: bool = True
) -> Tensor:
    """Returns VideoMAE's loss of a batch (B, C, T, H, W), whose samples hide the tokens where `hidden` is 1."""
    pairs = zip(clips, hidden, strict=True)
    return torch.stack([one(clip, w, bits, t, p, heads, decoder_heads, standardised) for clip, bits in pairs]).mean()
