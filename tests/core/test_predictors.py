"""Decoders of methods that predict features: V-JEPA 2 (compared with transformers), V-JEPA 2.1, data2vec and UMT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmm import Mask, MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.types import Features, Shape
from mmm.decoders import ConvolutionDecoder, CrossAttentionDecoder, LinearDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import AttentionMasker, BlockUnionMasker, RandomMasker
from mmm.targets import LatentTarget

Build = Callable[..., MaskedModel]


# --- V-JEPA 2 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Returns transformers' V-JEPA 2, small, in fp64; some channels of its attention heads are not rotated."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=4,
        crop_size=16,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=2,
        pred_hidden_size=32,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=2,
        drop_path_rate=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.VJEPA2Model(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def copy_block(ours: Any, their: Any) -> None:
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(their.attention, name), kind) for name in ("query", "key", "value")]
        getattr(ours.attn.qkv, kind).copy_(torch.cat(parts))
        for mine, other in ((ours.attn.proj, their.attention.proj), (ours.norm1, their.norm1), (ours.norm2, their.norm2)):
            getattr(mine, kind).copy_(getattr(other, kind))
        getattr(ours.mlp.fc1, kind).copy_(getattr(their.mlp.fc1, kind))
        getattr(ours.mlp.fc2, kind).copy_(getattr(their.mlp.fc2, kind))


def copied(build: Build, theirs: Any, rotary: str) -> MaskedModel:
    """Returns our V-JEPA 2 with transformers' weights."""
    model = build(
        (4, 16, 16),
        encoder=VisionTransformer.Config(width=48, depth=2, heads=3, class_token=False, positions="none", rotary=rotary),
        decoder=SelfAttentionDecoder.Config(width=32, depth=2, heads=2, positions="none", rotary=rotary),
        masker=BlockUnionMasker.Config(),
        target=LatentTarget.Config(loss="l1"),
    ).double()
    encoder, decoder = model.encoder, model.decoder
    their_encoder, their_decoder = theirs.encoder, theirs.predictor
    with torch.no_grad():
        embed = their_encoder.embeddings.patch_embeddings.proj
        encoder.patch_embed.proj.weight.copy_(embed.weight)
        encoder.patch_embed.proj.bias.copy_(embed.bias)
        decoder.mask_token.copy_(their_decoder.embeddings.mask_tokens[1])
        for ours, other in zip(encoder.blocks, their_encoder.layer, strict=True):
            copy_block(ours, other)
        for ours, other in zip(decoder.blocks, their_decoder.layer, strict=True):
            copy_block(ours, other)
        for ours, other in (
            (encoder.norm, their_encoder.layernorm),
            (decoder.norm, their_decoder.layernorm),
            (decoder.embed, their_decoder.embeddings.predictor_embeddings),
            (decoder.head, their_decoder.proj),
        ):
            ours.weight.copy_(other.weight)
            ours.bias.copy_(other.bias)
    return model


def run_theirs(theirs: Any, x: Tensor, mask: Mask) -> Tensor:
    """Runs transformers' encoder on the visible tokens alone, as V-JEPA's training does, and then its predictor."""
    rows = len(mask.visible)
    tokens = theirs.encoder.embeddings(x.transpose(1, 2))
    hidden = tokens.gather(1, mask.visible[..., None].expand(-1, -1, tokens.shape[2]))
    for layer in theirs.encoder.layer:
        hidden = layer(hidden, mask.visible)[0]
    hidden = theirs.encoder.layernorm(hidden)
    whole = hidden.new_zeros(rows, 32, 48).scatter(1, mask.visible[..., None].expand_as(hidden), hidden)
    return theirs.predictor(whole, [mask.visible], [mask.predict]).last_hidden_state


def test_v_jepa_2_s_encoder_and_predictor_are_transformers(theirs: Any, build: Build) -> None:
    """The same weights and both masks of each sample give the same predictions, with the rotations of the released weights."""
    model, x = copied(build, theirs, "vjepa2"), torch.randn(3, 3, 4, 16, 16, dtype=torch.float64)
    masks = model.masker(sample_keys(0, 0, torch.arange(3)), (2, 4, 4))
    assert len(masks.families) == 2
    with torch.no_grad():
        for mask in masks.families:
            found = model.decoder(model.encoder(model.tokenizer.split(x), (2, 4, 4), mask), mask, (2, 4, 4))
            assert (found - run_theirs(theirs, x, mask)).abs().max() < 1e-9
        whole = model.encoder(model.tokenizer.split(x), (2, 4, 4), None).last
        assert (whole - theirs(x.transpose(1, 2), skip_predictor=True).last_hidden_state).abs().max() < 1e-9


def test_rotations_without_the_fault_of_the_released_weights_are_others(theirs: Any, build: Build) -> None:
    model, x = copied(build, theirs, "axial"), torch.randn(2, 3, 4, 16, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (2, 4, 4))
    with torch.no_grad():
        found = model.decoder(model.encoder(model.tokenizer.split(x), (2, 4, 4), mask), mask, (2, 4, 4))
    assert (found - run_theirs(theirs, x, mask)).abs().max() > 1e-2


# --- rotations in decoders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["axial", "dinov3"])
@pytest.mark.parametrize("part", [SelfAttentionDecoder, CrossAttentionDecoder])
def test_predictions_stand_where_the_mask_says(kind: str, part: Any, build: Build) -> None:
    """The order of tokens changes nothing; their positions change the predictions."""
    decoder = part.Config(width=16, depth=2, heads=2, positions="none", rotary=kind)
    model, x = build(decoder=decoder).double().eval(), torch.randn(2, 3, 12, 16, dtype=torch.float64)
    order = torch.arange(12).expand(2, -1)
    mask, turned = Mask(order[:, :5], order[:, 5:]), Mask(order[:, :5].flip(1), order[:, 5:].flip(1))
    with torch.no_grad():
        one, other = model(x, mask=mask).prediction, model(x, mask=turned).prediction
        assert (one - other.flip(1)).abs().max() < 1e-12
        assert (one[:, 1:] - one[:, :-1]).abs().min(-1).values.max() > 1e-6  # mask tokens differ only in their positions


def test_registers_stand_around_the_keys(build: Build) -> None:
    encoder = VisionTransformer.Config(width=24, depth=2, heads=2, registers=4, rotary="capi", register_places="around")
    options = {"width": 16, "depth": 2, "heads": 2, "positions": "none", "rotary": "capi"}
    x = torch.randn(2, 3, 12, 16)
    found = []
    for places in ("none", "around"):
        torch.manual_seed(1)
        model = build(encoder=encoder, decoder=CrossAttentionDecoder.Config(**options, register_places=places)).eval()
        found.append(model(x, mask=Mask(torch.arange(5).expand(2, -1), torch.arange(5, 12).expand(2, -1))).prediction)
    assert not torch.allclose(found[0], found[1])
    with pytest.raises(ValueError, match="registers above 0 and divisible by 4"):
        build(decoder=CrossAttentionDecoder.Config(**options, register_places="around"))


# --- V-JEPA 2.1 -------------------------------------------------------------------------------------------------------------


def test_visible_tokens_have_a_head_of_their_own(build: Build) -> None:
    model = build(
        (16, 24),
        encoder=VisionTransformer.Config(width=24, depth=3, heads=2, class_token=True),
        decoder=SelfAttentionDecoder.Config(width=16, depth=2, heads=2, echo=True, fusion="levels", fusion_blocks=(1, 3)),
        masker=BlockUnionMasker.Config(echo=0.5),
        target=LatentTarget.Config(loss="l1", blocks=(1, 3), join=True, block_norm="layer", norm="none"),
    ).double()
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    mask, decoder = model.masker(sample_keys(0, 0, torch.arange(2)), (4, 6)), model.decoder
    output = model(x, mask=mask)
    output.loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters() if weight.requires_grad)

    features = model.encoder(model.tokenizer.split(x), (4, 6), mask)
    levels = torch.cat([norm(features.blocks[block]) for norm, block in zip(decoder.fusion.norms, (1, 3), strict=True)], dim=2)
    seen = decoder.embed(F.gelu(decoder.fusion.mix(levels)))
    hidden = mask.predict.shape[1] - mask.visible.shape[1]
    table = decoder.pos_embed[0]
    seen = seen + torch.cat([table[:1].expand(2, -1, -1), table[1 + mask.visible]], dim=1)
    tokens = torch.cat([seen, decoder.mask_token + table[1 + mask.predict[:, :hidden]]], dim=1)
    for block in decoder.blocks:
        tokens = block(tokens)
    tokens = decoder.norm(tokens)
    expected = torch.cat([decoder.head(tokens[:, seen.shape[1] :]), decoder.head_echo(tokens[:, 1 : seen.shape[1]])], dim=1)
    assert (output.prediction - expected).abs().max() < 1e-12
    assert output.prediction.shape == output.target.shape == (2, 24, 48)


def test_an_echo_needs_its_head_and_a_head_its_echo(build: Build) -> None:
    order = torch.arange(12).expand(2, -1)
    plain, echoed = Mask(order[:, :4], order[:, 4:]), Mask(order[:, :4], torch.cat([order[:, 4:], order[:, :4]], 1), echo=4)
    x, small = torch.randn(2, 3, 12, 16), {"width": 16, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match=r"set decoder\.echo"):
        build(decoder=SelfAttentionDecoder.Config(**small))(x, mask=echoed)
    with pytest.raises(ValueError, match="cross_attention predicts no visible tokens"):
        build(decoder=CrossAttentionDecoder.Config(**small))(x, mask=echoed)
    model = build(decoder=SelfAttentionDecoder.Config(**small, echo=True))
    with pytest.raises(ValueError, match=r"set masker\.echo"):
        model(x, mask=plain)
    assert model.eval()(x, mask=plain).prediction.shape[1] == 8  # allowed in evaluation, where only hidden tokens are shown


# --- data2vec 2.0 -----------------------------------------------------------------------------------------------------------


def test_the_convolutions_are_data2vec_s() -> None:
    """Noise and visible tokens are put on the grid; grouped convolutions, norms without weights, GELU, residuals where widths
    agree."""
    config = ConvolutionDecoder.Config(width=16, depth=3, groups=4, noise=0.0)
    decoder = ConvolutionDecoder(config, encoder=Shape(24, 2, 1), grid=(4, 5), outputs=(7,)).double()
    where = torch.stack([torch.randperm(20)[:6] for _ in range(3)])
    predict = torch.stack([torch.tensor([n for n in range(20) if n not in row]) for row in where.tolist()])
    last = torch.randn(3, 7, 24, dtype=torch.float64)
    found = decoder(Features(last, 1, where), Mask(where, predict), (4, 5))
    image = torch.zeros(3, 24, 4, 5, dtype=torch.float64)
    for row in range(3):
        for slot, token in enumerate(where[row].tolist()):
            image[row, :, token // 5, token % 5] = last[row, 1 + slot]
    for number, convolution in enumerate(decoder.convolutions):
        made = F.conv2d(image, convolution.weight, convolution.bias, padding=1, groups=4)
        centred = made - made.mean(1, keepdim=True)
        made = F.gelu(centred / (made.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
        image = made if number == 0 else image + made
    expected = decoder.head(image.flatten(2).transpose(1, 2).gather(1, predict[..., None].expand(-1, -1, 16)))
    assert (found - expected).abs().max() < 1e-12


def test_noise_is_drawn_in_training_alone_and_does_not_touch_visible_tokens() -> None:
    config = ConvolutionDecoder.Config(width=24, depth=1, groups=4, kernel=1, noise=1.0)
    decoder = ConvolutionDecoder(config, encoder=Shape(24, 2, 0), grid=(2, 3, 2), outputs=(5,))
    features = Features(torch.randn(2, 5, 24), 0, torch.arange(5).expand(2, -1))
    mask = Mask(features.where, torch.arange(12).expand(2, -1))
    one, other = (decoder(features, mask, (2, 3, 2)) for _ in range(2))
    assert torch.equal(one[:, :5], other[:, :5])
    assert not (one[:, 5:] == other[:, 5:]).any()
    decoder.eval()
    assert torch.equal(decoder(features, mask, (2, 3, 2)), decoder(features, mask, (2, 3, 2)))


# --- UMT --------------------------------------------------------------------------------------------------------------------


def test_visible_tokens_are_predicted_from_several_blocks(build: Build) -> None:
    """The blocks share a norm and positions; each block has a linear layer and a norm of its own."""
    from mmm.core.positions import flat_sine_cosine

    config = LinearDecoder.Config(levels=(2, 3), positions="flat_sine_cosine", norm=True)
    decoder = LinearDecoder(config, encoder=Shape(24, 3, 1), grid=(3, 4), outputs=(5, 6)).double()
    where = torch.stack([torch.randperm(12)[:4] for _ in range(2)])
    blocks = {number: torch.randn(2, 5, 24, dtype=torch.float64) for number in (2, 3)}
    features = Features(blocks[3], 1, where, blocks)
    predict = where[:, [2, 0]]
    found = decoder(features, Mask(where, predict, echo=2), (3, 4))
    table = flat_sine_cosine(12, 24).float().double()
    parts = []
    for number, (head, norm) in enumerate(zip(decoder.heads, decoder.norms, strict=True)):
        tokens = decoder.level_norm(blocks[2 + number][:, 1:][:, [2, 0]]) + table[predict]
        parts.append(norm(head(tokens)))
    assert (found - torch.cat(parts, dim=2)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="2 blocks for 1 targets"):
        LinearDecoder(config, encoder=Shape(24, 3, 1), grid=(3, 4), outputs=(5,))
    with pytest.raises(ValueError, match=r"decoder\.levels \(1, 2\)"):
        LinearDecoder.Config(levels=(1, 2)).required_features(Shape(24, 3, 1))


def test_a_linear_decoder_of_visible_tokens_needs_no_blanks(build: Build) -> None:
    model = build(decoder=LinearDecoder.Config(), masker=RandomMasker.Config(predict_visible=True), target=LatentTarget.Config())
    output = model(torch.randn(2, 3, 12, 16))
    assert output.mask.echo == output.mask.predict.shape[1] == 3
    output.loss.backward()


def test_mistakes_in_decoders_are_refused() -> None:
    for part in (SelfAttentionDecoder, CrossAttentionDecoder):
        with pytest.raises(ValueError, match=r"decoder\.positions none needs decoder\.rotary"):
            part.Config(positions="none")
        with pytest.raises(ValueError, match=r"decoder\.resize_positions recompute"):
            part.Config(positions="learned", resize_positions="recompute")
    for options, words in (({"kernel": 4}, r"decoder\.kernel 4"), ({"groups": 7}, r"decoder\.groups 7")):
        with pytest.raises(ValueError, match=words):
            ConvolutionDecoder.Config(**options)
    with pytest.raises(ValueError, match=r"decoder\.levels"):
        LinearDecoder.Config(norm=True)


@pytest.mark.parametrize("class_token", [True, False])
def test_scores_are_the_attention_of_the_teacher_s_last_block(class_token: bool, build: Build) -> None:
    """Scores are the class token's attention, or without one the mean over all tokens; both are means over heads. Tokens with the
    highest scores are visible."""
    encoder = VisionTransformer.Config(width=24, depth=2, heads=3, class_token=class_token)
    model = build(encoder=encoder, masker=AttentionMasker.Config(ratio=0.5), target=LatentTarget.Config()).double()
    model.target.teacher.encoder.load_state_dict(model.encoder.state_dict())
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    patches = model.tokenizer.split(x)
    tokens = model.encoder(patches, (3, 4), None, blocks=(1,)).blocks[1]
    block = model.encoder.blocks[1]
    query, key, _ = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)
    weights = [
        (query[..., 8 * head :][..., :8] @ key[..., 8 * head :][..., :8].transpose(1, 2) / 8**0.5).softmax(-1) for head in range(3)
    ]
    mean = torch.stack(weights).mean(0)
    expected = mean[:, 0, 1:] if class_token else mean.mean(1)
    found = model.target.scores(x, patches, (3, 4))
    assert (found - expected).abs().max() < 1e-12
    sharp = AttentionMasker(AttentionMasker.Config(ratio=0.5))(
        torch.arange(2), (3, 4), scores=1000.0 ** expected.argsort().argsort()
    )
    for row in range(2):
        assert set(sharp.visible[row].tolist()) == set(expected[row].topk(6).indices.tolist())
    with pytest.raises(ValueError, match="target.name pixels has no teacher"):
        build(masker=AttentionMasker.Config())(x.float())
