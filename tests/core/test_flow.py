"""Flow of information: hidden values and the order of tokens have no effect, and shortcuts equal the full computation.

Shapes: B samples, N tokens, V visible, Q predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mmm import Mask, MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.tokens import repeat_rows, take
from mmm.decoders import ConvolutionDecoder, CrossAttentionDecoder, LinearDecoder, SelfAttentionDecoder
from mmm.encoders import Swin, VisionTransformer
from mmm.maskers import BernoulliMasker, BlockMasker, RandomMasker, TubeMasker

SMALL = VisionTransformer.Config(width=24, depth=2, heads=2)
CROSS = CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")
METHODS: dict[str, dict[str, object]] = {
    "mae": {},
    "subset": {"masker": RandomMasker.Config(ratio=0.75, predict=0.25)},
    "no_class_token": {"encoder": replace(SMALL, class_token=False)},
    "simmim": {"masker": RandomMasker.Config(ratio=0.5, blank=True), "decoder": LinearDecoder.Config()},
    "blank_block": {"masker": BlockMasker.Config(blank=True)},
    "crossmae": {"masker": RandomMasker.Config(ratio=0.75, predict=0.25), "decoder": CROSS},
    "crossmae_blocks": {"masker": BlockMasker.Config(), "decoder": CROSS},
    "crossmae_tubes": {"size": (4, 12, 16), "masker": TubeMasker.Config(ratio=0.75, predict=0.25), "decoder": CROSS},
    "tubes": {"size": (4, 12, 16), "masker": TubeMasker.Config(ratio=0.75)},
    "tubes_random_separate": {"size": (4, 12, 16), "encoder": replace(SMALL, positions="separate")},
}
Build = Callable[..., MaskedModel]


@pytest.fixture(params=METHODS)
def case(request: pytest.FixtureRequest, build: Build) -> tuple[MaskedModel, Tensor, Mask]:
    """Returns a small model in fp64, an input of the size that it was built for, and a mask."""
    options = METHODS[request.param]
    model = build(**options).double()
    x = torch.randn(3, 3, *options.get("size", (12, 16)), dtype=torch.float64)
    return model, x, model.masker(sample_keys(1, 0, torch.arange(3)), model.tokenizer.grid(x))


def with_tokens(model: MaskedModel, x: Tensor, index: Tensor, value: float | None = None) -> Tensor:
    """Returns x with other values in the tokens `index` (B, K): noise, or `value`."""
    patches = model.tokenizer.split(x).clone()
    rows = torch.arange(len(x))[:, None]
    new = torch.randn_like(patches[rows, index]) if value is None else torch.full_like(patches[rows, index], value)
    patches[rows, index] = new
    return model.tokenizer.join(patches, model.tokenizer.grid(x))


def hidden(mask: Mask, tokens: int) -> Tensor:
    """Returns the indices of all tokens that are not visible, (B, N - V)."""
    unseen = torch.ones(len(mask.visible), tokens, dtype=torch.bool).scatter(1, mask.visible, value=False)
    return unseen.nonzero()[:, 1].view(len(mask.visible), -1)


# --- hidden values have no effect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 1e6, float("nan")], ids=["noise", "huge", "nan"])
def test_hidden_values_never_reach_a_prediction(case, value: float | None) -> None:
    model, x, mask = case
    unseen = hidden(mask, model.tokenizer.split(x).shape[1])
    before, after = model(x, mask=mask), model(with_tokens(model, x, unseen, value), mask=mask)
    assert torch.equal(before.prediction, after.prediction)  # exactly 0 change
    assert not torch.equal(before.target, after.target)  # the values did change


def test_hidden_values_get_no_gradient_of_a_prediction_and_visible_ones_do(case) -> None:
    model, x, mask = case
    x = x.clone().requires_grad_()
    model(x, mask=mask).prediction.square().sum().backward()
    gradient = model.tokenizer.split(x.grad).abs().sum(-1)  # (B, N)
    assert (take(gradient, mask.visible) > 0).all()
    assert not take(gradient, hidden(mask, gradient.shape[1])).any()


def test_visible_values_do_reach_predictions(case) -> None:
    model, x, mask = case
    assert not torch.equal(model(x, mask=mask).prediction, model(with_tokens(model, x, mask.visible[:, :1]), mask=mask).prediction)


def test_the_target_takes_no_gradient(case) -> None:
    model, x, mask = case
    output = model(x.clone().requires_grad_(), mask=mask)
    assert not output.target.requires_grad
    assert output.loss.requires_grad


def test_samples_do_not_see_each_other(case) -> None:
    model, x, mask = case
    other = x.clone()
    other[0] = torch.randn_like(other[0])
    assert torch.equal(model(x, mask=mask).prediction[1:], model(other, mask=mask).prediction[1:])


# --- the order of tokens has no effect --------------------------------------------------------------------------------------


def test_the_order_of_visible_tokens_changes_nothing(case) -> None:
    model, x, mask = case
    shuffled = replace(mask, visible=mask.visible[:, torch.randperm(mask.visible.shape[1])])
    if mask.blank is not None:
        shuffled = replace(shuffled, blank=mask.blank.flip(1))
    assert (model(x, mask=mask).prediction - model(x, mask=shuffled).prediction).abs().max() <= 1e-12


def test_the_order_of_predicted_tokens_is_the_order_of_predictions(case) -> None:
    model, x, mask = case
    order = torch.randperm(mask.predict.shape[1])
    plain, shuffled = model(x, mask=mask), model(x, mask=replace(mask, predict=mask.predict[:, order]))
    assert (plain.prediction[:, order] - shuffled.prediction).abs().max() <= 1e-12
    assert torch.equal(plain.target[:, order], shuffled.target)
    assert plain.loss.item() == pytest.approx(shuffled.loss.item(), rel=1e-12)


def test_encode_gives_ordered_features_equal_to_seeing_all(case) -> None:
    model, x, _ = case
    features = model.encode(x)
    tokens = model.tokenizer.split(x)
    everything = torch.arange(tokens.shape[1]).repeat(len(x), 1)
    order = torch.stack([torch.randperm(tokens.shape[1]) for _ in x])
    seen = model.encoder(tokens, model.tokenizer.grid(x), Mask(order, everything))
    assert features.where.tolist() == [everything[0].tolist()]
    assert (take(features.tokens, order) - seen.tokens).abs().max() <= 1e-12
    assert features.last.shape == (len(x), features.prefix + tokens.shape[1], 24)


# --- shortcuts equal the full computation -----------------------------------------------------------------------------------


def test_embedding_the_gathered_equals_gathering_the_embedded_and_the_strided_convolution(case) -> None:
    model, x, mask = case
    embed, size = model.encoder.patch_embed, model.tokenizer.size
    tokens = model.tokenizer.split(x)
    convolve = F.conv2d if len(size) == 2 else F.conv3d
    convolved = convolve(x, embed.proj.weight, embed.proj.bias, stride=size).flatten(2).transpose(1, 2)  # (B, N, D)
    gathered_first = embed(take(tokens, mask.visible))
    for long_way in (embed(tokens), convolved):
        assert (gathered_first - take(long_way, mask.visible)).abs().max() <= 1e-12


def test_take_equals_indexing_row_by_row() -> None:
    values, index = torch.randn(3, 7, 2, 5), torch.randint(7, (6, 4))
    taken = take(values, index)
    for row in range(6):
        assert torch.equal(taken[row], values[row // 2][index[row]])  # sample-major: two rows per sample
    assert torch.equal(repeat_rows(values, 6)[2:4], values[1:2].expand(2, -1, -1, -1))


@pytest.mark.parametrize("name", ["mae", "simmim", "tubes"])
def test_several_masks_and_groups_equal_running_them_one_by_one(name: str, build: Build) -> None:
    """Rows are sample-major: B samples, m masks each, k groups of predicted tokens each."""
    samples, masks, groups = 2, 3, 2
    options = METHODS[name]
    model = build(**options).double()
    x = torch.randn(samples, 3, *options.get("size", (12, 16)), dtype=torch.float64)
    drawn = model.masker(sample_keys(5, 0, torch.arange(samples * masks)), model.tokenizer.grid(x))
    even = drawn.predict.shape[1] // groups * groups
    many = replace(drawn, predict=drawn.predict[:, :even].reshape(samples * masks * groups, -1))
    together = model(x, mask=many)
    losses = []
    for row in range(samples * masks * groups):
        mask_row, sample = row // groups, row // groups // masks
        blank = None if drawn.blank is None else drawn.blank[mask_row : mask_row + 1]
        alone = model(
            x[sample : sample + 1],
            mask=Mask(drawn.visible[mask_row : mask_row + 1], many.predict[row : row + 1], blank),
        )
        assert (together.prediction[row] - alone.prediction[0]).abs().max() <= 1e-12
        assert torch.equal(together.target[row], alone.target[0])
        losses.append(alone.loss)
    assert together.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)


def test_predicting_a_part_equals_those_rows_of_predicting_all(build: Build) -> None:
    """This holds for a decoder whose predictions do not attend to each other."""
    model = build(**METHODS["simmim"]).double()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    whole = model.masker(sample_keys(0, 0, torch.arange(2)), (3, 4))
    part = model(x, mask=replace(whole, predict=whole.predict[:, 2:4]))
    full = model(x, mask=whole)
    assert torch.equal(part.target, full.target[:, 2:4])
    assert (part.prediction - full.prediction[:, 2:4]).abs().max() <= 1e-12


def test_weight_zero_takes_a_prediction_out_of_the_loss(build: Build) -> None:
    """Rows of unequal length are padded with any token at weight 0; larger weights of the others keep the samples' shares equal."""
    model = build(**METHODS["simmim"]).double()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (3, 4))
    weight = torch.ones(mask.predict.shape, dtype=torch.float64)
    weight[1] = torch.tensor([6 / 4] * 4 + [0] * 2)
    padded = mask.predict.clone()
    padded[1, 4:] = padded[1, 0]
    output = model(x, mask=replace(mask, predict=padded, weight=weight))
    expected = torch.zeros((), dtype=torch.float64)
    for i, many in ((0, 6), (1, 4)):
        one = slice(i, i + 1)
        expected = expected + model(x[one], mask=Mask(mask.visible[one], mask.predict[one, :many], mask.blank[one])).loss / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    weights = [w for w in model.parameters() if w.requires_grad]
    for ours, plain in zip(torch.autograd.grad(output.loss, weights), torch.autograd.grad(expected, weights), strict=True):
        assert (ours - plain).abs().max() <= 1e-12


def families(model: MaskedModel, samples: int) -> Mask:
    """Returns a mask with a second mask of the same samples, which has fewer visible and more predicted tokens."""
    first = RandomMasker(RandomMasker.Config(ratio=0.5))(sample_keys(0, 0, torch.arange(samples)), (3, 4))
    second = RandomMasker(RandomMasker.Config(ratio=0.75))(sample_keys(1, 0, torch.arange(samples)), (3, 4))
    return replace(first, also=(second,))


PADDED: dict[str, dict[str, Any]] = {
    "self-attention": {"decoder": SelfAttentionDecoder.Config(width=16, depth=2, heads=2)},
    "cross-attention": {"decoder": CrossAttentionDecoder.Config(width=16, depth=2, heads=2, self_attention=True)},
    "convolution": {"decoder": ConvolutionDecoder.Config(width=16, depth=2, groups=4, noise=0.0)},
    "linear": {"decoder": LinearDecoder.Config()},
    "registers around": {
        "encoder": VisionTransformer.Config(
            width=24, depth=2, heads=2, positions="none", rotary="capi", registers=4, register_places="around"
        )
    },
}


@pytest.mark.parametrize("name", PADDED)
def test_rows_of_different_lengths_are_computed_as_if_each_were_alone(name: str, build: Build) -> None:
    """The content of the padding has no effect, and the loss is the mean of the samples' losses."""
    model = build(masker=BernoulliMasker.Config(ratio=0.5, blank=name == "linear"), **PADDED[name]).double()
    x = torch.randn(4, 3, 12, 16, dtype=torch.float64)
    mask = model.draw_masks(x, sample_keys(0, 0, torch.arange(4)))
    assert len(mask.valid.sum(1).unique()) > 1 or name == "linear"
    output, seen = model(x, mask=mask), mask.visible.shape[1]
    losses = []
    for row in range(4):
        own = mask.valid_predict[row]
        sets = mask.visible[row][mask.valid[row, :seen]], mask.predict[row][own]
        blank = None if mask.blank is None else mask.blank[row][mask.valid[row, seen:]][None]
        alone = model(x[row : row + 1], mask=Mask(sets[0][None], sets[1][None], blank))
        assert (alone.prediction[0] - output.prediction[row][own]).abs().max() < 1e-12
        losses.append(alone.loss)
        features = model.encode(x[row : row + 1], mask=Mask(sets[0][None], sets[1][None], blank))
        assert (features.pooled() - model.encode(x, mask=mask).pooled()[row]).abs().max() < 1e-6
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    if name in ("self-attention", "cross-attention"):
        others = {key: torch.randint_like(getattr(mask, key), 12) for key in ("visible", "predict")}
        spoiled = {
            key: torch.where(valid, getattr(mask, key), others[key])
            for key, valid in (("visible", mask.valid), ("predict", mask.valid_predict))
        }
        found = model(x, mask=replace(mask, **spoiled))
        assert torch.equal(found.prediction[mask.valid_predict], output.prediction[mask.valid_predict])
        assert torch.equal(found.loss, output.loss)
    trimmed = mask.trimmed()
    assert trimmed.valid is None
    assert trimmed.visible.shape[1] == mask.valid[:, :seen].sum(1).min()


def test_padding_needs_parts_that_leave_it_out(build: Build) -> None:
    swin = Swin.Config(width=8, heads=1, stages=(1, 1), patch=2, window=2)
    with pytest.raises(ValueError, match=r"encoder\.name swin cannot leave out .* masker\.name bernoulli; set masker\.lengths"):
        build(encoder=swin, masker=BernoulliMasker.Config(blank=True))
    build(encoder=swin, masker=BernoulliMasker.Config(blank=True, lengths="update"))
    with pytest.raises(ValueError, match=r"mask\.valid and mask\.valid_predict"):
        Mask(torch.zeros(1, 2).long(), torch.ones(1, 2).long(), valid=torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match=r"mask\.valid .*not padding and must be bool"):
        Mask(*[torch.zeros(1, 2).long()] * 2, valid=torch.ones(1, 3).bool(), valid_predict=torch.ones(1, 2).bool())


def test_several_masks_of_a_sample_are_taught_once_and_count_alike(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several masks per sample, as in V-JEPA, loss and gradient are the mean of those of each mask alone."""
    model, x = build().double(), torch.randn(2, 3, 12, 16, dtype=torch.float64)
    mask = families(model, 2)
    assert [one.predict.shape for one in mask.families] == [(2, 6), (2, 9)]
    token_targets, teach = [], model.target.teach
    monkeypatch.setattr(model.target, "teach", lambda *given: token_targets.append(1) or teach(*given))
    output = model(x, mask=mask)
    assert len(token_targets) == 1
    alone = [model(x, mask=replace(one, also=())) for one in mask.families]
    assert torch.equal(output.prediction, alone[0].prediction)
    expected = (alone[0].loss + alone[1].loss) / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    weights = [w for w in model.parameters() if w.requires_grad]
    for ours, plain in zip(torch.autograd.grad(output.loss, weights), torch.autograd.grad(expected, weights), strict=True):
        assert (ours - plain).abs().max() <= 1e-12


def test_what_is_no_family_is_refused(build: Build) -> None:
    mask = families(build(), 2)
    with pytest.raises(ValueError, match=r"mask\.also"):
        replace(mask, also=(mask,))
    outside = replace(mask.also[0], predict=mask.also[0].predict + 12)
    with pytest.raises(ValueError, match="tokens 0 to 11"):
        build()(torch.randn(2, 3, 12, 16), mask=replace(mask, also=(outside,)))
    with pytest.raises(ValueError, match="echo 7"):
        replace(mask, echo=7)
    assert [one.predict.device.type for one in mask.to("meta").families] == ["meta", "meta"]


# --- other grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("home", "away"), [((12, 16), (20, 8)), ((12, 16), (24, 32)), ((4, 12, 16), (8, 12, 16)), ((4, 12, 16), (2, 8, 24))], ids=str
)
def test_another_grid_than_home_equals_a_model_built_for_it(home, away, build: Build) -> None:
    """`recompute` computes fixed positions for any grid: the weights do not depend on the grid that they were built for."""
    anew = {
        "encoder": replace(SMALL, resize_positions="recompute"),
        "decoder": SelfAttentionDecoder.Config(width=16, depth=2, heads=2, resize_positions="recompute"),
    }
    first, second = build(size=home, **anew), build(size=away, **anew)
    tables = {"encoder.pos_embed", "decoder.pos_embed"}
    shared = {name: weight for name, weight in first.state_dict().items() if name not in tables}
    assert set(second.load_state_dict(shared, strict=False).missing_keys) == tables
    x = torch.randn(2, 3, *away)
    mask = first.masker(sample_keys(0, 0, torch.arange(2)), first.tokenizer.grid(x))
    ours, expected = first(x, mask=mask), second(x, mask=mask)
    assert torch.equal(ours.prediction, expected.prediction)
    assert torch.equal(ours.loss, expected.loss)


@pytest.mark.parametrize("kind", ["sine_cosine", "learned", "flat_sine_cosine"])
def test_positions_are_resized_bicubically_and_at_home_are_themselves(kind: str, build: Build) -> None:
    encoder = build(encoder=replace(SMALL, positions=kind)).encoder  # 3 x 4 tokens
    patches = torch.zeros(1, 12, 48)
    base = F.linear(patches, torch.zeros(24, 48), encoder.patch_embed.proj.bias)
    where = torch.arange(12)[None]
    assert torch.equal(encoder.embed(patches, where, (3, 4))[:, 1:], base + encoder.pos_embed[:, 1:])
    picture = encoder.pos_embed[0, 1:].view(3, 4, 24).permute(2, 0, 1)[None]
    expected = F.interpolate(picture, size=(6, 5), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).reshape(30, 24)
    away = encoder.embed(torch.zeros(1, 30, 48), torch.arange(30)[None], (6, 5))
    assert (away[0, 1:] - encoder.patch_embed.proj.bias - expected).abs().max() <= 1e-6
    assert torch.equal(away[0, :1], encoder.cls_token[0] + encoder.pos_embed[0, :1])  # the class token's row is not resized


def test_learned_positions_get_gradients_on_another_grid(build: Build) -> None:
    model = build(encoder=replace(SMALL, positions="learned"))
    model(torch.randn(2, 3, 20, 24)).loss.backward()
    assert (model.encoder.pos_embed.grad[0].abs().sum(-1) > 0).all()


def test_an_image_among_tubes_is_a_tube_that_stands_still(build: Build) -> None:
    model = build(size=(4, 12, 16), masker=TubeMasker.Config(ratio=0.75)).double()
    image = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    clip = image[:, :, None].expand(-1, -1, 2, -1, -1)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (1, 3, 4))
    assert model.tokenizer.grid(image) == (1, 3, 4)
    still, moving = model(image, mask=mask), model(clip, mask=mask)
    assert torch.equal(still.prediction, moving.prediction)
    assert torch.equal(still.loss, moving.loss)
    assert torch.equal(model.encode(model.tokenizer.lift(image)).last, model.encode(clip).last)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("size", [(8, 20), (20, 4), (6, 8, 12)], ids=str)
@pytest.mark.parametrize("ratio", [0.31, 0.5, 0.66])
def test_any_channels_sides_and_ratio(channels: int, size: tuple[int, ...], ratio: float, build: Build) -> None:
    model = build(size=size, channels=channels, masker=RandomMasker.Config(ratio=ratio))
    output = model(torch.randn(2, channels, *size))
    assert output.prediction.shape == output.target.shape
    tokens = model.tokenizer.split(torch.randn(1, channels, *size)).shape[1]
    assert output.mask.visible.shape[1] + output.mask.predict.shape[1] == tokens
    assert output.loss.isfinite()


# --- masks that are refused -------------------------------------------------------------------------------------------------

VISIBLE, PREDICT = torch.arange(3).repeat(2, 1), torch.arange(3, 12).repeat(2, 1)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Mask(VISIBLE, PREDICT + 1), "mask.predict holds indices from 4 to 12"),
        (Mask(VISIBLE - 1, PREDICT), "mask.visible holds indices from -1"),
        (Mask(VISIBLE[:1].repeat(3, 1), PREDICT[:1].repeat(3, 1)), "3 rows for 2 samples"),
        (Mask(VISIBLE[:1], PREDICT[:1]), "1 rows for 2 samples"),
        (Mask(VISIBLE, PREDICT, blank=PREDICT), "masker.blank"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_in_words(mask: Mask, words: str, build: Build) -> None:
    with pytest.raises(ValueError, match=words):
        build()(torch.randn(2, 3, 12, 16), mask=mask)


def test_factors_of_the_loss_are_floating_point() -> None:
    with pytest.raises(ValueError, match=r"mask\.weight holds factors of the loss.*int64"):
        Mask(VISIBLE, PREDICT, weight=torch.ones(PREDICT.shape, dtype=torch.int64))


def test_results_are_pytrees(build: Build) -> None:
    """torch's pytree tools find the tensors of results and put the results together again."""
    model, x = build(decoder=CROSS), torch.randn(2, 3, 12, 16)
    output = model(x)
    leaves, spec = tree_flatten(output)
    assert all(isinstance(leaf, Tensor) for leaf in leaves if leaf is not None)
    again = tree_unflatten(leaves, spec)
    assert torch.equal(again.mask.visible, output.mask.visible)
    assert again.mask.blank is None
    features = model.encode(x)
    halved = tree_map(lambda value: value.half() if value.is_floating_point() else value, features)
    assert (halved.prefix, halved.last.dtype, halved.where.dtype) == (1, torch.float16, torch.int64)
    assert halved.blocks.keys() == features.blocks.keys()


@pytest.mark.parametrize(
    "sets",
    [
        (VISIBLE[0], PREDICT),
        (VISIBLE, PREDICT[:1]),
        (VISIBLE, PREDICT, PREDICT[:1]),
        (VISIBLE, PREDICT, None, torch.ones(2, 3)),
    ],
)
def test_index_sets_that_do_not_fit_each_other_are_refused(sets) -> None:
    with pytest.raises(ValueError, match=r"rows|two-dimensional|weight"):
        Mask(*sets)


def test_the_linear_decoder_wants_blanks(build: Build) -> None:
    with pytest.raises(ValueError, match=r"masker\.blank"):
        build(decoder=LinearDecoder.Config())(torch.randn(2, 3, 12, 16))


def test_drawn_masks_come_from_torchs_generator(build: Build) -> None:
    model, x = build(), torch.randn(2, 3, 12, 16)
    first, second = model(x).mask, model(x).mask
    torch.manual_seed(7)
    third = model(x).mask
    torch.manual_seed(7)
    assert torch.equal(third.visible, model(x).mask.visible)
    assert not torch.equal(first.visible, second.visible)


@pytest.mark.parametrize("decoder", [SelfAttentionDecoder, CrossAttentionDecoder])
def test_a_predicted_token_stands_where_its_index_says(decoder: type, build: Build) -> None:
    """Predicted tokens differ only in their positions: a change of one position changes its prediction."""
    model = build(decoder=decoder.Config(width=16, depth=1, heads=2)).double()
    x = torch.randn(1, 3, 12, 16, dtype=torch.float64)
    mask = Mask(torch.tensor([[0, 5]]), torch.tensor([[3, 7, 11]]))
    before = model(x, mask=mask).prediction
    table, change = model.decoder.pos_embed.data, torch.randn(16, dtype=torch.float64)
    table[:, 1 + 3] += change  # the prefix has the first row
    after = model(x, mask=mask).prediction
    moved = (before - after).abs().amax(-1)[0]
    assert moved[0] > 1e-3
    if decoder is CrossAttentionDecoder:  # its predictions do not attend to each other, so no other one changes
        assert not moved[1:].any()
    table[:, 1 + 3] -= change
    table[:, 1 + 8] += change  # a position that is neither visible nor predicted
    assert (model(x, mask=mask).prediction - before).abs().max() < 1e-12
