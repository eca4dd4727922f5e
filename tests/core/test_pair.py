"""Two targets at once: the loss is the weighted sum of what each has by itself, with one decoder or with two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.decoders import CrossAttentionDecoder, PairDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.targets import ClusterTarget, LatentTarget, PairTarget, PixelTarget

Build = Callable[..., MaskedModel]
SELF = SelfAttentionDecoder.Config(width=16, depth=1, heads=2)
CROSS = CrossAttentionDecoder.Config(width=12, depth=2, heads=2, fusion="linear", fusion_blocks=(1,), fusion_input=False)


def test_bootmae_is_the_weighted_sum_of_two_models(build: Build) -> None:
    """A decoder for pixels, and one that reads other features for those of the average: each alone gives the same loss."""
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


def test_what_one_of_the_two_does_the_pair_does(build: Build) -> None:
    """It begins, learns, follows and looks across the batch as its parts do; one decoder may predict both."""
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
    with pytest.raises(ValueError, match=r"decoder\.name pair serves target\.name pair"):
        build(decoder=PairDecoder.Config(first=SELF, second=SELF))
    with pytest.raises(ValueError, match=r"target\.weights"):
        PairTarget.Config(weights=(1.0, -1.0))
