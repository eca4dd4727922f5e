"""Compares files in MAE-ST's layout with its forward, restated from the paper's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_load_mae import assert_same, linear, norm
from torch import Tensor
from torch.nn import functional as F

from mmm import MaskedModel
from mmm.classifier import Classifier
from mmm.encoders import VisionTransformer
from mmm.weights.export import write_files
from mmm.weights.formats import FORMATS
from mmm.weights.load import load

WIDTH, HEADS = 16, 2


def file(headed: bool = False) -> dict[str, Tensor]:
    """Returns weights of two blocks on 2 x 3 x 3 tubes of 2 frames and 4 x 4 pixels, under the published names."""
    made = {"patch_embed.proj.weight": 0.2 * torch.randn(WIDTH, 3, 2, 4, 4), "patch_embed.proj.bias": torch.randn(WIDTH)}
    made |= {"cls_token": torch.randn(1, 1, WIDTH), "pos_embed_class": torch.randn(1, 1, WIDTH)}
    made |= {"pos_embed_spatial": torch.randn(1, 9, WIDTH), "pos_embed_temporal": torch.randn(1, 2, WIDTH)}
    for number in range(2):
        at = f"blocks.{number}"
        for part in ("q", "k", "v", "proj"):
            made |= linear(f"{at}.attn.{part}", WIDTH, WIDTH)
        made |= norm(f"{at}.norm1", WIDTH) | norm(f"{at}.norm2", WIDTH)
        made |= linear(f"{at}.mlp.fc1", WIDTH, 4 * WIDTH) | linear(f"{at}.mlp.fc2", 4 * WIDTH, WIDTH)
    return made | norm("norm", WIDTH) | (linear("head", WIDTH, 5) if headed else {})


def forward(clips: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Returns the tokens before the norm, (B, 1 + 18, D)."""

    def layer(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def normed(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    x = F.conv3d(clips, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], (2, 4, 4)).flatten(2).transpose(1, 2)
    places = weights["pos_embed_spatial"].repeat(1, 2, 1)
    x = x + places + weights["pos_embed_temporal"].repeat_interleave(9, dim=1)
    x = torch.cat([(weights["cls_token"] + weights["pos_embed_class"]).expand(len(x), -1, -1), x], dim=1)
    for number in range(2):
        at, y = f"blocks.{number}", normed(x, f"blocks.{number}.norm1")
        q, k, v = (layer(y, f"{at}.attn.{one}").unflatten(2, (HEADS, -1)).transpose(1, 2) for one in "qkv")
        mixed = (q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        x = x + layer(mixed.transpose(1, 2).flatten(2), f"{at}.attn.proj")
        x = x + layer(F.gelu(layer(normed(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    return x


def test_an_encoder_has_the_same_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, clips = file(), torch.randn(2, 3, 4, 12, 12)
    decoder = {"decoder_embed.weight": torch.zeros(1), "mask_token": torch.zeros(1), "decoder_pos_embed_class": torch.zeros(1)}
    torch.save({"model_state": weights | decoder}, tmp_path / "mae_st.pth")
    model = load(tmp_path / "mae_st.pth", heads=HEADS)
    expected = F.layer_norm(forward(clips, weights), (WIDTH,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    torch.testing.assert_close(model.encode(clips).last, expected, atol=1e-5, rtol=1e-5)
    assert model.decoder is None
    assert "decoder is left out (decoder_embed.weight, mask_token, decoder_pos_embed_class)" in caplog.text
    assert (model.data.size, model.data.mean) == ((4, 12, 12), (0.45,) * 3)


def test_a_classifier_has_the_same_scores(tmp_path: Path) -> None:
    weights, clips = file(headed=True), torch.randn(2, 3, 4, 12, 12)
    torch.save({"model": weights}, tmp_path / "mae_st.pth")
    model = load(tmp_path / "mae_st.pth", heads=HEADS)
    assert isinstance(model, Classifier)
    pooled = forward(clips, weights)[:, 1:].mean(1)
    normed = F.layer_norm(pooled, (WIDTH,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    torch.testing.assert_close(model(clips), normed @ weights["head.weight"].T + weights["head.bias"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("headed", [False, True])
def test_what_is_written_is_theirs_bit_for_bit(headed: bool, tmp_path: Path) -> None:
    weights = file(headed)
    torch.save({"model_state": weights}, tmp_path / "mae_st.pth")
    model = load(tmp_path / "mae_st.pth", heads=HEADS)
    FORMATS["mae_st"].write(model, tmp_path)
    assert_same(torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model_state"], weights)
    assert model.encoder.positions_of((4, 2, 5)).shape == (1, 1 + 40, WIDTH)
    moved = model.encoder.state_at((4, 2, 5))
    assert [moved[f"pos_embed_{name}"].shape[1] for name in ("spatial", "temporal", "class")] == [10, 4, 1]


def test_separate_positions_are_of_clips(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    separate = VisionTransformer.Config(width=16, depth=2, heads=2, positions="separate")
    with pytest.raises(ValueError, match=r"encoder\.positions separate is for clips; for images use learned"):
        build(encoder=separate)
    model = build((4, 12, 12), encoder=separate)
    with pytest.raises(ValueError, match="without its decoder"):
        FORMATS["mae_st"].write(model, tmp_path)
    model(torch.randn(2, 3, 4, 12, 12)).loss.backward()
    assert all(weight.grad is not None for name, weight in model.encoder.named_parameters() if "pos_embed" in name)


def test_a_saved_mean_is_read_again(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    model = build((4, 12, 16), encoder=VisionTransformer.Config(width=16, depth=2, heads=2, positions="separate"))
    model.decoder = None
    write_files(model, "mae_st", tmp_path)
    assert load(tmp_path, heads=HEADS, image_size=(12, 16)).data == model.data


@pytest.mark.parametrize(
    ("option", "value"), [("qkv_bias", "qv"), ("qkv_bias", "none"), ("class_token", False), ("positions", "learned")]
)
def test_an_encoder_that_the_layout_cannot_hold_is_refused(
    option: str, value: object, build: Callable[..., MaskedModel], tmp_path: Path
) -> None:
    encoder = VisionTransformer.Config(**{"width": 16, "depth": 2, "heads": 2, "positions": "separate", option: value})
    model = build((4, 12, 16), encoder=encoder)
    model.decoder = None
    with pytest.raises(ValueError, match=rf"cannot hold encoder\.{option} {value}"):
        FORMATS["mae_st"].write(model, tmp_path)


def test_every_name_is_accounted_for(tmp_path: Path) -> None:
    weights = file()
    for name in weights:
        torch.save({other: value for other, value in weights.items() if other != name}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=rf"lacks {name.replace('.', '[.]')}($|,|;| )"):
            load(tmp_path / "a.pth", heads=HEADS)
    torch.save(weights | {"extra": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="has extra, which the model does not have"):
        load(tmp_path / "a.pth", heads=HEADS)
