"""Attention, linear layers and layer norms, by the kernels that are fast for the device and the precision.

They are torch's own but on a CPU under autocast to bf16. There, measured (docs/performance.md), the flash attention's backward pass
leaves nine tenths of the machine idle, a linear layer's product for its weight's gradient half of it, autocast keeps a copy of all
weights from the forward to the backward pass, and computes norms in fp32 for linear layers that read bf16.

Shapes: B samples, h heads, Q queries, M keys, c values a head; T tokens, I and O inputs and outputs of a linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

LONGEST = 2048  # keys up to which all probabilities are kept for the backward pass; flash attention keeps none
BLOCK = 2**21  # bytes of probabilities that are computed at a time, for a core's second cache


def low_precision(x: Tensor) -> bool:
    """Whether this runs on a CPU under autocast to bf16."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Each head's softmax(q k^T / sqrt c) v, of (B, Q, h c), (B, M, h c) and (B, M, h c) -> (B, Q, h c)."""
    q, k, v = (rearrange(one, "b n (h c) -> b h n c", h=heads) for one in (q, k, v))
    if low_precision(q) and k.shape[2] <= LONGEST:
        found = Attention.apply(q, k, v)
    else:
        found = F.scaled_dot_product_attention(q, k, v)
    return rearrange(found, "b h q c -> b q (h c)")


class Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt c) v by plain products, a few heads at a time.

    Probabilities that leave the cache are written and read again five times in a step; and a block of 32 MiB or more comes from the
    system page by page, which costs as much as a product (1,568 keys, 2 samples of 6 heads: alone 152 ms at once, 101 in blocks).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, h, Q, c), (B, h, M, c) and (B, h, M, c) -> (B, h, Q, c)."""
        q, k, v = q.to(torch.bfloat16), k.to(torch.bfloat16), v.to(torch.bfloat16)
        shape, ctx.scale = q.shape, q.shape[-1] ** -0.5
        q, k, v = (q * ctx.scale).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        ctx.heads = max(1, BLOCK // (q.shape[1] * k.shape[1] * q.element_size()))
        parts = [one.split(ctx.heads) for one in (q, k, v)]
        kept = [torch.bmm(mine, keys.transpose(1, 2)).softmax(-1) for mine, keys in zip(*parts[:2], strict=True)]
        found = torch.cat([torch.bmm(share, values) for share, values in zip(kept, parts[2], strict=True)])
        ctx.save_for_backward(q, k, v, *kept)
        return found.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of q, k and v."""
        q, k, v, *kept = ctx.saved_tensors
        shape, gradient = gradients[0].shape, gradients[0].to(q.dtype).flatten(0, 1)
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        parts = [one.split(ctx.heads) for one in (q, k, v, gradient, to_q, to_k, to_v)]
        for share, mine, keys, values, given, out_q, out_k, out_v in zip(kept, *parts, strict=True):
            torch.bmm(share.transpose(1, 2), given, out=out_v)
            scores = torch.bmm(given, values.transpose(1, 2))
            scores = torch._softmax_backward_data(scores, share, -1, share.dtype)
            torch.bmm(scores, keys, out=out_q)
            torch.bmm(scores.transpose(1, 2), mine, out=out_k)
        return to_q.mul_(ctx.scale).view(shape), to_k.unflatten(0, shape[:2]), to_v.unflatten(0, shape[:2])


class LayerNorm(nn.LayerNorm):
    """A layer norm; what it gives is in the precision that linear layers read."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if not low_precision(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):  # it would go to fp32 and back; statistics are fp32 inside in any case
            return super().forward(x.to(torch.bfloat16))


class Linear(nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, of (..., I), (O, I) and (O,) -> (..., O)."""
    if low_precision(x) and weight.dtype == torch.float32:
        return Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Product(torch.autograd.Function):
    """A linear layer in bf16 on weights in fp32, of which no copy is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., O) of (..., I), (O, I) and (O,)."""
        low = x.to(torch.bfloat16)
        ctx.save_for_backward(low, weight)
        return F.linear(low, weight.to(low.dtype), None if bias is None else bias.to(low.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, of the weight and of the bias."""
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        to_x = gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        x, gradient = x.flatten(0, -2), gradient.flatten(0, -2)  # (T, I), (T, O)
        # oneDNN's product is up to twice as fast where the transposed matrix lies transposed: copied is what is less to copy
        if gradient.numel() > x.numel() + weight.numel():
            to_weight = (x.T.contiguous() @ gradient).T.contiguous()  # (O, I)
        else:
            to_weight = gradient.T.contiguous() @ x
        to_bias = gradient.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return to_x, to_weight.to(weight.dtype), to_bias
