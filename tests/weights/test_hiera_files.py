"""Hiera's files: transformers' masked autoencoder, under the official names, has the same loss, and timm's classifier the same
logits."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_load_mae import assert_same
from test_parity_mae import noisy
from timm.models.hiera import Hiera as TimmHiera
from torch import Tensor
from transformers import HieraConfig, HieraForPreTraining

from mmm import Mask, MaskedModel
from mmm.classifier import Classifier
from mmm.weights.formats import FORMATS
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load

RULES = (  # transformers' names and the official ones
    (r"^hiera\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^hiera\.embeddings\.position_embeddings", "pos_embed"),
    (r"^multiscale_fusion\.", ""),
    (r"^decoder\.decoder_block\.layers", "decoder_blocks"),
    (r"^decoder\.decoder_position_embeddings", "decoder_pos_embed"),
    (r"^decoder\.decoder_embeddings", "decoder_embed"),
    (r"^decoder\.", ""),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
)
STAGES = (1, 2, 1, 1)


def official(model: HieraForPreTraining) -> dict[str, Tensor]:
    """Returns the weights of transformers' masked autoencoder under the official code's names."""
    made = {}
    for name, value in model.state_dict().items():
        stage = re.match(r"hiera\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", name)
        if stage is not None:
            name = f"blocks.{sum(STAGES[: int(stage[1])]) + int(stage[2])}.{name.removeprefix(stage[0])}"
        for old, new in RULES:
            name = re.sub(old, new, name)
        made[name] = value.clone()
    return made


def theirs() -> HieraForPreTraining:
    config = HieraConfig(
        embed_dim=8,
        image_size=[64, 64],
        depths=list(STAGES),
        num_heads=[1, 2, 4, 8],
        num_query_pool=2,
        decoder_hidden_size=16,
        decoder_depth=1,
        decoder_num_heads=2,
        mask_ratio=0.5,
    )
    model = HieraForPreTraining(config)
    noisy(model)
    return model.eval()


def test_a_masked_autoencoder_has_the_same_loss(tmp_path: Path) -> None:
    original = theirs()
    weights = official(original)
    torch.save({"model_state": weights}, tmp_path / "mae_hiera.pth")
    model = load(tmp_path / "mae_hiera.pth", heads=1, decoder_heads=2)
    assert isinstance(model, MaskedModel)
    assert model.masker.config.unit == 2
    assert model.encoder.config.stages == STAGES
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 4)
    order = noise.argsort(dim=1)
    members = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    mask = Mask(members[order[:, :2]].flatten(1), members[order[:, 2:]].flatten(1))
    wanted = original(images, noise=noise)
    assert model(images, mask=mask).loss.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
    FORMATS["hiera"].write(model, tmp_path)
    assert_same(torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model_state"], weights)
    del weights["multi_scale_fusion_heads.1.bias"]
    torch.save({"model_state": weights}, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"lacks multi_scale_fusion_heads\.1\.bias"):
        load(tmp_path / "broken.pth", heads=1, decoder_heads=2)


def test_timms_classifier_has_the_same_logits(tmp_path: Path) -> None:
    original = TimmHiera(img_size=(64, 64), embed_dim=8, num_heads=1, stages=STAGES, num_classes=5)
    noisy(original)
    original.eval()
    torch.save(original.state_dict(), tmp_path / "hiera.pth")
    model = load(tmp_path / "hiera.pth", heads=1)
    assert isinstance(model, Classifier)
    assert model.tokenizer.size == (32, 32)
    x = torch.randn(2, 3, 64, 64)
    assert (model(x) - original(x)).abs().max() < 1e-5
    FORMATS["hiera"].write(model, tmp_path)
    state = {
        name.replace("head.norm.", "norm.").replace("head.fc.", "head.projection."): value
        for name, value in original.state_dict().items()
    }
    assert_same(torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model_state"], state)


def test_an_encoder_of_clips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The decoder of a clip model is not read."""
    options: dict[str, Any] = {
        "patch_kernel": (3, 7, 7),
        "patch_stride": (2, 4, 4),
        "patch_padding": (1, 3, 3),
        "q_stride": (1, 2, 2),
    }
    options |= {"mask_unit_size": (1, 8, 8), "sep_pos_embed": True, "num_classes": 0}
    original = TimmHiera(img_size=(4, 64, 64), embed_dim=8, num_heads=1, stages=STAGES, **options)
    noisy(original)
    original.eval()
    state = {name.replace("head.norm.", "encoder_norm."): value for name, value in original.state_dict().items()}
    besides = {"mask_token": torch.zeros(1, 1, 16), "decoder_pred.bias": torch.zeros(768)}
    torch.save(state | besides, tmp_path / "clips.pth")
    with caplog.at_level(logging.WARNING, "mmm"):
        model = load(tmp_path / "clips.pth", heads=1)
    assert "decoder_pred.bias" in caplog.text
    assert model.data is not None
    assert model.data.size == (4, 64, 64)
    x = torch.randn(1, 3, 4, 64, 64)
    wanted = original.head.norm(original.forward_features(x, return_intermediates=True)[1][-1]).flatten(1, 3)
    assert (model.encode(x).last - wanted).abs().max() < 1e-5
    FORMATS["hiera"].write(model, tmp_path)
    again = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model_state"]
    assert_same(again, {name.replace("encoder_norm.", "norm."): value for name, value in state.items()})


def test_a_training_starts_from_it(tmp_path: Path) -> None:
    torch.save(official(theirs()), tmp_path / "mae_hiera.pth")
    model = load(tmp_path / "mae_hiera.pth", heads=1, decoder_heads=2)
    assert isinstance(model, MaskedModel)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for weight in model.parameters():
        weight.data.zero_()
    assert initialise_from(model, tmp_path / "mae_hiera.pth") == {"encoder", "decoder"}
    assert_same(dict(model.state_dict()), before)
