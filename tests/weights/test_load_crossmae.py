"""Files in CrossMAE's official layout load with its loss, every name in them is checked, and they are written back."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import restated_crossmae
import torch
from safetensors.torch import save_file
from test_load_mae import assert_same, blocks, encoder_file, linear, norm
from torch import Tensor

from mmm import Mask, MaskedModel
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches
from mmm.weights.build import build as build_parts
from mmm.weights.formats.base import find_input
from mmm.weights.formats.crossmae import to_crossmae
from mmm.weights.initialize import initialise_from, refuse_other_heads
from mmm.weights.load import load

Weights = dict[str, Tensor]
PATCH, HEADS, DECODER_HEADS = 4, 2, 4
CROSS = CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")


def crossmae_file(
    width: int = 32, depth: int = 3, inner: int = 16, layers: int = 2, side: int = 3, maps: int = 4, self_attn: bool = False
) -> Weights:
    """Returns the content of the released files, made from the published table of names."""
    made = encoder_file(width, depth, (side, side))
    made = {name: value for name, value in made.items() if not name.startswith("norm.")}
    made |= {
        "pos_embed": restated_crossmae.table(side, width)[None],
        "decoder_pos_embed": restated_crossmae.table(side, inner)[None],
        "mask_token": torch.randn(1, 1, inner),
        "wfm.linear.weight": 0.3 * torch.randn(layers, maps),
    }
    for i in range(layers):
        at = f"decoder_blocks.{i}"
        own = blocks("made", inner, 1)
        made |= norm(f"dec_norms.{i}", width)
        made |= {name.replace("made.0", at): value for name, value in own.items() if ".attn." not in name}
        made |= linear(f"{at}.cross_attn.q", inner, inner) | linear(f"{at}.cross_attn.kv", width, 2 * inner)
        made |= linear(f"{at}.cross_attn.proj", inner, inner)
        if self_attn:
            made |= norm(f"{at}.norm0", inner)
            made |= linear(f"{at}.self_attn.qkv", inner, 3 * inner) | linear(f"{at}.self_attn.proj", inner, inner)
    return made | norm("decoder_norm", inner) | linear("decoder_pred", inner, 3 * PATCH**2)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes weights as the authors' training script does."""

    def to_file(weights: Weights, name: str = "checkpoint.pth") -> Path:
        options = argparse.Namespace(lr=1e-3, kept_mask_ratio=0.25, decoder_depth=2, output_dir=Path("runs"))
        torch.save({"model": weights, "epoch": 799, "scaler": {"scale": 65536.0}, "args": options}, tmp_path / name)
        return tmp_path / name

    return to_file


def load_small(path: Path, **arguments: object) -> MaskedModel:
    return load(path, **({"heads": HEADS, "decoder_heads": DECODER_HEADS} | arguments))  # type: ignore


VARIANTS = {"with_input": {}, "without_input": {"maps": 3}, "self_attention": {"self_attn": True}, "deep": {"layers": 5}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("asked", [6, 2])
def test_loss_is_the_official_one(write: Callable[..., Path], variant: str, asked: int) -> None:
    weights = crossmae_file(**VARIANTS[variant])
    images, order = torch.randn(2, 3, 12, 12), torch.rand(2, 9).argsort(dim=1)
    mask = Mask(order[:, :3], order[:, 9 - asked :])
    model = load_small(write(weights))
    sets = mask.visible.tolist(), mask.predict.tolist()
    expected, _ = restated_crossmae.loss(images, weights, *sets, PATCH, HEADS, DECODER_HEADS)
    assert model(images, mask).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    doubles = {name: value.double() for name, value in weights.items()}
    exact, prediction = restated_crossmae.loss(images.double(), doubles, *sets, PATCH, HEADS, DECODER_HEADS)
    output = model.double()(images.double(), mask)
    assert output.loss.item() == pytest.approx(exact.item(), rel=1e-12)
    assert (output.prediction - prediction).abs().max() <= 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_bit_for_bit(write: Callable[..., Path], tmp_path: Path, variant: str) -> None:
    weights = crossmae_file(**VARIANTS[variant])
    model = load_small(write(weights))
    assert_same(to_crossmae(model), weights)
    save_file(to_crossmae(model), tmp_path / "again.safetensors")
    assert_same(load_small(tmp_path / "again.safetensors").state_dict(), model.state_dict())
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert sorted(frozen) == ["decoder.pos_embed", "encoder.pos_embed"]


def test_our_own_model_goes_out_and_comes_back(write: Callable[..., Path], build: Callable[..., MaskedModel]) -> None:
    model = build(size=(12, 12), decoder=CROSS)
    again = load(write(to_crossmae(model)), heads=2, decoder_heads=2)
    assert_same(again.state_dict(), model.state_dict())
    x, mask = torch.randn(2, 3, 12, 12), Mask(torch.arange(3).repeat(2, 1), torch.arange(5, 8).repeat(2, 1))
    assert torch.equal(again(x, mask).prediction, model(x, mask).prediction)


@pytest.mark.parametrize(
    ("encoder", "decoder", "names", "numbers"),
    [
        ((384, 12), (256, 12), 347, 32_186_396),
        ((768, 12), (512, 12), 347, 127_286_428),
        ((1024, 24), (512, 12), 491, 347_940_908),
    ],
    ids=["small", "base", "large"],
)
def test_published_sizes(encoder: tuple[int, int], decoder: tuple[int, int], names: int, numbers: int) -> None:
    width, depth = encoder
    inner = CrossAttentionDecoder.Config(width=decoder[0], depth=decoder[1], heads=8, fusion="linear")
    config = VisionTransformer.Config(width=width, depth=depth, heads=width // 64)
    data = find_input((224, 224), 3)
    weights = to_crossmae(
        build_parts(config, tokenizer=Patches.Config(), data=data, required=inner.required_features(config.shape), decoder=inner)
    )
    assert (len(weights), sum(value.numel() for value in weights.values())) == (names, numbers)


def test_shapes_say_the_depth_the_maps_and_self_attention(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmm"):
        model = load_small(write(crossmae_file(depth=4, layers=3, maps=5, self_attn=True)))
    config = model.decoder.config  # type: ignore
    assert (config.depth, config.self_attention, config.fusion_blocks, config.fusion_input) == (3, True, None, True)
    assert model.encoder.required.blocks == (0, 1, 2, 3, 4)  # type: ignore
    facts = ("CrossMAE's layout", "weights used", "3 blocks that read mixtures of 5 maps", "4 decoder heads", "fixed positions")
    assert all(fact in caplog.text for fact in facts)


def test_some_blocks_are_told_by_an_argument(write: Callable[..., Path]) -> None:
    weights = crossmae_file(depth=4, maps=3)
    path = write(weights)
    with pytest.raises(ValueError, match="fuses 3 maps of an encoder of 4 blocks, .* give fusion_blocks="):
        load_small(path)
    with pytest.raises(ValueError, match=r"fusion_blocks=\(1, 2\) gives 2 numbers, but .* mixes 3 maps"):
        load_small(path, fusion_blocks=(1, 2))
    for given, reads in (((2, 3, 4), (2, 3, 4)), ((0, 2, 4), (0, 2, 4))):
        model = load_small(path, fusion_blocks=given)
        assert model.encoder.required.blocks == reads  # type: ignore
        assert_same(to_crossmae(model), weights)


def test_the_predicted_fraction_is_an_argument(write: Callable[..., Path]) -> None:
    path = write(crossmae_file(side=4))
    x = torch.randn(1, 3, 16, 16)
    assert load_small(path)(x).mask.predict.shape == (1, 12)
    assert load_small(path, predict=0.25)(x).mask.predict.shape == (1, 4)
    with pytest.raises(ValueError, match=r"masker\.predict 0\.9"):
        load_small(path, predict=0.9)


def test_448_pixels_keep_their_table(write: Callable[..., Path]) -> None:
    """The positions of 28 x 28 tokens are counted one by one, as for 14 x 14: the first 14 of a row have the same positions."""
    weights = crossmae_file(depth=1, maps=2, layers=1, side=28)
    model = load_small(write(weights))
    assert model.encoder.home == (28, 28)
    assert not model.encoder.pos_embed.requires_grad  # type: ignore
    assert torch.equal(model.encoder.pos_embed, weights["pos_embed"])  # type: ignore
    small = restated_crossmae.table(14, 32)
    assert torch.equal(model.encoder.pos_embed[0, 1:15], small[1:15])  # type: ignore


def test_heads_come_from_the_published_tables(write: Callable[..., Path]) -> None:
    model = load(write(crossmae_file(width=384, depth=1, inner=256, layers=1, maps=2)))
    assert model.encoder.blocks[0].attn.num_heads == 6  # type: ignore
    assert model.decoder.blocks[0].cross_attn.num_heads == 8  # type: ignore


# --- files that are refused --------------------------------------------------------------------------------------------------


def test_each_missing_name_is_named(write: Callable[..., Path]) -> None:
    weights = crossmae_file(depth=2, layers=1, maps=3, self_attn=True)
    for name in weights:
        with pytest.raises(ValueError, match=rf"lacks {name.replace('.', '[.]')}($|,|;| )"):
            load_small(write({other: value for other, value in weights.items() if other != name}))


def test_each_misshapen_name_is_named(write: Callable[..., Path]) -> None:
    weights = crossmae_file(depth=2, layers=1, maps=3, self_attn=True)
    for name, value in weights.items():
        with pytest.raises(ValueError, match=name.replace(".", "[.]")):
            load_small(write(weights | {name: torch.cat([value, value[:1]])}))
        with pytest.raises(ValueError, match=name.replace(".", "[.]")):
            load_small(write(weights | {name: value[None]}))


@pytest.mark.parametrize("name", ["norm.weight", "decoder_embed.weight", "dec_norms.2.weight", "decoder_blocks.0.attn.qkv.weight"])
def test_extra_names_are_named(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=f"has {name}, which the model does not have"):
        load_small(write(crossmae_file() | {name: torch.zeros(3)}))


def test_what_is_of_the_other_layout_is_refused(write: Callable[..., Path], build: Callable[..., MaskedModel]) -> None:
    with pytest.raises(ValueError, match=r"fusion_blocks=\(1,\) was given, but .* takes heads, image_size"):
        load(write(encoder_file()), heads=2, fusion_blocks=(1,))
    with pytest.raises(ValueError, match=r"CrossMAE's layout cannot hold encoder\.norm\.weight, .*decoder\.embed\.weight"):
        to_crossmae(build(size=(12, 12)))
    with pytest.raises(ValueError, match=r"cannot hold encoder\.norm\.weight"):
        to_crossmae(build(size=(12, 12), decoder=CrossAttentionDecoder.Config(width=16, depth=2, heads=2)))
    with pytest.raises(ValueError, match=r"cannot hold decoder\.embed\.weight"):
        to_crossmae(build(size=(12, 12), decoder=SelfAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")))


# --- --init ------------------------------------------------------------------------------------------------------------------


def test_a_run_may_start_from_such_a_file(write: Callable[..., Path], build: Callable[..., MaskedModel]) -> None:
    source = build(size=(12, 12), decoder=CROSS)
    path, model = write(to_crossmae(source)), build(size=(12, 12), decoder=CROSS)
    initialise_from(model, path)
    assert_same(model.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match=r"encoder\.norm\.weight"):
        initialise_from(build(size=(12, 12)), path)


def test_other_heads_of_cross_attention_are_refused(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """The number of heads appears in no shape, but changes what the weights mean."""
    one, other = (build(decoder=CrossAttentionDecoder.Config(width=16, depth=1, heads=heads)) for heads in (2, 4))
    with pytest.raises(ValueError, match=r"decoder\.blocks\.0\.cross_attn has 2 here, 4 there"):
        refuse_other_heads(one, other, "there")
