"""Compares SimMIM on a plain vision transformer, and data2vec's encoder, with transformers: outputs, loss and gradients.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.decoders import LinearDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget

Build = Callable[..., MaskedModel]
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
VIT = {
    "attention.o_proj.": "attn.proj.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
DATA2VEC = {
    "attention.output.dense.": "attn.proj.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "lambda_1": "ls1.gamma",
    "lambda_2": "ls2.gamma",
}


def as_ours(theirs: dict[str, Tensor], blocks: str, inside: dict[str, str], parts: tuple[str, str, str]) -> dict[str, Tensor]:
    """Returns weights, or gradients, of transformers' encoder under our names, with queries, keys and values in one tensor."""
    found, split = {}, dict[str, Tensor]()
    for name, value in theirs.items():
        start, _, rest = name.removeprefix(blocks).partition(".")
        if not name.startswith(blocks):
            found[next(ours + name.removeprefix(there) for there, ours in OUTSIDE.items() if name.startswith(there))] = value
        elif rest.rsplit(".", 1)[0] in parts:
            split[f"{start}.{parts.index(rest.rsplit('.', 1)[0])}.{rest.rsplit('.', 1)[1]}"] = value
        else:
            ours = next(ours + rest.removeprefix(there) for there, ours in inside.items() if rest.startswith(there))
            found[f"blocks.{start}.{ours}"] = value
    for number in range(2):
        found[f"blocks.{number}.attn.qkv.weight"] = torch.cat([split[f"{number}.{part}.weight"] for part in range(3)])
        if f"{number}.1.bias" in split:
            found[f"blocks.{number}.attn.qkv.bias"] = torch.cat([split[f"{number}.{part}.bias"] for part in range(3)])
        else:  # keys have no bias
            found |= {f"blocks.{number}.attn.qkv.{part}_bias": split[f"{number}.{at}.bias"] for part, at in (("q", 0), ("v", 2))}
    return found


def model_of(build: Build, disturb: Callable[[nn.Module], nn.Module], theirs: Any, **encoder: Any) -> tuple[Any, MaskedModel]:
    options = {"width": 24, "depth": 2, "heads": 2, "positions": "learned", "norm_epsilon": 1e-12} | encoder
    model = build(
        (16, 16),
        masker=RandomMasker.Config(ratio=0.6, blank=True),
        encoder=VisionTransformer.Config(**options),
        decoder=LinearDecoder.Config(),
        target=PixelTarget.Config(standardise="none", loss="l1"),
    )
    return disturb(theirs).double().eval(), model.double()


def drawn(model: MaskedModel) -> tuple[Tensor, Any, Tensor]:
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(3)), (4, 4))
    return x, mask, torch.zeros(3, 16, dtype=torch.bool).scatter(1, mask.predict, True)


def test_simmim_is_transformers(build: Build, disturb: Callable[[nn.Module], nn.Module]) -> None:
    """Compares loss and the gradient of every weight with ViTForMaskedImageModeling."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    config = ViTConfig(**SIZES, image_size=16, patch_size=4, encoder_stride=4, attn_implementation="sdpa")
    theirs, model = model_of(build, disturb, ViTForMaskedImageModeling(config))
    parts = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    ours = as_ours(theirs.vit.state_dict(), "layers.", VIT, parts)
    model.encoder.load_state_dict(ours, strict=True)
    head, order = theirs.decoder[0], torch.arange(48).view(3, 4, 4).permute(1, 2, 0).flatten()  # their order is (c, i, j)
    model.decoder.head.load_state_dict({"weight": head.weight.flatten(1)[order], "bias": head.bias[order]})
    x, mask, hidden = drawn(model)
    wanted, loss = theirs(x, bool_masked_pos=hidden).loss, model(x, mask=mask).loss
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    loss.backward()
    wanted.backward()
    gradients = {name: weight.grad for name, weight in theirs.vit.named_parameters()}
    whole = torch.stack([one.norm() for one in gradients.values()]).norm()
    for name, gradient in as_ours(gradients, "layers.", VIT, parts).items():
        own = model.encoder.get_parameter(name).grad
        assert (own - gradient).norm() < 1e-10 * max(own.norm(), 1e-6 * whole), name
    assert (model.decoder.head.weight.grad - head.weight.grad.flatten(1)[order]).abs().max() < 1e-12


def test_data2vecs_encoder_is_transformers(build: Build, disturb: Callable[[nn.Module], nn.Module]) -> None:
    """Compares every block's output with Data2VecVisionModel, with mask tokens, added positions and no relative positions."""
    from transformers import Data2VecVisionConfig, Data2VecVisionModel

    config = Data2VecVisionConfig(
        **SIZES, image_size=16, patch_size=4, use_mask_token=True, use_absolute_position_embeddings=True, use_mean_pooling=False
    )
    theirs, model = model_of(build, disturb, Data2VecVisionModel(config), qkv_bias="qv", layer_scale=0.1)
    parts = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    model.encoder.load_state_dict(as_ours(theirs.state_dict(), "encoder.layer.", DATA2VEC, parts), strict=True)
    x, mask, hidden = drawn(model)
    with torch.no_grad():
        wanted = theirs(x, bool_masked_pos=hidden, output_hidden_states=True)
        found = model.encode(x, mask=mask, blocks=(0, 1, 2))
        places = torch.cat([torch.zeros(3, 1).long(), 1 + mask.where], dim=1)[..., None].expand(-1, -1, 24)
        for number in range(3):
            assert (found.blocks[number] - wanted.hidden_states[number].gather(1, places)).abs().max() < 1e-12
        assert (found.last - wanted.last_hidden_state.gather(1, places)).abs().max() < 1e-12
