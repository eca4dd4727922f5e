"""Faster layers for a CPU under autocast to bf16. Models are built of torch's own layers, and nothing else needs these.

`use_cpu_bf16_kernels` replaces layers by those below, which compute as torch's own on every other device and precision. Trainings
and evaluations in bf16 on a CPU call it, because torch's layers are slow there (docs/performance.md, "A step beside other
implementations"): the backward pass of flash attention uses a tenth of the machine, the product for the gradient of a weight half
of it, autocast keeps a bf16 copy of all weights from the forward to the backward pass, and it computes norms in fp32 for linear
layers that read bf16.

Shapes: B samples, h heads, Q queries, M keys, c values per head; T tokens, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmm.layers.transformer import Attention, Embedding, QueryValueLinear

LONGEST = 2048  # maximum number of keys for which all probabilities are kept for the backward pass; flash attention keeps none
BLOCK = 2**21  # bytes of probabilities that are computed at a time, so that they fit into a core's second-level cache


def is_cpu_bf16(x: Tensor) -> bool:
    """Returns whether a tensor is computed on a CPU under autocast to bf16."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `torch.nn.functional.linear`, (..., I), (O, I), (O,) -> (..., O)."""
    if is_cpu_bf16(input) and weight.dtype == torch.float32:
        return _Product.apply(input, weight, bias)
    return F.linear(input, weight, bias)


class CPUBF16Linear(nn.Linear):
    """A faster linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


class CPUBF16QueryValueLinear(QueryValueLinear):
    """A faster linear layer for queries, keys and values."""

    linear = staticmethod(linear)


class CPUBF16Embedding(Embedding):
    """A faster embedding of tokens."""

    linear = staticmethod(linear)


class CPUBF16LayerNorm(nn.LayerNorm):
    """A layer norm whose result has the precision that the next linear layer reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises tokens, (..., D) -> (..., D)."""
        if not is_cpu_bf16(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):  # which would convert to fp32 and back; statistics are fp32 in any case
            return super().forward(x.to(torch.bfloat16))


class CPUBF16Attention(Attention):
    """Faster multi-head attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, h, Q, c), (B, h, M, c), (B, h, M, c) -> (B, h, Q, c)."""
        if is_cpu_bf16(q) and k.shape[2] <= LONGEST and valid is None:
            return _AttentionByProducts.apply(q, k, v)
        return super().attend(q, k, v, valid)


FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CPUBF16Linear,
    nn.LayerNorm: CPUBF16LayerNorm,
    Attention: CPUBF16Attention,
    QueryValueLinear: CPUBF16QueryValueLinear,
    Embedding: CPUBF16Embedding,
}


def use_cpu_bf16_kernels(model: nn.Module) -> None:
    """Replaces the layers of a model, in place, by the faster ones; weights and their names do not change."""
    for module in model.modules():
        module.__class__ = FASTER.get(type(module), type(module))


class _AttentionByProducts(torch.autograd.Function):
    """softmax(q k^T / sqrt c) v, computed by matrix products for a few heads at a time.

    A block of probabilities that does not fit into the cache is written to memory and read again five times in a step. A block of
    32 MiB or more is also allocated page by page, which costs as much as a product (1,568 keys, 2 samples of 6 heads: 152 ms in one
    block, 101 ms in several).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, h, Q, c), (B, h, M, c), (B, h, M, c) -> (B, h, Q, c)."""
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
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of q, k and v."""
        q, k, v, *kept = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.to(q.dtype).flatten(0, 1)
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        parts = [one.split(ctx.heads) for one in (q, k, v, gradient, to_q, to_k, to_v)]
        for share, mine, keys, values, given, out_q, out_k, out_v in zip(kept, *parts, strict=True):
            torch.bmm(share.transpose(1, 2), given, out=out_v)
            scores = torch.bmm(given, values.transpose(1, 2))
            scores = torch._softmax_backward_data(scores, share, -1, share.dtype)
            torch.bmm(scores, keys, out=out_q)
            torch.bmm(scores.transpose(1, 2), mine, out=out_k)
        return to_q.mul_(ctx.scale).view(shape), to_k.unflatten(0, shape[:2]), to_v.unflatten(0, shape[:2])


class _Product(torch.autograd.Function):
    """A linear layer in bf16 with weights in fp32, which keeps no bf16 copy of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., I), (O, I), (O,) -> (..., O)."""
        low = x.to(torch.bfloat16)
        ctx.save_for_backward(low, weight)
        return F.linear(low, weight.to(low.dtype), None if bias is None else bias.to(low.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of x, the weight and the bias, where they are required."""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        to_x = gradient @ weight.to(gradient.dtype) if for_x else None
        gradient, to_weight = gradient.reshape(-1, gradient.shape[-1]), None  # (T, O)
        if for_weight:
            x = x.reshape(-1, x.shape[-1])  # (T, I)
            # oneDNN's product is up to twice as fast if the transposed matrix is stored transposed; the smaller one is copied
            if gradient.numel() > x.numel() + weight.numel():
                to_weight = (x.T.contiguous() @ gradient).T.contiguous()  # (O, I)
            else:
                to_weight = gradient.T.contiguous() @ x
            to_weight = to_weight.to(weight.dtype)
        return to_x, to_weight, gradient.sum(0).to(weight.dtype) if for_bias else None
