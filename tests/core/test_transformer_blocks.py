"""Compares variants of a transformer block with timm's and transformers' models with the same weights, in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

from mmm import load
from mmm.core.types import RequiredFeatures
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.layers.rotary import RotaryKind, make_rotary
from mmm.tokenizers import Patches, Tubes
from mmm.weights.formats import FORMATS

Build = Callable[..., Any]
SIZE = {"width": 48, "depth": 3, "heads": 4, "mlp_ratio": 2.0}


def encoder_of(grid: tuple[int, ...], token: tuple[int, ...] = (4, 4), **options: Any) -> VisionTransformer:
    config = VisionTransformer.Config(**{**SIZE, "positions": "learned", **options})
    return VisionTransformer(config, token=token, channels=3, grid=grid, required=RequiredFeatures()).double().eval()


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"qk_norm": True, "layer_scale": 0.1}, {"qk_norm": True, "init_values": 0.1}),
        ({"norm": "rms", "qk_norm": True}, {"norm_layer": RmsNorm, "qk_norm": True}),
        ({"activation": "swiglu"}, {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 4.0}),  # timm counts both halves
        ({"qkv_bias": "none", "bias": False}, {"qkv_bias": False, "proj_bias": False}),
    ],
    ids=["qk_norm, layer_scale", "rms", "swiglu", "no biases"],
)
def test_timms_weights_give_timms_features(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The weights have the same names and need no conversion."""
    common = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
    model = TimmViT(**{**common, "num_classes": 0, "global_pool": "", **theirs}).double().eval()
    disturb(model)
    encoder = encoder_of((3, 4), norm_epsilon=model.norm.eps, **ours)
    encoder.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    patches = Patches(Patches.Config(size=4), channels=3).split(x)
    assert (encoder(patches, (3, 4), None).last - model.forward_features(x)).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("axial", {"rope_type": "cat"}), ("dinov3", {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True})],
)
def test_rotary_positions_equal_timms(kind: str, theirs: dict[str, Any]) -> None:
    model = Eva(
        img_size=(12, 16),
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=4,
        mlp_ratio=2.0,
        use_rot_pos_emb=True,
        dynamic_img_size=True,
        num_classes=0,
        global_pool="",
        use_post_norm=False,
        **theirs,
    )
    disturb(model)
    model = model.double().eval()
    encoder = encoder_of((3, 4), rotary=kind, qkv_bias="qv", norm_epsilon=model.blocks[0].norm1.eps)
    names = {
        name.replace("attn.q_bias", "attn.qkv.q_bias").replace("attn.v_bias", "attn.qkv.v_bias"): name
        for name in model.state_dict()
    }
    encoder.load_state_dict({ours: model.state_dict()[own] for ours, own in names.items()}, strict=True)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    patches = Patches(Patches.Config(size=4), channels=3).split(x)
    # timm computes angles in fp32
    assert (encoder(patches, (3, 4), None).last - model.forward_features(x)).abs().max() < 2e-5


def test_rotary_positions_equal_vjepa2s_with_its_fault() -> None:
    """transformers' encoder of clips has rotary positions alone, so our position table is 0."""
    config = VJEPA2Config(
        crop_size=16,
        patch_size=4,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        mlp_ratio=2.0,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    model = VJEPA2Model(config).double().eval()
    disturb(model)
    theirs, grid = model.encoder.state_dict(), (2, 4, 4)
    encoder = encoder_of(grid, (2, 4, 4), rotary="vjepa2", class_token=False, norm_epsilon=config.layer_norm_eps)
    found: dict[str, Tensor] = {
        "pos_embed": torch.zeros(1, 32, 48, dtype=torch.float64),
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.proj.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.proj.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    for block in range(3):
        own, their = f"blocks.{block}", f"layer.{block}"
        for kind in ("weight", "bias"):
            parts = [theirs[f"{their}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{own}.attn.qkv.{kind}"] = torch.cat(parts)
            found[f"{own}.attn.proj.{kind}"] = theirs[f"{their}.attention.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{own}.{name}.{kind}"] = theirs[f"{their}.{name}.{kind}"]
    encoder.load_state_dict(found, strict=True)
    clip = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64)
    patches = Tubes(Tubes.Config(size=4, frames=2), channels=3).split(clip)
    expected = model.encoder(clip.transpose(1, 2)).last_hidden_state
    assert (encoder(patches, grid, None).last - expected).abs().max() < 1e-9
    other = encoder_of(grid, (2, 4, 4), rotary="axial", class_token=False, norm_epsilon=config.layer_norm_eps)
    other.load_state_dict(found)
    assert (other(patches, grid, None).last - expected).abs().max() > 1e-3  # the fault has an effect


@pytest.mark.parametrize("kind", ["axial", "vjepa2", "dinov3"])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
def test_scores_depend_on_differences_of_places(kind: RotaryKind, grid: tuple[int, ...]) -> None:
    """Attention scores depend only on differences of positions, so two tokens that move together keep theirs (not with the
    fault)."""
    q, k = torch.randn(2, 1, 1, 1, 24, dtype=torch.float64)

    def score(a: int, b: int) -> float:
        where = torch.tensor([[a], [b]])
        rotary: Any = make_rotary(kind, grid, 24, where, dtype=torch.float64)
        turned = rotary.apply(torch.cat([q, k]))
        return float((turned[0] * turned[1]).sum())

    same = abs(score(0, 1) - score(1, 2)) < 1e-12
    assert same == (kind != "vjepa2")
    assert abs(score(0, 1) - score(0, 2)) > 1e-3


@pytest.mark.parametrize("name", ["mae", "timm", "transformers", "videomae", "crossmae"])
@pytest.mark.parametrize("choice", [{"rotary": "axial"}, {"activation": "swiglu"}, {"norm": "rms"}], ids=str)
def test_a_format_without_such_blocks_refuses_them(
    name: str, choice: dict[str, Any], build: Callable[..., Any], tmp_path: Path
) -> None:
    """Weights of these blocks have the same names, so they would be read as other blocks."""
    small = {"width": 24, "depth": 2, "heads": 2, **choice}
    if name == "videomae":
        positions = {"positions": "flat_sine_cosine", "qkv_bias": "qv"}
        encoder = VisionTransformer.Config(**small, **positions, class_token=False)
        model = build((4, 12, 16), encoder=encoder, decoder=SelfAttentionDecoder.Config(width=16, depth=2, heads=2, **positions))
    else:
        decoder = CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear") if name == "crossmae" else None
        parts = {} if decoder is None else {"decoder": decoder}
        model = build((16, 16), encoder=VisionTransformer.Config(**small), **parts)
    flag = f"encoder.{next(iter(choice))}"
    with pytest.raises(ValueError, match=flag):
        FORMATS[name].write(model, tmp_path)


def test_a_run_of_ours_keeps_them(build: Build, tmp_path: Path) -> None:
    config = VisionTransformer.Config(width=24, depth=2, heads=2, rotary="dinov3", activation="swiglu", norm="rms", qk_norm=True)
    model = build(encoder=config).eval()
    model.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 12, 16)
    assert torch.equal(load(tmp_path).encode(x).last, model.encode(x).last)
