"""Two targets at once: the loss is the weighted sum of the two targets' losses, with one decoder or with two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.tokens import take
from mmm.decoders import CrossAttentionDecoder, PairDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker
from mmm.targets import ClusterTarget, LatentTarget, PairTarget, PixelTarget

Build = Callable[..., MaskedModel]
SELF = SelfAttentionDecoder.Config(width=16, depth=1, heads=2)
CROSS = CrossAttentionDecoder.Config(width=12, depth=2, heads=2, fusion="linear", fusion_blocks=(1,), fusion_input=False)


def test_bootmae_is_the_weighted_sum_of_two_models(build: Build) -> None:
    """One decoder predicts pixels; the other reads other features and predicts the average's features; each alone has the same
    loss."""
    target = PairTarget.Config(first=PixelTarget.Config(), second=LatentTarget.Config(loss="mse"), weights=(2.0, 0.5))
    model = build(target=target, decoder=PairDecoder.Config(first=SELF, second=CROSS)).double()
    x = torch.randn(3, 3, 12, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(3)), (3, 4))
    output = model(x, mask=mask)
    assert output.prediction.shape == (3, 9, 48 + 24)
    alone = [
        MaskedModel(model.tokenizer, model.masker, model.encoder, *parts)
        for parts in ((model.decoder.first, model.target.first), (model.decoder.second, model.target.second))
    ]
    pixels, features = (one(x, mask=mask) for one in alone)
    assert output.loss.item() == pytest.approx(2 * pixels.loss.item() + 0.5 * features.loss.item(), rel=1e-12)
    assert torch.equal(output.target[0], pixels.target)
    assert torch.equal(output.target[1], features.target)
    shown = model.target.show(output.prediction, model.tokenizer.split(x), mask)
    assert torch.equal(shown, model.target.first.show(pixels.prediction, model.tokenizer.split(x), mask))
    assert model.target.uses_original


def test_bootmaes_decoders_and_its_weights_of_tokens(build: Build) -> None:
    """Queries are the last features and mask tokens; blocks are self-attention, attention to one block's output and an MLP. A
    token's weight is 1 plus the hidden share of the 3 x 3 tokens around it, where tokens outside the image count as visible."""
    decoder = replace(CROSS, self_attention=True, encoded_queries=True)
    masker = BlockMasker.Config(ratio=0.5, smallest=0.2, inner_weight=1.0)
    model = build((20, 24), masker=masker, decoder=decoder, target=PixelTarget.Config(standardise="none")).double()
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    mask, part = model.masker(sample_keys(0, 0, torch.arange(2)), (5, 6)), model.decoder
    features = model.encoder(model.tokenizer.split(x), (5, 6), mask)
    tokens = torch.cat([part.embed(features.last), part.mask_token + take(part.pos_embed[:, 1:], mask.predict)], dim=1)
    for number, block in enumerate(part.blocks):
        source = part.fusion.norms[number](part.fusion.mix.weight[number] * features.blocks[1])
        tokens = tokens + block.self_attn(block.norm0(tokens))
        tokens = tokens + block.cross_attn(block.norm1(tokens), source)
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = part.head(part.norm(tokens))[:, -15:]
    output = model(x, mask=mask)
    assert (output.prediction - expected).abs().max() < 1e-12
    plain = []
    for row in range(2):
        hidden = {divmod(token, 6) for token in mask.predict[row].tolist()}
        for place, error in zip(mask.predict[row].tolist(), (expected - output.target)[row].square().mean(1), strict=True):
            y, x_ = divmod(place, 6)
            plain.append(error * (1 + sum((y + a, x_ + b) in hidden for a in (-1, 0, 1) for b in (-1, 0, 1)) / 9))
    assert output.loss.item() == pytest.approx(torch.stack(plain).mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"decoder\.encoded_queries needs"):
        replace(CROSS, encoded_queries=True)


def test_the_second_factor_rises(build: Build) -> None:
    """The factor rises from 0 to its value over half of the run; a checkpoint contains its progress."""
    target = PairTarget.Config(first=PixelTarget.Config(), second=LatentTarget.Config(), weights=(1.0, 3.0), second_rise=0.5)
    model = build(target=target, decoder=SELF)
    x = torch.randn(2, 3, 12, 16)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (3, 4))
    found = []
    for step in (0, 2, 5, 9):
        if step:
            model.target.update(model, step, 10, torch.tensor(False))
        found.append(model(x, mask=mask).loss.item())
    full = found[3] - found[0]
    assert full > 0.1
    assert found[1] - found[0] == pytest.approx(0.4 * full, rel=1e-4)
    assert found[2] == found[3]
    assert "target.risen" in model.state_dict()


def test_what_one_of_the_two_does_the_pair_does(build: Build) -> None:
    """The pair begins, learns, updates and depends on the batch as its two targets do; one decoder may predict both."""
    second = LatentTarget.Config(teacher="runs/teacher")
    pair = PairTarget.Config(first=ClusterTarget.Config(clusters=5, decay=0.5), second=second, weights=(3.0, 1.0))
    model = build(target=PairTarget.Config(first=pair, second=PixelTarget.Config()), decoder=SELF)
    inner = model.target.first
    assert model.target.widths == (5 + 24, 48)
    assert model.target.across_batch
    assert not build(target=PairTarget.Config(), decoder=SELF).target.across_batch
    teacher = build(encoder=VisionTransformer.Config(width=24, depth=1, heads=2))
    model.target.begin(model, lambda path: teacher, lambda count: iter(()))
    assert torch.equal(inner.first.teacher.encoder.norm.weight, model.encoder.norm.weight)
    assert {name.split(".")[0] for name in model.target.unsaved()} == {"first"}
    assert not [name for name in model.state_dict() if "second.teacher" in name]
    x = torch.randn(4, 3, 12, 16)
    own = inner.first.teach(x, model.tokenizer.split(x), (3, 4)).loss
    found = model.target.teach(x, model.tokenizer.split(x), (3, 4)).loss
    assert found.item() == pytest.approx(3 * own.item(), rel=1e-6)
    with torch.no_grad():
        model.encoder.norm.weight.add_(1)
    model.target.update(model, 1, 10, torch.tensor(True))
    assert torch.allclose(inner.first.teacher.encoder.norm.weight, model.encoder.norm.weight - 0.5)


def test_two_decoders_need_two_targets(build: Build) -> None:
    with pytest.raises(ValueError, match=r"decoder\.name pair needs target\.name pair"):
        build(decoder=PairDecoder.Config(first=SELF, second=SELF))
    with pytest.raises(ValueError, match=r"target\.weights"):
        PairTarget.Config(weights=(1.0, -1.0))
