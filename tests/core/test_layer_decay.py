"""Compares the layer-wise learning rate of every parameter of a classifier with a table that is written out here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mmm import MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.core.types import RequiredFeatures
from mmm.encoders import EncoderConfig, Hiera, Swin, TimmEncoder, VisionTransformer, encoders
from mmm.maskers import RandomMasker
from mmm.pools import AttentivePool
from mmm.tokenizers import Patches, tokenizers
from mmm.train.config import TrainConfig
from mmm.train.optimizer import layer_groups, make_optimizer
from mmm.train.schedule import set_learning_rate

DEPTH = 3
# For three blocks and a decay of 0.5, the embedding has 1/16 of the rate, the blocks 1/8, 1/4 and 1/2, and all else the full rate.
SCALES = {
    "encoder.cls_token": 1 / 16,
    "encoder.pos_embed": 1 / 16,
    "encoder.patch_embed.proj.weight": 1 / 16,
    "encoder.patch_embed.proj.bias": 1 / 16,
    **{
        f"encoder.blocks.{block}.{name}": scale
        for block, scale in ((0, 1 / 8), (1, 1 / 4), (2, 1 / 2))
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for name in (f"{part}.weight", f"{part}.bias")
    },
    "encoder.norm.weight": 1.0,
    "encoder.norm.bias": 1.0,
    "head.fc_norm.weight": 1.0,
    "head.fc_norm.bias": 1.0,
    "head.linear.weight": 1.0,
    "head.linear.bias": 1.0,
}
DECAYED = {name for name in SCALES if name.endswith("weight") and "norm" not in name}


def classifier(attentive: bool = False) -> Classifier:
    config = VisionTransformer.Config(width=24, depth=DEPTH, heads=2)
    encoder = encoders.build(config, token=(4, 4), channels=3, grid=(2, 2), required=RequiredFeatures())
    encoder.pos_embed.requires_grad_(True)
    tokenizer = tokenizers.build(Patches.Config(size=4), channels=3)
    pool = AttentivePool.Config(heads=2) if attentive else None
    return Classifier.build(tokenizer, encoder, classes=5, pool=pool, head=HeadConfig(norm="layer"))


def settings(model: Classifier, groups: list[dict[str, object]], key: str) -> dict[str, object]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group[key] for group in groups for parameter in group["params"]}  # type: ignore


@pytest.mark.parametrize(
    ("config", "grid", "layers"),
    [
        (Hiera.Config(width=8, heads=1, stages=(1, 2, 1), mask_unit=4), (2, 2), 4),
        (Swin.Config(width=8, heads=1, stages=(1, 2), patch=4, window=2), (2, 2), 3),
        (TimmEncoder.Config(model="test_vit"), (2, 2), 6),
    ],
    ids=["hiera", "swin", "timm"],
)
def test_layers_of_other_encoders(config: EncoderConfig, grid: tuple[int, int], layers: int) -> None:
    """The embedding comes first, then one layer per block (a stage's merging belongs to its first block), then the head."""
    side = config.token or 4
    encoder = encoders.build(config, token=(side, side), channels=3, grid=grid, required=RequiredFeatures(last=False))
    tokenizer = tokenizers.build(Patches.Config(size=side), channels=3)
    model = Classifier.build(tokenizer, encoder, classes=5, head=HeadConfig(norm="layer"))
    found = settings(model, layer_groups(model, 1.0, 0.5), "lr_scale")
    assert found["head.linear.weight"] == 1.0
    scales = sorted(
        {scale for name, scale in found.items() if name.startswith("encoder.") and "norm." not in name.split("blocks")[0]}
    )
    assert len(scales) == layers + 1
    first = [scale for name, scale in found.items() if "patch_embed" in name or "pos_embed" in name]
    assert set(first) == {scales[0]}
    decays = settings(model, layer_groups(model, 1.0, 0.5), "weight_decay")
    assert not any(decay for name, decay in decays.items() if name.endswith(("cls_token", "reg_token", "pos_embed")))
    assert any(decays.values())


def test_every_parameter_has_the_scale_of_its_layer() -> None:
    model = classifier()
    assert settings(model, layer_groups(model, 0.05, 0.5), "lr_scale") == SCALES


def test_what_is_decayed() -> None:
    """Matrices are decayed; vectors, positions and the class token are not."""
    model = classifier()
    decays = settings(model, layer_groups(model, 0.05, 0.5), "weight_decay")
    assert {name for name, decay in decays.items() if decay == 0.05} == DECAYED
    assert {decays[name] for name in SCALES.keys() - DECAYED} == {0.0}


def test_a_pool_learns_as_the_head_does() -> None:
    """The pool's parameters may have the same names as an encoder's."""
    model = classifier(attentive=True)
    scales = settings(model, layer_groups(model, 0.05, 0.5), "lr_scale")
    assert {scale for name, scale in scales.items() if name.startswith("pool.")} == {1.0}
    assert {name: scale for name, scale in scales.items() if not name.startswith("pool.")} == SCALES


def test_frozen_parameters_are_in_no_group_and_move_no_layer() -> None:
    model = classifier()
    model.encoder.pos_embed.requires_grad_(False)
    model.encoder.get_submodule("blocks.1").requires_grad_(False)
    scales = settings(model, layer_groups(model, 0.05, 0.5), "lr_scale")
    assert scales == {n: s for n, s in SCALES.items() if n != "encoder.pos_embed" and not n.startswith("encoder.blocks.1.")}


def test_the_schedule_sets_each_group_its_share_and_the_step_takes_it() -> None:
    """The first step of Adam changes every weight by its learning rate, for any gradient."""
    model = classifier()
    config = TrainConfig(batch_size=1, steps=1, learning_rate=1.0, weight_decay=0.0)
    optimizer = make_optimizer(model, config, layer_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    assert settings(model, optimizer.param_groups, "lr") == pytest.approx({name: 0.1 * scale for name, scale in SCALES.items()})
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(before[name] - value, torch.full_like(value, 0.1 * SCALES[name]), rtol=1e-3, atol=1e-6)


def test_without_layer_decay_pretraining_keeps_its_groups() -> None:
    """In pretraining the class token is decayed, as in MAE, and all layers have the same learning rate."""
    model = classifier()
    optimizer = make_optimizer(model, TrainConfig(batch_size=1, steps=1, learning_rate=1.0, weight_decay=0.05))
    assert settings(model, optimizer.param_groups, "weight_decay")["encoder.cls_token"] == 0.05
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0}


def test_tokens_and_learned_positions_are_decayed_on_request_alone(build: Callable[..., MaskedModel]) -> None:
    """VideoMAE's no_weight_decay lists them by name (modeling_pretrain.py); MAE's rule depends on the number of dimensions only."""
    encoder = VisionTransformer.Config(width=24, depth=1, heads=2, positions="learned")
    model = build(encoder=encoder, masker=RandomMasker.Config(blank=True))
    config = TrainConfig(batch_size=1, steps=1, learning_rate=1.0, weight_decay=0.05)
    tokens = {"encoder.cls_token", "encoder.mask_token", "encoder.pos_embed", "decoder.mask_token"}
    for decayed in (True, False):
        optimizer = make_optimizer(model, replace(config, decay_tokens=decayed))
        decays = settings(model, optimizer.param_groups, "weight_decay")
        assert {decays[name] for name in tokens} == {0.05 if decayed else 0.0}
        assert decays["encoder.blocks.0.attn.qkv.weight"] == 0.05
        assert decays["encoder.norm.weight"] == 0.0
