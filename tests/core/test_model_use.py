"""A model in the user's own code: it takes images, and returns features, pixels and classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmm
from mmm import Input, Mask, MaskedModel
from mmm.classifier import Classifier
from mmm.dense.heads import LinearHead
from mmm.dense.segmenter import Segmenter


@pytest.fixture
def photographs() -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def test_other_pixels_than_those_of_the_training_are_refused_with_all_flags_that_are_needed() -> None:
    own = Input(size=(12, 16), mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3))
    own.check_trained_with(Input(size=(24, 24), mean=own.mean, std=own.std), "runs/a")
    said = "data.mean .* is not what runs/a was trained with; give --data.mean 0.3 0.4 0.5 --data.std 0.1 0.2 0.3$"
    with pytest.raises(ValueError, match=said):
        Input(size=(12, 16)).check_trained_with(own, "runs/a")


def test_encode_takes_images_and_names_what_it_returns(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    model = build().eval()
    x = model.transform(photographs)
    with torch.no_grad():
        features, same = model.encode(photographs), model.encode(x)
    assert x.shape == (3, 3, 12, 16)
    assert torch.equal(features.last, same.last)
    assert torch.equal(features.pooled("both"), torch.cat([features.class_token, features.tokens.mean(1)], 1))
    kept = model.encode(x, blocks=(0, 2))
    assert set(kept.blocks) == {0, 2}
    visible = model.encode(x, mask=Mask(torch.tensor([[0, 5]] * 3), torch.tensor([[1]] * 3)))
    assert visible.tokens.shape[1] == 2


def test_a_float_tensor_with_a_batch_axis_is_normalised(build: Callable[..., MaskedModel]) -> None:
    """A clip (T, C, H, W) of floats was encoded as T normalised images."""
    model, clip = build((4, 8, 8)).eval(), torch.rand(4, 3, 8, 8)
    assert torch.equal(model.encode([clip]).last, model.encode(model.transform(clip)).last)
    with pytest.raises(ValueError, match=r"\(4, 3, 8, 8\) is not accepted: this model takes normalised samples \(B, C, T, H, W\)"):
        model.encode(clip)
    with pytest.raises(ValueError, match=r"takes normalised samples \(B, C, H, W\)"):
        build().encode(torch.rand(1, 3, 4, 12, 16))
    assert build().encode(torch.rand(2, 3, 16, 24)).tokens.shape == (2, 24, 24)  # another size
    with pytest.raises(ValueError, match="height 18 is not a multiple of the token's 4; use 16 or 20"):
        build().encode(torch.rand(2, 3, 18, 24))
    tubes = build(tokenizer=mmm.tokenizers.Tubes.Config(size=4, frames=2))  # a model of images as tubes
    assert torch.equal(tubes.encode(x := torch.randn(1, 3, 12, 16)).last, tubes.encode(tubes.tokenizer.lift(x)).last)


def test_a_model_without_a_class_token_says_so(build: Callable[..., MaskedModel]) -> None:
    features = build(encoder=mmm.encoders.VisionTransformer.Config(width=24, depth=1, heads=2, class_token=False)).encode(
        torch.randn(2, 3, 12, 16)
    )
    with pytest.raises(ValueError, match="no class token"):
        features.pooled("class")


def test_wrong_blocks_names_masks_and_labels_are_refused(build: Callable[..., MaskedModel]) -> None:
    model, x = build(), torch.zeros(2, 3, 12, 16)
    assert set(model.encode(x, blocks=1).blocks) == {1}
    for block in (3, -1):
        with pytest.raises(ValueError, match=rf"no block {block}; its blocks are 1 to 2"):
            model.encode(x, blocks=(1, block))
    with pytest.raises(ValueError, match="no pooling 'cls'; choose mean, class or both"):
        model.encode(x).pooled("cls")  # type: ignore[arg-type]
    order = torch.arange(12).expand(3, 12)
    with pytest.raises(ValueError, match="the mask has 3 rows for 2 samples"):
        model.encode(x, mask=Mask(order[:, :4], order[:, 4:]))
    with pytest.raises(ValueError, match="labels has 2 names for 3 classes"):
        Classifier.of(model, classes=3, labels=("a", "b"))


def test_an_evaluation_leaves_the_generator_alone(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    model = build()
    before = torch.get_rng_state()
    model.encode(photographs)
    assert torch.equal(torch.get_rng_state(), before)


def test_reconstruct_returns_pixels_and_draw_a_picture(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    model = build().train()
    shown = model.reconstruct(photographs, ratio=0.5, seed=3)
    assert model.training
    assert shown.original.shape == (3, 3, 12, 16)
    assert 0 <= shown.original.min() <= shown.original.max() <= 1
    seen = shown.visible[0].isfinite()
    assert seen.double().mean() == 0.5
    assert torch.equal(shown.pasted[0][seen], shown.original[0][seen])
    assert torch.equal(model.reconstruct(photographs, ratio=0.5, seed=3).predicted[0][~seen], shown.predicted[0][~seen])
    picture = mmm.draw(shown)
    assert isinstance(picture, Image.Image)
    alone = MaskedModel(model.tokenizer, model.masker, model.encoder, None, model.target, data=model.data)
    with pytest.raises(ValueError, match="without a decoder"):
        alone.reconstruct(photographs)


def test_predict_names_classes(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    classifier = Classifier.of(build(), classes=3, labels=("cat", "dog", "owl"))
    found = classifier.predict(photographs, top=2)
    with torch.no_grad():
        chances = classifier.eval()(classifier.transform(photographs)).softmax(1)
    assert len(found) == 3
    for row, chance in zip(found, chances, strict=True):
        values = chance.sort(descending=True).values[:2].tolist()
        assert list(row.values()) == pytest.approx(values)
        assert list(row) == [("cat", "dog", "owl")[int(number)] for number in chance.argsort(descending=True)[:2]]
    assert list(Classifier.of(build(), classes=2).predict(photographs[0])[0]) in (["0", "1"], ["1", "0"])
    cranes = Classifier.of(build(), classes=3, labels=("crane", "owl", "crane")).predict(photographs[0])[0]
    assert set(cranes) == {"crane (0)", "owl", "crane (2)"}  # one of two classes of the same name was lost
    with pytest.raises(ValueError, match="top -1: give the number of classes"):
        classifier.predict(photographs, top=-1)


def test_a_classifier_encodes_images(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    classifier = Classifier.of(build(), classes=3).eval()
    tokens = classifier.encode(photographs)
    assert torch.equal(classifier.classify(tokens), classifier(classifier.transform(photographs)))
    assert classifier.pool(tokens).shape == (3, 24)


def test_a_model_that_does_not_know_its_data_says_so(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    whole = build()
    model = MaskedModel(whole.tokenizer, whole.masker, whole.encoder, whole.decoder, whole.target)
    with pytest.raises(ValueError, match="data=Input"):
        model.encode(photographs)
    assert Input(size=(12, 16)).channels == 3


def test_the_mode_of_every_module_is_kept(build: Callable[..., MaskedModel], photographs: list[Image.Image]) -> None:
    """A part that the user had set to evaluation mode was in training mode after `reconstruct`."""
    model = build()
    segmenter = Segmenter.build(model.tokenizer, build().encoder, LinearHead.Config(), classes=3, data=model.data)
    classifier = Classifier.of(build(), classes=3)
    uses: list[tuple[Any, Callable[[], Any]]] = [
        (model, lambda: model.reconstruct(photographs)),
        (classifier, lambda: classifier.predict(photographs)),
        (segmenter, lambda: segmenter.predict(photographs)),
    ]
    for one, use in uses:
        one.train()
        one.encoder.eval()
        modes = [module.training for module in one.modules()]
        use()
        assert [module.training for module in one.modules()] == modes


def test_the_mode_is_kept_after_an_error(build: Callable[..., MaskedModel]) -> None:
    model = build()
    model.encoder.eval()
    with pytest.raises(ValueError, match="both say what is hidden"):
        model.reconstruct(torch.rand(1, 3, 12, 16), ratio=0.5, hidden=np.ones((12, 16), bool))
    assert (model.training, model.encoder.training, model.decoder.training) == (True, False, True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_precision_takes_images(
    build: Callable[..., MaskedModel], photographs: list[Image.Image], dtype: torch.dtype
) -> None:
    model = build().to(dtype)
    assert model.encode(photographs).last.dtype == dtype
    assert model.reconstruct(photographs, ratio=0.5).predicted.isfinite().any()
    assert len(Classifier.of(model, classes=3).to(dtype).predict(photographs)) == 3
    segmenter = Segmenter.build(model.tokenizer, model.encoder, LinearHead.Config(), classes=3, data=model.data).to(dtype)
    assert segmenter.predict(photographs)[0]["labels"].shape == (30, 20)
