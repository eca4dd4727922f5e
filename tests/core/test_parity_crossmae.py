"""Compares CrossMAE with the published one: predictions, loss and the gradient of every weight, against a restatement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import restated_crossmae
import torch
from test_parity_mae import LIMITS, gradient_error, noisy
from torch import Tensor

from mmm import Input, Mask, MaskedModel, ModelConfig
from mmm.core.rng import sample_keys
from mmm.decoders import CrossAttentionDecoder, DecoderConfig, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker, MaskerConfig, RandomMasker, TubeMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches


@dataclass(frozen=True)
class Sizes:
    image: tuple[int, int]
    patch: int
    encoder: tuple[int, int, int]  # width, depth, heads
    decoder: tuple[int, int, int]
    batch: int


TINY = Sizes((32, 40), 8, (48, 3, 4), (32, 4, 2), batch=3)  # 20 tokens: 5 visible; 15, 5 or 3 predicted
FULL_GRID = Sizes((56, 56), 4, (24, 2, 2), (16, 2, 2), batch=1)  # 196 tokens: 49 visible; 147, 49 or 30 predicted
SMALL = Sizes((224, 224), 16, (384, 12, 6), (256, 12, 8), batch=1)
BASE = Sizes((224, 224), 16, (768, 12, 12), (512, 12, 16), batch=1)
CROSS = CrossAttentionDecoder.Config(fusion="linear")
NAMES = {
    "embed": "decoder_embed",
    "blocks": "decoder_blocks",
    "norm": "decoder_norm",
    "head": "decoder_pred",
    "pos_embed": "decoder_pos_embed",
    "mask_token": "mask_token",
    "fusion.norms": "dec_norms",
    "fusion.mix": "wfm.linear",
}


def crossmae(sizes: Sizes, decoder: DecoderConfig = CROSS, predict: float | None = None) -> MaskedModel:
    width, depth, heads = sizes.encoder
    inner, layers, inner_heads = sizes.decoder
    config = ModelConfig(
        tokenizer=Patches.Config(size=sizes.patch),
        masker=RandomMasker.Config(ratio=0.75, predict=predict),
        encoder=VisionTransformer.Config(width=width, depth=depth, heads=heads),
        decoder=replace(decoder, width=inner, depth=layers, heads=inner_heads),
        target=PixelTarget.Config(),
    )
    model = MaskedModel.build(config, Input(size=sizes.image))
    noisy_but_tables(model)
    return model


def noisy_but_tables(model: MaskedModel) -> None:
    """Draws weights as large as a trained model's, and keeps the position tables, so that both sides have the same ones."""
    tables = {name: table.clone() for name, table in model.named_parameters() if not table.requires_grad}
    noisy(model)
    model.load_state_dict(tables, strict=False)


def published_name(ours: str) -> str:
    """Returns the weight's name in the released files."""
    side, rest = ours.split(".", 1)
    if side == "encoder":
        return rest
    start = next(name for name in NAMES if rest == name or rest.startswith(name + "."))
    return NAMES[start] + rest[len(start) :]


def draw(model: MaskedModel, sizes: Sizes, dtype: torch.dtype) -> tuple[Tensor, Mask]:
    images = torch.randn(sizes.batch, 3, *sizes.image, dtype=dtype)
    return images, model.masker(sample_keys(0, 0, torch.arange(sizes.batch)), model.tokenizer.grid(images))


def compare(model: MaskedModel, sizes: Sizes, dtype: torch.dtype, mask: Mask | None = None) -> None:
    """Asserts that predictions, loss and gradients are within the limits."""
    model = model.to(dtype)
    images, drawn = draw(model, sizes, dtype)
    mask = mask or drawn
    weights = {published_name(name): w.detach().clone().requires_grad_(w.requires_grad) for name, w in model.named_parameters()}
    keeps, asked = mask.visible.tolist(), mask.predict.tolist()
    expected, prediction = restated_crossmae.loss(images, weights, keeps, asked, sizes.patch, sizes.encoder[2], sizes.decoder[2])
    expected.backward()
    output = model(images, mask=mask)
    output.loss.backward()
    loss_limit, gradient_limit = LIMITS[dtype]
    assert output.loss.dtype == dtype
    assert output.loss.item() == pytest.approx(expected.item(), rel=loss_limit)
    off = (output.prediction - prediction).norm() / prediction.norm()
    assert off <= gradient_limit, f"predictions are off by {off:.1e}"
    mine = {published_name(name): w.grad for name, w in model.named_parameters() if w.requires_grad}
    worst, where = gradient_error(mine, {name: w.grad for name, w in weights.items() if w.requires_grad})
    assert worst <= gradient_limit, f"the gradient of {where} is off by {worst:.1e}"


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
PREDICT = pytest.mark.parametrize("predict", [0.75, 0.25, 0.15])


@DTYPES
@PREDICT
@pytest.mark.parametrize("self_attention", [False, True], ids=["cross", "cross_and_self"])
def test_a_second_statement_gives_the_same(predict: float, self_attention: bool, dtype: torch.dtype) -> None:
    compare(crossmae(TINY, replace(CROSS, self_attention=self_attention), predict), TINY, dtype)


@pytest.mark.parametrize("asked", [147, 49, 30])
def test_so_it_does_on_the_full_grid(asked: int) -> None:
    """The published counts are 49 visible tokens, and 98 or 117 neither visible nor predicted."""
    model = crossmae(FULL_GRID)
    mask = draw(model, FULL_GRID, torch.float32)[1]
    compare(model, FULL_GRID, torch.float32, replace(mask, predict=mask.predict[:, -asked:]))


@pytest.mark.parametrize(("predict", "counts"), [(0.75, (49, 147)), (0.25, (49, 49)), (0.15, (49, 29))])
def test_the_masker_counts_as_published(predict: float, counts: tuple[int, int]) -> None:
    """At 15 % of 196, 29.4 tokens become 29 here; the published code truncates the number of dropped tokens and keeps 30."""
    mask = draw(crossmae(FULL_GRID, predict=predict), FULL_GRID, torch.float32)[1]
    assert (mask.visible.shape[1], mask.predict.shape[1]) == counts


@DTYPES
@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(replace(CROSS, fusion_input=False), id="without_input"),
        pytest.param(replace(CROSS, fusion="none"), id="without_fusion"),
        pytest.param(SelfAttentionDecoder.Config(fusion="linear"), id="self_attention_of_a_mixture"),
        pytest.param(SelfAttentionDecoder.Config(fusion="none"), id="self_attention"),
    ],
)
def test_so_it_does_for_what_else_the_flags_allow(decoder: DecoderConfig, dtype: torch.dtype) -> None:
    compare(crossmae(TINY, decoder, 0.25), TINY, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SMALL, BASE], ids=["small", "base"])
@DTYPES
@PREDICT
def test_so_it_does_at_the_published_sizes(predict: float, dtype: torch.dtype, sizes: Sizes) -> None:
    compare(crossmae(sizes, predict=predict), sizes, dtype)


def test_the_comparison_itself_sees_a_small_error() -> None:
    model = crossmae(TINY, predict=0.25)
    with torch.no_grad():
        model.decoder.fusion.mix.weight[0, 1] += 1e-6  # an error of a millionth in one map's weight
    images, mask = draw(model.double(), TINY, torch.float64)
    weights = {published_name(name): w.detach().clone() for name, w in model.named_parameters()}
    weights["wfm.linear.weight"][0, 1] -= 1e-6
    sets = mask.visible.tolist(), mask.predict.tolist()
    expected, _ = restated_crossmae.loss(images, weights, *sets, TINY.patch, TINY.encoder[2], TINY.decoder[2])
    assert abs(model(images, mask=mask).loss.item() / expected.item() - 1) > 1e-9


def test_position_tables_are_the_published_ones_to_their_fp32() -> None:
    """The released tables are computed in fp32, 1.6e-6 off the exact values (14 x 14); at 448 pixels they are not rescaled."""
    for side, limit in ((14, 3e-6), (28, 6e-6)):
        model = crossmae(replace(TINY, image=(8 * side, 8 * side), encoder=(64, 1, 2), decoder=(32, 1, 2)))
        for part, width in ((model.encoder, 64), (model.decoder, 32)):
            off = (part.pos_embed[0] - restated_crossmae.table(side, width)).abs().max()
            assert 1e-7 < off <= limit
            assert not part.pos_embed.requires_grad


# --- a part of the hidden tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [TINY, FULL_GRID, replace(SMALL, encoder=(384, 1, 6), decoder=(256, 2, 8))], ids=str)
def test_predicting_a_part_is_predicting_all_and_choosing(sizes: Sizes) -> None:
    """They are equal up to rounding, because matrix products of one row and of many rows use different programs."""
    model = crossmae(sizes)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = model.to(dtype)
        images, mask = draw(model, sizes, dtype)
        whole = model(images, mask=mask)
        for first, last in ((0, 1), (2, 5), (0, mask.predict.shape[1] // 3)):
            part = model(images, mask=replace(mask, predict=mask.predict[:, first:last]))
            assert (part.prediction - whole.prediction[:, first:last]).abs().max() <= limit
            assert torch.equal(part.target, whole.target[:, first:last])


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("part", [49, 30])
def test_the_published_parts_are_the_same_to_the_last_bit(part: int, one_thread: None) -> None:
    """In fp32, for 49 or 30 of 147 tokens, with one thread: several threads split a product's rows according to their number."""
    sizes = replace(SMALL, encoder=(384, 1, 6), decoder=(256, 2, 8), batch=2)
    model = crossmae(sizes)
    images, mask = draw(model, sizes, torch.float32)
    chosen = model(images, mask=replace(mask, predict=mask.predict[:, -part:])).prediction
    assert torch.equal(chosen, model(images, mask=mask).prediction[:, -part:])


def test_with_self_attention_it_is_not() -> None:
    model = crossmae(TINY, replace(CROSS, self_attention=True)).double()
    images, mask = draw(model, TINY, torch.float64)
    part = model(images, mask=replace(mask, predict=mask.predict[:, :3])).prediction
    assert (part - model(images, mask=mask).prediction[:, :3]).abs().max() > 1e-3


def test_a_self_attention_decoder_may_predict_a_part_too() -> None:
    """Hidden tokens that are not predicted are not decoded; predicted ones attend to each other and to the visible ones."""
    model = crossmae(TINY, SelfAttentionDecoder.Config(), predict=0.25).double()
    images, mask = draw(model, TINY, torch.float64)
    assert mask.predict.shape[1] == 5
    dropped = model.tokenizer.split(images).clone()
    unseen = [sorted(set(range(20)) - set(row.tolist())) for row in torch.cat([mask.visible, mask.predict], dim=1)]
    dropped[torch.arange(3)[:, None], torch.tensor(unseen)] = math.nan
    output = model(model.tokenizer.join(dropped, (4, 5)), mask=mask)
    assert output.loss.isfinite()
    assert torch.equal(output.loss, model(images, mask=mask).loss)


# --- fusion ------------------------------------------------------------------------------------------------------------------


def test_some_blocks_are_all_blocks_with_the_others_at_zero() -> None:
    whole = crossmae(TINY, predict=0.25).double()
    some = crossmae(TINY, replace(CROSS, fusion_blocks=(1, 3)), predict=0.25).double()
    state = whole.state_dict()
    state["decoder.fusion.mix.weight"] = state["decoder.fusion.mix.weight"][:, [0, 1, 3]]  # 0 is the encoder's input
    some.load_state_dict(state)
    with torch.no_grad():
        whole.decoder.fusion.mix.weight[:, 2] = 0
    images, mask = draw(whole, TINY, torch.float64)
    assert (whole(images, mask=mask).prediction - some(images, mask=mask).prediction).abs().max() <= 1e-12


@pytest.mark.parametrize(("size", "bound"), [("base", 0.4899), ("large", 0.4028)])
def test_fusion_starts_as_the_released_models_did(size: str, bound: float) -> None:
    """Weights are Xavier-uniform, U(+-sqrt(6 / (k + d))): the published code itself overwrites the published N(0, 1 / k)."""
    width, depth, heads = {"base": (96, 12, 2), "large": (96, 24, 2)}[size]
    config = ModelConfig(
        tokenizer=Patches.Config(size=8),
        masker=RandomMasker.Config(),
        encoder=VisionTransformer.Config(width=width, depth=depth, heads=heads),
        decoder=replace(CROSS, width=32, depth=12, heads=2),
        target=PixelTarget.Config(),
    )
    weight = MaskedModel.build(config, Input(size=(32, 32)), seed=0).decoder.fusion.mix.weight
    assert weight.shape == (12, depth + 1)
    assert 0.97 * bound < weight.abs().max() <= bound + 1e-4
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_fusion_in_bf16_is_fusion_to_its_precision() -> None:
    model = crossmae(TINY, predict=0.25)
    images, mask = draw(model, TINY, torch.float32)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(images, mask=mask).loss
        loss.backward()
        gradients.append([w.grad.clone() for w in (model.decoder.fusion.mix.weight, model.encoder.blocks[0].mlp.fc2.weight)])
    for exact, rough in zip(*gradients, strict=True):
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).norm() / exact.norm() < 0.05


def test_with_fusion_too_the_forward_is_one_graph() -> None:
    model = crossmae(replace(TINY, encoder=(48, 1, 4), decoder=(32, 1, 2)), predict=0.25)
    images, mask = draw(model, TINY, torch.float32)
    torch._dynamo.reset()
    losses = [torch.compile(model, backend="aot_eager", fullgraph=True)(images, mask=mask).loss, model(images, mask=mask).loss]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    weights = [w for w in model.parameters() if w.requires_grad]
    for ours, plain in zip(*(torch.autograd.grad(loss, weights) for loss in losses), strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)


@pytest.mark.parametrize("blocks", [(), (0, 1), (2, 4)])
def test_blocks_that_an_encoder_has_not_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"decoder\.fusion_blocks .* 1 to 3"):
        crossmae(TINY, replace(CROSS, fusion_blocks=blocks))


# --- other maskers, and clips ------------------------------------------------------------------------------------------------

Build = Callable[..., MaskedModel]
HERE = CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")


@pytest.mark.parametrize(
    ("size", "masker"),
    [
        pytest.param((24, 32), BlockMasker.Config(ratio=0.75, predict=0.25), id="blocks"),
        pytest.param((4, 12, 16), TubeMasker.Config(ratio=0.75), id="tubes"),
        pytest.param((8, 12, 16), TubeMasker.Config(ratio=0.75, predict=0.25), id="tubes_quarter"),
        pytest.param((4, 12, 16), RandomMasker.Config(ratio=0.9, predict=0.5), id="random_clip"),
        pytest.param((4, 24, 32), BlockMasker.Config(ratio=0.6, predict=0.3), id="block_clip"),
    ],
)
@pytest.mark.parametrize("decoder", [HERE, replace(HERE, self_attention=True)], ids=["cross", "cross_and_self"])
def test_any_masker_and_clips_work_unchanged(
    size: tuple[int, ...], masker: MaskerConfig, decoder: DecoderConfig, build: Build
) -> None:
    model = build(size=size, masker=masker, decoder=decoder).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), model.tokenizer.grid(x))
    output = model(x, mask=mask)
    output.loss.backward()
    tokens = model.tokenizer.split(x).shape[1]
    plane = size[-1] * size[-2] // 16  # places, each a column of tokens over time
    share = masker.predict or masker.ratio
    asked = round(share * tokens) if isinstance(masker, RandomMasker.Config) else round(share * plane) * (tokens // plane)
    assert output.prediction.shape == (2, asked, model.target.width)
    assert all(w.grad.any() for w in model.parameters() if w.requires_grad)
    hidden = torch.ones(2, tokens, dtype=torch.bool).scatter(1, mask.visible, value=False)
    other = torch.where(hidden[..., None], torch.randn(2, tokens, model.tokenizer.width).double(), model.tokenizer.split(x))
    assert torch.equal(model(model.tokenizer.join(other, model.tokenizer.grid(x)), mask=mask).prediction, output.prediction)
    if not decoder.self_attention:
        part = model(x, mask=replace(mask, predict=mask.predict[:, 1:3])).prediction
        assert (part - output.prediction[:, 1:3]).abs().max() <= 1e-12
