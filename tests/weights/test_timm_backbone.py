"""Folders of timm's other backbones load as encoders with timm's features, are written back, and are evaluated as any model."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_load_mae import assert_same
from test_parity_mae import noisy
from torch import nn

from mmm import MaskedModel
from mmm.evaluate.loaded_model import LoadedModelConfig, load_model
from mmm.weights.formats import FORMATS
from mmm.weights.load import load


def folder(path: Path, name: str, **options: object) -> nn.Module:
    """Writes a folder like timm's on the hub, with random weights."""
    model = timm.create_model(name, pretrained=False, **options)
    noisy(model)
    path.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path / "model.safetensors")
    said = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "classifier": model.default_cfg["classifier"]}
    (path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 5, "pretrained_cfg": said}))
    return model.eval()


@pytest.mark.parametrize(("name", "side"), [("test_convnext", 32), ("test_byobnet", 32), ("test_vit2", 16)])
def test_a_backbone_is_read_as_an_encoder(name: str, side: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"img_size": 64} if name == "test_vit2" else {}
    theirs = folder(tmp_path / "theirs", name, num_classes=5, **options)
    with caplog.at_level(logging.WARNING, "mmm"):
        model = load(tmp_path / "theirs")
    assert isinstance(model, MaskedModel)
    assert "head" in caplog.text
    assert model.data is not None
    assert (model.tokenizer.size, model.data.mean) == ((side, side), (0.5, 0.5, 0.5))
    x = torch.randn(2, 3, 64, 64)
    wanted = theirs.forward_features(x)
    wanted = getattr(theirs, "fc_norm", nn.Identity())(wanted)
    wanted = wanted.flatten(2).transpose(1, 2) if wanted.dim() == 4 else wanted
    assert (model.encode(x).last - wanted).abs().max() < 1e-5
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours").encode(x).last, model.encode(x).last)
    (tmp_path / "back").mkdir()
    FORMATS["timm_backbone"].write(model, tmp_path / "back")
    kept = {
        key: value for key, value in theirs.state_dict().items() if not key.startswith(("head.fc.", "head.weight", "head.bias"))
    }
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert_same(found, {key: kept[key if key in kept else f"fc_{key}"] for key in found})
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    out = again.forward_features(x)
    assert (model.encode(x).last - (out.flatten(2).transpose(1, 2) if out.dim() == 4 else out)).abs().max() < 1e-5


def test_what_changes_the_computation_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "theirs", "test_convnext", num_classes=5)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"model_args": {"depths": [1, 1, 1, 1]}}))
    with pytest.raises(ValueError, match="model_args depths cannot be read"):
        load(tmp_path / "theirs")


def test_a_backbone_with_batch_norms_is_evaluated(tmp_path: Path) -> None:
    """It cannot have mask tokens, so the untrained copy that an evaluation compares with is built without them."""
    model = timm.create_model("test_resnet", pretrained=False, num_classes=5)
    (tmp_path / "theirs").mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "theirs" / "model.safetensors")
    said = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "fc"}
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": said}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    loaded = load_model(LoadedModelConfig(model=str(tmp_path / "theirs"), source="builtin:photographs", device="cpu"))
    assert loaded.trained is not None
    x = torch.randn(2, 3, 64, 64)
    assert loaded.untrained.encode(x).last.shape == loaded.trained.encode(x).last.shape == (2, 4, 96)
