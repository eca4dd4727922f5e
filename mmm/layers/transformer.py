"""The layers of vision transformers that encoders and decoders share, with timm's names and MAE's initialisation.

Shapes: B samples, M and Q tokens, D width, h heads, c values per head; for a patch embedding P values per token, C channels, s...
the size of a token.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.layers.packing import Packing
from mmm.layers.relative_bias import RelativePlaces
from mmm.layers.rotary import Rotary

QKVBias = Literal["all", "qv", "none"]
Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "swiglu"]
EmbedInit = Literal["xavier", "torch"]


class Embedding(nn.Module):
    """Embeds tokens with one linear layer, whose weight has the layout of timm's convolution: (D, C, s...).

    Only the given tokens are embedded. With all tokens it is equal to the strided convolution.
    """

    linear = staticmethod(F.linear)

    def __init__(self, token: tuple[int, ...], channels: int, width: int) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(token)]
        self.proj = convolution(channels, width, token, token)  # contains the weights and torch's own bias; never called

    def forward(self, patches: Tensor) -> Tensor:
        """(B, M, P) -> (B, M, D)."""
        weight = self.proj.weight.movedim(1, -1).flatten(1)  # (D, C, s...) -> (D, s... C), the order of `split`
        return self.linear(patches, weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt c) v, without weights."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None = None,
        packing: tuple[Packing, Packing] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Returns the attention output, (B, Q, h c), (B, M, h c), (B, M, h c) -> (B, Q, h c).

        Args:
            q, k, v: queries, keys and values.
            valid: bool (B, M), False for keys that are padding. None: all keys are valid.
            packing: packings of queries and of keys, if these are packed; each sample then attends to itself.
            bias: bias of the scores, (B or 1, h, Q, M); not for packed tokens.
        """
        if bias is not None:
            bias = bias.to(q.dtype)
            valid = bias if valid is None else bias.masked_fill(~valid[:, None, None], -torch.inf)
        if packing is not None:
            queries, keys = packing
            parts = zip(queries.unpack(q), keys.unpack(k), keys.unpack(v), keys.unpack_valid(valid), strict=True)
            return queries.pack([self(*part) for part in parts])
        q, k, v = (one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))  # (B, h, Q or M, c)
        return self.attend(q, k, v, valid).transpose(1, 2).flatten(2)  # (B, h, Q, c) -> (B, Q, h c)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, h, Q, c), (B, h, M, c), (B, h, M, c) -> (B, h, Q, c). `valid`: bool (B, M), or a bias (B or 1, h, Q, M)."""
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=valid[:, None, None] if valid is not None and valid.dim() == 2 else valid
        )


class QueryValueLinear(nn.Linear):
    """Queries, keys and values of (B, M, D) as (B, M, 3D), with biases only for queries and values (BEiT, VideoMAE).

    A bias of the keys adds the same number to all scores of a query, and softmax removes it.
    """

    linear = staticmethod(F.linear)

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, 3D)."""
        return self.linear(x, self.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))


class SelfAttention(nn.Module):
    """Multi-head attention between the tokens; optionally norms queries and keys per head, and rotates them by their positions."""

    relative_position_bias_table: nn.Parameter | None

    def __init__(
        self,
        width: int,
        heads: int,
        qkv_bias: QKVBias = "all",
        *,
        bias: bool = True,
        qk_norm: bool = False,
        norm: Norm = "layer",
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias == "all")
        self.proj = nn.Linear(width, width, bias=bias)
        if qkv_bias == "qv":
            self.qkv = QueryValueLinear(width)
        self.q_norm = make_norm(norm, width // heads, epsilon) if qk_norm else None
        self.k_norm = make_norm(norm, width // heads, epsilon) if qk_norm else None
        self.attention = Attention(heads)
        self.register_parameter("relative_position_bias_table", None)  # set by encoders whose blocks have one

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        last: int | None = None,
        valid: Tensor | None = None,
        packing: Packing | None = None,
        relative: RelativePlaces | None = None,
    ) -> Tensor:
        """(B, M, D) -> (B, M, D); with `last`, only the outputs for the last `last` tokens. `valid`, `packing`: see `Attention`."""
        q, k, v = self.queries_keys_values(x, rotary)
        own = None if packing is None else (packing, packing)
        bias = None if relative is None else relative.bias(self.relative_position_bias_table)
        return self.proj(self.attention(q if last is None else q[:, -last:], k, v, valid, own, bias))

    def queries_keys_values(self, x: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries and keys, after norms and rotations, and values, each (B, M, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, M, 3D) -> (B, M, D) each
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(self._heads(q)).flatten(2), self.k_norm(self._heads(k)).flatten(2)
        if rotary is not None:
            q, k = rotary.apply(self._heads(q)).flatten(2), rotary.apply(self._heads(k)).flatten(2)
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """Splits the heads, (B, M, h c) -> (B, M, h, c)."""
        return x.unflatten(2, (self.num_heads, -1))


class CrossAttention(nn.Module):
    """Multi-head attention from queries (B, Q, D) to keys and values of (B, M, S); optionally rotates queries and keys."""

    def __init__(self, width: int, source: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(source, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.attention = Attention(heads)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        rotary: tuple[Rotary, Rotary] | None = None,
        valid: Tensor | None = None,
        packing: tuple[Packing, Packing] | None = None,
    ) -> Tensor:
        """(B, Q, D), (B, M, S) -> (B, Q, D). `rotary`: for queries and for keys. `valid`, `packing`: see `Attention`."""
        return self.proj(self.attention(*self.queries_keys_values(x, source, rotary), valid, packing))

    def queries_keys_values(
        self, x: Tensor, source: Tensor, rotary: tuple[Rotary, Rotary] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries (B, Q, D) and keys (B, M, D), after rotations, and values (B, M, D)."""
        q = self.q(x)
        k, v = self.kv(source).chunk(2, dim=-1)  # (B, M, 2D) -> (B, M, D) each
        if rotary is not None:
            shape = (self.num_heads, -1)
            q, k = (one.apply(value.unflatten(2, shape)).flatten(2) for one, value in zip(rotary, (q, k), strict=True))
        return q, k, v


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them, or with a gate: SiLU of the first half of `fc1`'s output times the second.

    The gated version is SwiGLU (Shazeer, arXiv 2002.05202), as in timm's `SwiGLUPacked` and in DINOv2.
    """

    def __init__(self, width: int, hidden: int, *, activation: Activation = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        self.fc1 = nn.Linear(width, 2 * hidden if self.gated else hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        x = self.fc1(x)
        if not self.gated:
            return self.fc2(F.gelu(x))
        gate, value = x.chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor for each value of a block's branch (Touvron et al., "CaiT", ICCV 2021)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        return x * self.gamma


class RMSNorm(nn.RMSNorm):
    """A norm without mean and bias (Zhang and Sennrich, NeurIPS 2019), computed in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


def make_norm(norm: Norm, width: int, epsilon: float, *, weight: bool = True) -> nn.Module:
    """Returns a layer norm, or a norm without mean and bias (RMS); `weight`: whether it has weights."""
    kind = nn.LayerNorm if norm == "layer" else RMSNorm
    return kind(width, eps=epsilon, elementwise_affine=weight)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        epsilon: float,
        drop_path: float,
        qkv_bias: QKVBias,
        bias: bool,
        norm: Norm,
        activation: Activation,
        qk_norm: bool,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, width, epsilon)
        self.attn = SelfAttention(width, heads, qkv_bias, bias=bias, qk_norm=qk_norm, norm=norm, epsilon=epsilon)
        self.norm2 = make_norm(norm, width, epsilon)
        self.mlp = MLP(width, round(width * mlp_ratio), activation=activation, bias=bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        from timm.layers import DropPath  # imported here because importing timm takes longer than importing torch

        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        last: int | None = None,
        added: list[Tensor] | None = None,
        valid: Tensor | None = None,
        packing: Packing | None = None,
        relative: RelativePlaces | None = None,
    ) -> Tensor:
        """Applies the block, (B, M, D) -> (B, M, D).

        Args:
            x: the tokens.
            rotary: rotation angles of the tokens.
            last: return only the last `last` tokens, (B, last, D). The others are only used as keys and values.
            added: a list to which the output of the MLP, before layer scale and drop path, is appended.
            valid: bool (B, M), False for padding. None: all tokens are valid.
            packing: the packing of x, (1, T, D), if it contains samples of different lengths. None: B samples of one length.
            relative: relative positions of the tokens, for a bias of the scores; not with `last` or `packing`.
        """
        kept = x if last is None else x[:, -last:]
        x = kept + drop_samples(self.drop_path, self.ls1(self.attn(self.norm1(x), rotary, last, valid, packing, relative)), packing)
        change = self.mlp(self.norm2(x))
        if added is not None:
            added.append(change)
        return x + drop_samples(self.drop_path, self.ls2(change), packing)


def drop_samples(drop_path: nn.Module, x: Tensor, packing: Packing | None) -> Tensor:
    """Applies timm's DropPath, which drops whole rows, to the samples of (B, M, D) or of a packed (1, T, D)."""
    if packing is None or isinstance(drop_path, nn.Identity):
        return drop_path(x)
    return packing.each(drop_path, x)


def make_blocks(
    width: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    epsilon: float = 1e-6,
    drop_path: float = 0.0,
    qkv_bias: QKVBias = "all",
    bias: bool = True,
    norm: Norm = "layer",
    activation: Activation = "gelu",
    qk_norm: bool = False,
    layer_scale: float | None = None,
) -> nn.ModuleList:
    """Returns pre-norm blocks x + attention(norm x), x + mlp(norm x) on (B, M, D); drop path rises linearly to its full rate."""
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        Block(
            width,
            heads,
            mlp_ratio=mlp_ratio,
            epsilon=epsilon,
            drop_path=rate,
            qkv_bias=qkv_bias,
            bias=bias,
            norm=norm,
            activation=activation,
            qk_norm=qk_norm,
            layer_scale=layer_scale,
        )
        for rate in rates
    )


def initialise(module: nn.Module) -> None:
    """MAE's initialisation (models_mae.py), for `Module.apply`.

    Linear weights are Xavier-uniform, with q, k and v as one matrix; biases are 0; norms are 1 and 0. The convolution of a patch
    embedding is Xavier-uniform as a matrix, and keeps torch's own bias, as in MAE.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))


def blocks_in(model: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks of all parts of a model: the modules in lists called `blocks`."""
    named = [module for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for blocks in named if isinstance(blocks, nn.ModuleList) for block in blocks]
