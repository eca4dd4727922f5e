"""Files in MAE's official layout load with MAE's loss, every name in them is checked, and they are written back."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import restated_mae
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmm import Mask, MaskedModel
from mmm.classifier import Classifier
from mmm.core.types import RequiredFeatures
from mmm.decoders import LinearDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.pools import ClassPool, MeanPool
from mmm.tokenizers import Patches
from mmm.weights.build import HEADS as PUBLISHED
from mmm.weights.build import MAE_DECODER_HEADS
from mmm.weights.build import build as build_parts
from mmm.weights.formats.base import find_input
from mmm.weights.formats.mae import to_mae
from mmm.weights.formats.timm import to_timm
from mmm.weights.load import load, without_head

Weights = dict[str, Tensor]
PATCH, HEADS, DECODER_HEADS = 4, 2, 4


def linear(name: str, inputs: int, outputs: int) -> Weights:
    return {f"{name}.weight": 0.2 * torch.randn(outputs, inputs), f"{name}.bias": 0.1 * torch.randn(outputs)}


def norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


def blocks(name: str, width: int, depth: int) -> Weights:
    made: Weights = {}
    for i in range(depth):
        at = f"{name}.{i}"
        made |= norm(f"{at}.norm1", width) | linear(f"{at}.attn.qkv", width, 3 * width) | linear(f"{at}.attn.proj", width, width)
        made |= norm(f"{at}.norm2", width) | linear(f"{at}.mlp.fc1", width, 4 * width) | linear(f"{at}.mlp.fc2", 4 * width, width)
    return made


def positions(grid: tuple[int, int], width: int) -> Tensor:
    return restated_mae.table(*grid, width).float()[None]


def encoder_file(width: int = 32, depth: int = 3, grid: tuple[int, int] = (3, 3), channels: int = 3) -> Weights:
    """Returns the content of `mae_pretrain_vit_*.pth`, made from the published table of names."""
    made = {"cls_token": torch.randn(1, 1, width), "pos_embed": positions(grid, width)}
    made |= {
        "patch_embed.proj.weight": 0.2 * torch.randn(width, channels, PATCH, PATCH),
        "patch_embed.proj.bias": torch.randn(width),
    }
    return made | blocks("blocks", width, depth) | norm("norm", width)


def full_file(width: int = 32, depth: int = 3, inner: int = 16, grid: tuple[int, int] = (3, 3), channels: int = 3) -> Weights:
    """Returns the content of `mae_pretrain_vit_*_full.pth`."""
    made = encoder_file(width, depth, grid, channels) | linear("decoder_embed", width, inner) | norm("decoder_norm", inner)
    made |= {"mask_token": torch.randn(1, 1, inner), "decoder_pos_embed": positions(grid, inner)}
    return made | blocks("decoder_blocks", inner, 2) | linear("decoder_pred", inner, channels * PATCH**2)


def classifier_file(pooled: bool) -> Weights:
    """Returns the weights that fine-tuning writes: `fc_norm` instead of `norm` if the mean of the tokens is classified."""
    made = encoder_file() | linear("head", 32, 10)
    if pooled:
        made = {name: value for name, value in made.items() if not name.startswith("norm.")} | norm("fc_norm", 32)
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes weights as MAE's training script does."""

    def to_file(weights: Weights, name: str = "checkpoint-799.pth") -> Path:
        options = argparse.Namespace(lr=1e-3, output_dir=Path("runs"), norm_pix_loss=True)
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
        saved = {"model": weights, "optimizer": optimizer, "epoch": 799, "scaler": {"scale": 65536.0}, "args": options}
        torch.save(saved, tmp_path / name)
        return tmp_path / name

    return to_file


def load_small(path: Path, **arguments: object) -> MaskedModel:
    return load(path, **({"heads": HEADS, "decoder_heads": DECODER_HEADS} | arguments))  # type: ignore


def official_loss(weights: Weights, images: Tensor, mask: Mask, norm_pix: bool = True) -> Tensor:
    return restated_mae.loss(images, weights, mask.visible.tolist(), PATCH, HEADS, DECODER_HEADS, norm_pix)


@pytest.mark.parametrize("norm_pix", [None, True, False])
def test_loss_is_the_official_one(write: Callable[..., Path], norm_pix: bool | None) -> None:
    weights = full_file()
    images, order = torch.randn(2, 3, 12, 12), torch.rand(2, 9).argsort(dim=1)
    mask = Mask(order[:, :3], order[:, 3:])
    model = load_small(write(weights), norm_pix=norm_pix)
    expected = official_loss(weights, images, mask, norm_pix is not False)
    assert model(images, mask).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    exact = official_loss({name: value.double() for name, value in weights.items()}, images.double(), mask, norm_pix is not False)
    assert model.double()(images.double(), mask).loss.item() == pytest.approx(exact.item(), rel=1e-12)


@pytest.mark.parametrize(("grid", "channels"), [((2, 5), 3), ((4, 4), 1), ((3, 3), 5)])
def test_other_grids_and_channels(write: Callable[..., Path], grid: tuple[int, int], channels: int) -> None:
    weights = full_file(grid=grid, channels=channels)
    size = (PATCH * grid[0], PATCH * grid[1])
    model = load_small(write(weights), image_size=None if grid[0] == grid[1] else size)
    images, order = torch.randn(2, channels, *size), torch.rand(2, grid[0] * grid[1]).argsort(dim=1)
    mask = Mask(order[:, :3], order[:, 3:])
    assert model(images, mask).loss.item() == pytest.approx(official_loss(weights, images, mask).item(), rel=1e-6)


def test_safetensors_and_bare_weights(tmp_path: Path, write: Callable[..., Path]) -> None:
    weights = full_file()
    save_file(weights, tmp_path / "mae.safetensors")
    torch.save(weights, tmp_path / "bare.pt")
    torch.save(weights, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("mae.safetensors", "bare.pt", "legacy.pth"):
        assert_same(to_mae(load_small(tmp_path / name)), weights)


def assert_same(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_round_trip_is_bit_for_bit(write: Callable[..., Path], build: Callable[..., MaskedModel]) -> None:
    weights = full_file()
    assert_same(to_mae(load_small(write(weights))), weights)
    model = build(size=(12, 12))
    again = load(write(to_mae(model)), heads=2, decoder_heads=2)
    assert_same(again.state_dict(), model.state_dict())
    frozen = [name for name, weight in again.named_parameters() if not weight.requires_grad]
    assert frozen == ["encoder.pos_embed", "decoder.pos_embed"]


def test_encoder_alone(write: Callable[..., Path]) -> None:
    weights = encoder_file()
    model = load(write(weights), heads=HEADS)
    images = torch.randn(2, 3, 12, 12)
    assert model.decoder is None
    assert_same(to_mae(model), weights)
    whole = {**full_file(), **weights}
    assert torch.equal(model.encode(images).last, load_small(write(whole, "whole.pth")).encode(images).last)
    with pytest.raises(ValueError, match="has no decoder"):
        model(images)
    with pytest.raises(ValueError, match=r"decoder_heads=4 was given, but .* takes heads, image_size; leave it out"):
        load(write(weights), heads=HEADS, decoder_heads=4)


@pytest.mark.parametrize("pooled", [True, False])
def test_fine_tuned_models_keep_their_heads(write: Callable[..., Path], caplog: pytest.LogCaptureFixture, pooled: bool) -> None:
    weights, images = classifier_file(pooled), torch.randn(2, 3, 12, 12)
    classifier = load(write(weights), heads=HEADS)
    assert isinstance(classifier, Classifier)
    assert isinstance(classifier.pool, MeanPool if pooled else ClassPool)
    assert_same(to_timm(classifier), weights)
    tokens = classifier.encoder(classifier.tokenizer.split(images), (3, 3), None).last
    if pooled:
        norm = {"weight": weights["fc_norm.weight"], "bias": weights["fc_norm.bias"]}
        pooled_tokens = torch.nn.functional.layer_norm(tokens[:, 1:].mean(1), (32,), **norm, eps=1e-6)
    else:
        pooled_tokens = tokens[:, 0]
    torch.testing.assert_close(classifier(images), pooled_tokens @ weights["head.weight"].T + weights["head.bias"])
    encoder = without_head(classifier, "file")
    assert encoder.decoder is None
    assert "file is a classifier" in caplog.text
    assert torch.equal(encoder.encode(images).last, tokens)


def test_heads_come_from_the_published_tables(write: Callable[..., Path]) -> None:
    assert PUBLISHED == {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
    assert MAE_DECODER_HEADS == {256: 8, 512: 16}
    path = write(full_file(width=192, depth=1, inner=256))
    for given, expected in (({}, (3, 8)), ({"heads": 1}, (1, 8)), ({"decoder_heads": 2}, (3, 2))):
        model = load(path, **given)
        assert (model.encoder.blocks[0].attn.num_heads, model.decoder.blocks[0].attn.num_heads) == expected  # type: ignore


@pytest.mark.parametrize(
    ("encoder", "patch", "names", "numbers"),
    [((768, 12), 16, 254, 111_907_840), ((1024, 24), 16, 398, 329_541_888), ((1280, 32), 14, 494, 657_074_508)],
    ids=["base", "large", "huge"],
)
def test_published_sizes(encoder: tuple[int, int], patch: int, names: int, numbers: int) -> None:
    config = VisionTransformer.Config(width=encoder[0], depth=encoder[1], heads=16)
    tokenizer, decoder = Patches.Config(size=patch), SelfAttentionDecoder.Config(width=512, depth=8, heads=16)
    model = build_parts(config, tokenizer=tokenizer, data=find_input((224, 224), 3), required=RequiredFeatures(), decoder=decoder)
    weights = to_mae(model)
    assert (len(weights), sum(value.numel() for value in weights.values())) == (names, numbers)


def test_log_says_what_was_read(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmm"):
        load_small(write(full_file()))
    facts = ("all 74 weights used", "width 32 and 3 blocks", "width 16 and 2 blocks", "2 heads", "fixed positions", "standardised")
    assert all(fact in caplog.text for fact in facts)


def test_learned_positions_are_kept(write: Callable[..., Path]) -> None:
    weights = encoder_file() | {"pos_embed": torch.randn(1, 10, 32)}
    model = load(write(weights), heads=HEADS)
    assert model.encoder.pos_embed.requires_grad  # type: ignore
    assert_same(to_mae(model), weights)


def test_halves_load_as_singles(write: Callable[..., Path]) -> None:
    weights = {name: value.half() for name, value in full_file().items()}
    loaded = to_mae(load_small(write(weights)))
    assert_same(loaded, {name: value.float() for name, value in weights.items()})


@pytest.mark.parametrize("upcast", [False, True])
def test_positions_in_bf16_are_still_the_fixed_ones(write: Callable[..., Path], upcast: bool) -> None:
    """bf16 rounds by 2^-9 of the largest value, which is more than the tolerance for half precision."""
    weights = {name: value.bfloat16() for name, value in encoder_file(width=192).items()}
    model = load(write({name: value.float() for name, value in weights.items()} if upcast else weights))
    assert model.encoder.config.positions == "sine_cosine"  # type: ignore
    assert not model.encoder.pos_embed.requires_grad  # type: ignore


def test_hidden_widths_whose_ratio_is_no_round_number(write: Callable[..., Path]) -> None:
    """The ratio is 240 / 44, and 44 (240 / 44) is below 240 in floating point."""
    weights = encoder_file(width=44)
    for name, value in weights.items():
        if ".mlp." in name and value.shape != (44,):
            axis = value.shape.index(176)
            weights[name] = torch.cat([value, value], dim=axis).narrow(axis, 0, 240)
    model = load(write(weights), heads=HEADS)
    assert_same(to_mae(model), weights)


def test_loading_leaves_the_generator_alone(write: Callable[..., Path]) -> None:
    path, before = write(full_file()), torch.get_rng_state()
    load_small(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("weights", "heads"), [(full_file(), DECODER_HEADS), (encoder_file(), None)], ids=["full", "encoder"])
def test_each_missing_name_is_named(write: Callable[..., Path], weights: Weights, heads: int | None) -> None:
    for name in weights:
        with pytest.raises(ValueError, match=rf"lacks {name.replace('.', '[.]')}($|,|;| )"):
            load_small(write({other: value for other, value in weights.items() if other != name}), decoder_heads=heads)


def test_each_misshapen_name_is_named(write: Callable[..., Path]) -> None:
    weights = full_file()
    for name, value in weights.items():
        with pytest.raises(ValueError, match=name.replace(".", "[.]")):
            load_small(write(weights | {name: torch.cat([value, value[:1]])}))
        with pytest.raises(ValueError, match=name.replace(".", "[.]")):
            load_small(write(weights | {name: value[None]}))


@pytest.mark.parametrize("name", ["extra", "blocks.2.ls1.gamma", "norm_pre.weight", "decoder_blocks.0.attn.q_bias", "head.weight"])
def test_extra_names_are_named(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=f"has {name}, which the model does not have"):
        load_small(write(full_file() | {name: torch.zeros(3)}))


def test_integers_are_no_weights(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"dense real numbers under norm\.bias"):
        load_small(write(full_file() | {"norm.bias": torch.zeros(32, dtype=torch.int64)}))


def test_missing_block_is_named(write: Callable[..., Path]) -> None:
    weights = {name: value for name, value in full_file().items() if not name.startswith("blocks.1.")}
    with pytest.raises(ValueError, match=r"lacks blocks\.1$"):
        load_small(write(weights))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": None}, "width of 32, for which no published number of heads is known; give heads="),
        ({"decoder_heads": None}, "width of 16, for which no published number of heads is known; give decoder_heads="),
        ({"heads": 5}, "heads=5 does not divide the width of 32"),
        ({"decoder_heads": 3}, "decoder_heads=3 does not divide the width of 16"),
        ({"image_size": 16}, "image_size=16 does not fit .* 9 patches of 4 x 4"),
        ({"image_size": (12, 13)}, "does not fit"),
        ({"image_size": (-12, -12)}, "does not fit"),
        ({"image_size": (12,)}, "does not fit"),
    ],
)
def test_arguments_are_checked(write: Callable[..., Path], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_small(write(full_file()), **arguments)


def test_positions_of_no_square_ask_for_the_size(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="10 tokens, which make no square; give image_size="):
        load_small(write(full_file(grid=(2, 5))))


def test_export_refuses_what_has_no_place(build: Callable[..., MaskedModel]) -> None:
    blank = RandomMasker.Config(blank=True)
    with pytest.raises(ValueError, match=r"cannot hold encoder\.mask_token"):
        to_mae(build(masker=blank, decoder=LinearDecoder.Config()))
    with pytest.raises(ValueError, match="with a class token"):
        to_mae(build(encoder=VisionTransformer.Config(width=24, depth=2, heads=2, class_token=False)))
    with pytest.raises(ValueError, match="is for images"):
        to_mae(build(size=(4, 8, 8)))
