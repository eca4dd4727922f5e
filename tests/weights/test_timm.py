"""timm's plain vision transformers: their files load as encoders, and encoders are written in the same format."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from test_load_mae import assert_same
from test_parity_mae import noisy
from torch import nn

from mmm import Input, MaskedModel
from mmm.classifier import Classifier
from mmm.core.types import RequiredFeatures
from mmm.encoders import VisionTransformer, encoders
from mmm.evaluate.loaded_model import LoadedModelConfig, load_model
from mmm.maskers import RandomMasker
from mmm.tokenizers import Patches
from mmm.weights.formats.timm import to_timm
from mmm.weights.load import load

NAME = "vit_tiny_patch16_224"


def theirs(**choices: object) -> nn.Module:
    model = timm.create_model(NAME, depth=2, **choices)
    noisy(model)
    return model.eval()


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model, Classifier):
            return model.encode(images)
        return model.encode(images).last if isinstance(model, MaskedModel) else model.forward_features(images)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("classes", [0, 10])
def test_files_of_timm_give_the_same_features(tmp_path: Path, suffix: str, classes: int) -> None:
    original, file = theirs(num_classes=classes), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(original.state_dict(), file)
    model = load(file).eval()
    images = torch.randn(2, 3, 224, 224)
    assert (features(model, images) - features(original, images)).abs().max() <= 1e-5
    with torch.no_grad():
        assert not classes or (model(images) - original(images)).abs().max() <= 1e-5


def test_folders_of_the_hub(tmp_path: Path) -> None:
    original = theirs(num_classes=0)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 0}))
    assert_same(to_timm(load(tmp_path)), original.state_dict())


def test_the_pixels_of_a_folder_are_those_of_evaluation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The mean and deviation of config.json replace ImageNet's."""
    cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "input_size": (3, 96, 64)}
    original = theirs(num_classes=0, img_size=(96, 64), num_heads=6, pretrained_cfg_overlay=cfg)
    timm.models.save_for_hf(original, tmp_path, model_args={"img_size": [96, 64], "depth": 2, "num_heads": 6})
    model = load(tmp_path)
    assert model.data == Input(size=(96, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "resized bilinear; here they are resized bicubic" in caplog.text
    images = torch.randn(2, 3, 96, 64)
    assert (features(model, images) - features(original, images)).abs().max() <= 1e-5
    data = load_model(LoadedModelConfig(model=str(tmp_path), source="builtin:photographs", device="cpu")).data
    assert (data.mean, data.std, data.frame_size) == ((0.5,) * 3, (0.5,) * 3, (96, 64))


@pytest.mark.parametrize("size", [(48, 80), (16, 32)], ids=["larger", "smaller"])
def test_positions_of_a_folder_are_interpolated_as_by_timm(tmp_path: Path, size: tuple[int, int]) -> None:
    """A plain file gets the kernel of MAE and transformers, which gives other features."""
    arguments = {"img_size": 32, "patch_size": 8, "depth": 2, "dynamic_img_size": True}
    original = timm.create_model(NAME, num_classes=0, **arguments)
    noisy(original)
    timm.models.save_for_hf(original.eval(), tmp_path, model_args=arguments)
    images = torch.randn(2, 3, *size)
    expected = features(original, images)
    assert (features(load(tmp_path), images) - expected).abs().max() <= 1e-5
    torch.save(original.state_dict(), tmp_path / "bare.pth")
    (tmp_path / "config.json").unlink()
    assert (features(load(tmp_path / "bare.pth", image_size=32, heads=3), images) - expected).abs().max() > 1e-3


def test_what_is_assumed_for_a_bare_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(theirs(num_classes=0).state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "mmm"):
        load(tmp_path / "weights.pth")
    assert "assumed: 3 heads, mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)" in caplog.text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "hf-hub:somebody/model"}, "timm has no architecture 'hf-hub:somebody/model'"),
        ({"architecture": NAME, "model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args checkpoint_path cannot be read"),
        ({"architecture": NAME, "model_args": {"depth": 10**9}}, "model_args depth cannot be read"),
        ({"architecture": "resnet18"}, "read as timm's layout of another backbone: resnet18"),
    ],
)
def test_architectures_that_cannot_be_read_are_named(tmp_path: Path, config: dict[str, object], said: str) -> None:
    save_file(theirs(num_classes=0).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"init_values": 1.0}, "ls1.gamma"),
        ({"qk_norm": True}, "q_norm"),
        ({"pre_norm": True}, "norm_pre"),
        ({"reg_tokens": 4}, "reg_token"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, choices: dict[str, object], said: str) -> None:
    torch.save(theirs(num_classes=0, **choices).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "weights.pth")


@pytest.mark.parametrize("positions", ["sine_cosine", "learned", "flat_sine_cosine"])
def test_round_trip_is_bit_for_bit(tmp_path: Path, positions: str, build: Callable[..., MaskedModel]) -> None:
    config = VisionTransformer.Config(width=192, depth=2, heads=3, positions=positions)
    model = build(size=(224, 224), tokenizer=Patches.Config(), encoder=config).eval()
    torch.save(to_timm(model), tmp_path / "encoder.pth")
    there = timm.create_model(NAME, depth=2, num_classes=0, checkpoint_path=str(tmp_path / "encoder.pth")).eval()
    images = torch.randn(2, 3, 224, 224)
    assert (features(model, images) - features(there, images)).abs().max() <= 1e-5
    torch.save(there.state_dict(), tmp_path / "back.pth")
    assert_same(to_timm(load(tmp_path / "back.pth")), to_timm(model))


def test_export_refuses_what_has_no_place(build: Callable[..., MaskedModel]) -> None:
    with pytest.raises(ValueError, match="of clips"):
        to_timm(build(size=(4, 8, 8)))
    biased = VisionTransformer.Config(width=24, depth=1, heads=2, qkv_bias="qv")
    with pytest.raises(ValueError, match=r"cannot hold encoder\.blocks\.0\.attn\.qkv\.q_bias"):
        to_timm(build(encoder=biased))
    with pytest.raises(ValueError, match=r"cannot hold encoder\.mask_token"):
        to_timm(build(masker=RandomMasker.Config(blank=True)))


@pytest.mark.parametrize(
    ("size", "name"),
    [
        pytest.param("huge", "vit_huge_patch14_224", marks=pytest.mark.slow),
        ("giant", "vit_giant_patch14_224"),
        pytest.param("gigantic", "vit_gigantic_patch14_224", marks=pytest.mark.slow),
    ],
)
def test_large_sizes_have_timms_shapes(size: Any, name: str) -> None:
    """The meta device needs no memory for the weights: 0.6, 1.0 and 1.8 billion."""
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0).state_dict()
        config = VisionTransformer.Config(size=size, positions="learned")
        ours = encoders.build(config, token=(14, 14), channels=3, grid=(16, 16), required=RequiredFeatures())
    expected = {key: value.shape for key, value in theirs.items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
