"""Compares I-JEPA's checkpoints with transformers' class on random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_load_mae import assert_same, encoder_file
from test_transformers import theirs

from mmm.weights.formats import FORMATS
from mmm.weights.formats.timm import to_timm
from mmm.weights.load import load

# timm's names inside a block, and transformers 5's
NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def official(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of transformers' I-JEPA under the official code's names."""
    state, made = model.state_dict(), {}
    made["pos_embed"] = state["embeddings.position_embeddings"]
    for kind in ("weight", "bias"):
        made[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        made[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for number in range(2):
            block = f"layers.{number}"
            parts = [state[f"{block}.attention.{one}_proj.{kind}"] for one in "qkv"]
            made[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
            made |= {f"blocks.{number}.{ours}.{kind}": state[f"{block}.{there}.{kind}"] for ours, there in NAMES.items()}
    return made


def test_the_target_encoder_is_read(tmp_path: Path) -> None:
    original = theirs("IJepaModel", layer_norm_eps=1e-6)
    weights = official(original)
    student = {f"module.{name}": torch.randn_like(value) for name, value in weights.items()}
    saved = {"encoder": student, "predictor": {"module.mask_token": torch.zeros(1)}, "opt": {"state": {}, "param_groups": []}}
    saved |= {"target_encoder": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3, "scaler": None}
    torch.save(saved, tmp_path / "jepa.pth.tar")
    model, images = load(tmp_path / "jepa.pth.tar", heads=2), torch.randn(2, 3, 12, 12)
    assert (model.encode(images).last - original(images).last_hidden_state).abs().max() <= 1e-5
    assert_same(to_timm(model), weights)
    FORMATS["ijepa"].write(model, tmp_path)
    assert_same(to_timm(load(tmp_path / "checkpoint.pth.tar", heads=2)), weights)
    del saved["target_encoder"]["module.norm.bias"]  # type: ignore[attr-defined]
    torch.save(saved, tmp_path / "broken.pth.tar")
    with pytest.raises(ValueError, match=r"lacks norm\.bias"):
        load(tmp_path / "broken.pth.tar", heads=2)


def test_a_class_token_has_no_place(tmp_path: Path) -> None:
    torch.save(encoder_file(), tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="encoder.class_token must be false"):
        FORMATS["ijepa"].write(load(tmp_path / "mae.pth", heads=2), tmp_path)
