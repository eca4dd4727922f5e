"""Compares BEiT's relative positions with transformers' BeitModel on random weights, whole and with mask tokens, in fp64.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from test_parity_mae import noisy
from torch import Tensor

from mmm import Mask
from mmm.core.types import RequiredFeatures
from mmm.encoders import VisionTransformer, encoders
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.tokenizers import Patches, tokenizers

KINDS = ("blocks", "shared")
SMALL = VisionTransformer.Config(
    width=48, depth=2, heads=4, mlp_ratio=2, positions="none", qkv_bias="qv", layer_scale=0.1, norm_epsilon=1e-12
)
NAMES = {
    "layernorm.": "norm.",
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "shared_position_bias.": "rel_pos_bias.",
    "layers.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "relative_position_bias.relative": "attn.relative",
    "lambda_1": "ls1.gamma",
    "lambda_2": "ls2.gamma",
}


def pair(kind: str, grid: tuple[int, int] = (3, 3)) -> tuple[Any, VisionTransformer]:
    """Returns transformers' model with random weights, and ours with the same weights."""
    settings = transformers.BeitConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        patch_size=4,
        image_size=(12, 12),
        use_mask_token=True,
        use_mean_pooling=False,
        use_relative_position_bias=kind == "blocks",
        use_shared_relative_position_bias=kind == "shared",
    )
    theirs = transformers.BeitModel(settings, add_pooling_layer=False)
    noisy(theirs)
    state: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        ours = name
        for old, new in NAMES.items():
            ours = ours.replace(old, new)
        state[ours] = value
    for block in range(2):
        query, key, value = (f"blocks.{block}.attention.{one}_proj." for one in "qkv")
        state[f"blocks.{block}.attn.qkv.weight"] = torch.cat([state.pop(f"{one}weight") for one in (query, key, value)])
        state[f"blocks.{block}.attn.qkv.q_bias"] = state.pop(f"{query}bias")
        state[f"blocks.{block}.attn.qkv.v_bias"] = state.pop(f"{value}bias")
    context: Any = {"token": (4, 4), "channels": 3, "grid": grid, "required": RequiredFeatures(), "blanks": True}
    encoder = encoders.build(replace(SMALL, relative_bias=kind), **context)
    assert isinstance(encoder, VisionTransformer)
    encoder.load_state_dict(state)
    return theirs.double().eval(), encoder.double().eval()


def split(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    tokenizer = tokenizers.build(Patches.Config(size=4), channels=3)
    return tokenizer.split(x), tokenizer.grid(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(12, 12), (20, 8)])
def test_features_equal_transformers(kind: str, size: tuple[int, int]) -> None:
    theirs, encoder = pair(kind)
    x = torch.randn(2, 3, *size).double()
    patches, grid = split(x)
    found = encoder(patches, grid, None).last
    assert torch.allclose(found, theirs(x).last_hidden_state, rtol=1e-9, atol=1e-9)
    if size == (12, 12):
        return
    moved = encoders.build(encoder.config, token=(4, 4), channels=3, grid=grid, required=RequiredFeatures(), blanks=True).double()
    moved.load_state_dict(encoder.state_at(grid))  # training at another size starts from the interpolated table
    assert torch.allclose(moved(patches, grid, None).last, found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_tokens_in_any_order_are_those_of_transformers(kind: str) -> None:
    theirs, encoder = pair(kind)
    x = torch.randn(2, 3, 12, 12).double()
    order = torch.stack([torch.randperm(9) for _ in range(2)])
    visible, blank = order[:, :5], order[:, 5:]
    hidden = torch.zeros(2, 9, dtype=torch.bool).scatter(1, blank, value=True)
    features = encoder(*split(x), Mask(visible, blank, blank=blank))
    expected = theirs(x, bool_masked_pos=hidden).last_hidden_state
    body = expected[:, 1:].gather(1, features.where[..., None].expand(-1, -1, 48))
    assert torch.allclose(features.last, torch.cat([expected[:, :1], body], dim=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_tokens_padding_packing_and_bf16(kind: str) -> None:
    """A padded row, or one that is packed with samples of another grid, equals the row alone; the CPU kernels add the bias."""
    _, encoder = pair(kind)
    (large, grid), (small, other) = split(torch.randn(1, 3, 16, 12).double()), split(torch.randn(1, 3, 12, 12).double())
    visible, ask = torch.tensor([[7, 2, 5]]), torch.tensor([[1]])
    alone = encoder(large, grid, Mask(visible, ask))
    padded = Mask(
        torch.tensor([[7, 2, 5, 7]]),
        ask,
        valid=torch.tensor([[True, True, True, False]]),
        valid_predict=torch.tensor([[True]]),
    )
    assert torch.allclose(encoder(large, grid, padded).last[:, :4], alone.last, rtol=1e-9, atol=1e-9)
    both = encoder.packed([small, large], [other, grid], [Mask(visible, ask)] * 2)
    assert torch.equal(both[1].last, alone.last)
    encoder.float()
    use_cpu_bf16_kernels(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(large.float(), grid, Mask(visible, ask)).last
    assert (half.double() - alone.last).norm() < 0.03 * alone.last.norm()
    half.float().sum().backward()
    tables = [weight for name, weight in encoder.named_parameters() if name.endswith("bias_table")]
    assert len(tables) == (2 if kind == "blocks" else 1)
    assert all(table.grad is not None and table.grad.abs().sum() > 0 for table in tables)


def test_what_has_no_relative_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder\.relative_bias shared is for one class token"):
        VisionTransformer.Config(relative_bias="shared", registers=4)
    with pytest.raises(ValueError, match="for clips use encoder.rotary"):
        encoders.build(
            replace(SMALL, relative_bias="blocks"), token=(2, 4, 4), channels=3, grid=(2, 3, 3), required=RequiredFeatures()
        )
