"""Folders of transformers load with the same loss and features, and exported folders load in transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_load_mae import assert_same
from test_parity_mae import noisy
from test_parity_videomae import TINY, hidden_map, videomae
from torch import Tensor, nn

from mmm import Input, Mask, MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker, RandomMasker
from mmm.pools import MeanPool
from mmm.targets import PixelTarget
from mmm.weights.formats import FORMATS
from mmm.weights.formats.transformers import DEFAULTS
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load

SMALL = {
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}


def theirs(name: str, **changes: object) -> nn.Module:
    """Returns one of transformers' models, small, with random weights."""
    import transformers

    kind = next(kind for kind in ("ViTMAE", "VideoMAE", "ViT", "IJepa") if name.startswith(kind))
    size = {"num_frames": 4, "image_size": [8, 12]} if kind == "VideoMAE" else {"image_size": 12}  # decoders need square images
    config = getattr(transformers, f"{kind}Config")(**(SMALL | size | changes))
    config._attn_implementation = "sdpa"
    model = getattr(transformers, name)(config)
    noisy(model)
    return model.eval()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_vit_mae_has_the_same_loss(tmp_path: Path, norm_pix: bool, biased: bool) -> None:
    original = theirs("ViTMAEForPreTraining", norm_pix_loss=norm_pix, qkv_bias=biased)
    original.save_pretrained(tmp_path)
    model = load(tmp_path)
    images, noise = torch.randn(2, 3, 12, 12), torch.rand(2, 9)
    order = noise.argsort(dim=1)
    ours = model(images, Mask(order[:, :2], order[:, 2:])).loss
    assert ours.item() == pytest.approx(original(images, noise=noise).loss.item(), rel=1e-6)
    assert model.masker.config.ratio == 0.75


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_videomae_has_the_same_loss(tmp_path: Path, norm_pix: bool, pooled: bool, biased: bool) -> None:
    original = theirs("VideoMAEForPreTraining", norm_pix_loss=norm_pix, use_mean_pooling=pooled, qv_bias=biased)
    original.save_pretrained(tmp_path)
    model = load(tmp_path / "model.safetensors", predict=0.5)
    clips, order = torch.randn(2, 3, 4, 8, 12), torch.rand(2, 12).argsort(dim=1)
    mask = Mask(order[:, :4], order[:, 4:])
    expected = original(clips.transpose(1, 2), bool_masked_pos=hidden_map(mask, 12)).loss
    assert model(clips, mask).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.masker.config.predict == 0.5


NAMES = [("ViTMAEModel", None), ("IJepaModel", None), ("VideoMAEModel", True), ("VideoMAEModel", False)]


@pytest.mark.parametrize(("name", "pooled"), NAMES, ids=str)
def test_encoders_have_the_same_features(tmp_path: Path, name: str, pooled: bool | None) -> None:
    original = theirs(name, **({} if pooled is None else {"use_mean_pooling": pooled}))
    original.save_pretrained(tmp_path)
    model = load(tmp_path).eval()
    assert model.decoder is None
    if name == "ViTMAEModel":
        images = torch.randn(2, 3, 12, 12)
        original.config.mask_ratio = 0.0
        expected, ours = original(images, noise=torch.arange(9.0).expand(2, -1)).last_hidden_state, model.encode(images).last
    elif name == "IJepaModel":
        images = torch.randn(2, 3, 12, 12)
        expected, ours = original(images).last_hidden_state, model.encode(images).last
        assert write_transformers(model, tmp_path / "back") == name
        assert_same(load_file(tmp_path / "back" / "model.safetensors"), load_file(tmp_path / "model.safetensors"))
    else:
        clips = torch.randn(2, 3, 4, 8, 12)
        expected, ours = original(clips.transpose(1, 2)).last_hidden_state, model.encode(clips).last
    assert expected.std() > 0.1
    assert (expected - ours).abs().max() <= 1e-5


LABELS = {"id2label": {0: "cat", 1: "dog", 2: "fish"}, "label2id": {"cat": 0, "dog": 1, "fish": 2}}


@pytest.mark.parametrize("name", ["ViTForImageClassification", "IJepaForImageClassification", "VideoMAEForVideoClassification"])
def test_classifiers_come_with_their_heads_and_go_back(tmp_path: Path, name: str) -> None:
    original = theirs(name, **LABELS)
    original.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    assert isinstance(model, Classifier)
    assert model.labels == ("cat", "dog", "fish")
    x = torch.randn(2, 3, 4, 8, 12) if name.startswith("Video") else torch.randn(2, 3, 12, 12)
    expected = original(x.transpose(1, 2) if x.dim() == 5 else x).logits
    assert (expected - model(x)).abs().max() <= 1e-5
    assert write_transformers(model, tmp_path / "ours") == name
    assert_same(load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors"))
    import transformers

    again, told = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert again.config.id2label == LABELS["id2label"]
    assert torch.equal(again.eval()(x.transpose(1, 2) if x.dim() == 5 else x).logits, expected)


def test_a_video_head_that_reads_the_first_token_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = theirs("VideoMAEForVideoClassification", use_mean_pooling=False)
    original.save_pretrained(tmp_path)
    caplog.clear()
    model, clips = load(tmp_path), torch.randn(2, 3, 4, 8, 12)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(name in warning for name in ("classifier.weight", "classifier.bias", "first token"))
    assert (original.videomae(clips.transpose(1, 2)).last_hidden_state - model.encode(clips).last).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["ViTMAEForPreTraining", "VideoMAEForPreTraining"])
def test_the_fifth_versions_own_names_are_read(tmp_path: Path, name: str) -> None:
    original = theirs(name)
    original.save_pretrained(tmp_path)
    saved = load(tmp_path).state_dict()
    within = {name: value.clone() for name, value in original.state_dict().items()}
    assert set(within) != set(load_file(tmp_path / "model.safetensors"))
    save_file(within, tmp_path / "model.safetensors")
    assert_same(load(tmp_path).state_dict(), saved)


@pytest.mark.parametrize("name", ["ViTMAEForPreTraining", "VideoMAEForPreTraining", "ViTMAEModel", "VideoMAEModel"])
def test_every_name_is_accounted_for(tmp_path: Path, name: str) -> None:
    theirs(name).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    for one in list(whole)[::13]:
        for broken, said in (
            ({other: value for other, value in whole.items() if other != one}, "lacks"),
            (whole | {one: whole[one][None]}, "as"),
        ):
            save_file(broken, file)
            with pytest.raises(ValueError, match=f"{said}|has no {said}"):
                load(tmp_path)
    save_file(whole | {"extra": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="has extra, which the model does not have"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"patch_size": [4, 2]}, "patch_size 4 x 2"),
        ({"image_size": "8"}, "image_size is '8'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 3}, "lacks"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    theirs("ViTMAEModel").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_arguments_that_config_answers_are_refused(tmp_path: Path) -> None:
    theirs("ViTMAEModel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="heads=2 was given, but .* takes predict; leave it out"):
        load(tmp_path, heads=2)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"contains none of model\.safetensors, pytorch_model\.bin"):
        load(tmp_path)


def write_transformers(model: MaskedModel | Classifier, folder: Path) -> str:
    """Exports the model; returns the name of the class that reads the folder."""
    folder.mkdir(exist_ok=True)
    return FORMATS["transformers"].write(model, folder)[0].removeprefix("from transformers import ")


def mae(build: Callable[..., MaskedModel]) -> MaskedModel:
    return build(size=(12, 12))


def ours(kind: str, build: Callable[..., MaskedModel], disturb: Callable[..., nn.Module]) -> MaskedModel:
    return mae(build) if kind == "ViTMAE" else disturb(videomae(TINY))  # type: ignore


@pytest.mark.parametrize("decoded", [True, False])
@pytest.mark.parametrize("kind", ["ViTMAE", "VideoMAE"])
def test_what_is_written_loads_there_and_comes_back_bit_for_bit(tmp_path, kind, decoded, build, disturb) -> None:
    import transformers

    model = ours(kind, build, disturb)
    if not decoded:
        model.decoder = None
    name = write_transformers(model, tmp_path)
    assert name == f"{kind}{'ForPreTraining' if decoded else 'Model'}"
    there, told = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True, attn_implementation="sdpa")
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    again = load(tmp_path)
    assert_same(again.state_dict(), model.state_dict())
    compare_features(model, there, decoded)
    if decoded:
        there.save_pretrained(tmp_path / "theirs")
        assert_same(load(tmp_path / "theirs").state_dict(), model.state_dict())


def compare_features(model: MaskedModel, there: nn.Module, decoded: bool) -> None:
    """Compares the loss if there is a decoder, up to the effect of the last norm's epsilon; otherwise compares the features."""
    clips = torch.randn(2, 3, 6, 16, 24)
    x: Tensor = clips if len(model.tokenizer.size) == 3 else torch.randn(2, 3, 12, 12)
    model.eval(), there.eval()
    order = torch.rand(2, 18 if x is clips else 9).argsort(dim=1)
    mask = Mask(order[:, : order.shape[1] // 4], order[:, order.shape[1] // 4 :])
    if x is clips:
        turned = clips.transpose(1, 2)
        expected = there(turned, bool_masked_pos=hidden_map(mask, 18)).loss if decoded else there(turned).last_hidden_state
    elif decoded:
        expected = there(x, noise=torch.empty(2, 9).scatter(1, order, torch.arange(9.0).expand(2, -1))).loss
    else:
        there.config.mask_ratio = 0.0
        expected = there(x, noise=torch.arange(9.0).expand(2, -1)).last_hidden_state
    mine = model(x, mask).loss if decoded else model.encode(x).last
    assert (mine - expected).abs().max() <= (1e-4 if decoded else 1e-5)


def test_a_bare_config_is_at_their_defaults(tmp_path: Path) -> None:
    """config.json may omit values that are at the default."""
    import transformers

    for kind, name in (("vit_mae", "ViTMAEConfig"), ("videomae", "VideoMAEConfig")):
        config = getattr(transformers, name)()
        assert {field: getattr(config, field) for field in DEFAULTS[kind]} == DEFAULTS[kind]  # type: ignore


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"decoder": CrossAttentionDecoder.Config(width=16, depth=1, heads=2)},
            "decoder.name self_attention or none; not .* decoder.name cross_attention",
        ),
        ({"encoder": VisionTransformer.Config(width=24, depth=2, heads=2, class_token=False)}, "encoder.class_token False"),
        ({"decoder": SelfAttentionDecoder.Config(width=16, depth=1, heads=2, embed_bias=False)}, "decoder.embed_bias False"),
        ({"decoder": SelfAttentionDecoder.Config(width=16, depth=1, heads=2, norm_epsilon=1e-5)}, "decoder.norm_epsilon 1e-05"),
        ({"decoder": SelfAttentionDecoder.Config(width=16, depth=1, heads=2, fusion="linear")}, "without a final norm"),
        ({"size": (8, 12)}, "positions of 2 x 3 tokens"),
    ],
)
def test_export_refuses_what_they_cannot_hold(tmp_path: Path, parts, said: str, build) -> None:
    with pytest.raises(ValueError, match=said):
        write_transformers(build(**({"size": (12, 12)} | parts)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_export_says_what_their_last_norm_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_transformers(videomae(TINY), tmp_path)
    assert "epsilon of 1e-05, not 1e-06" in caplog.text
    caplog.clear()
    write_transformers(videomae(TINY, head_epsilon=1e-5), tmp_path)
    assert not caplog.text


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"target": PixelTarget.Config(standardise="channel")}, "target.standardise channel"),
        ({"target": PixelTarget.Config(loss="l1", epsilon=1e-4)}, "target.epsilon 0.0001, target.loss l1"),
        ({"masker": RandomMasker.Config(ratio=0.5, predict=0.25)}, "masker.predict 0.25"),
        ({"masker": BlockMasker.Config(ratio=0.5)}, "masker.name block"),
        ({}, ""),
    ],
)
def test_what_config_json_cannot_say_of_the_objective_is_said(tmp_path: Path, caplog, parts, said: str, build) -> None:
    model = build(size=(12, 12), **({"masker": RandomMasker.Config(ratio=0.5)} | parts))
    write_transformers(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask_ratio"] == 0.5
    assert said in caplog.text
    assert said or not caplog.text
    model.decoder = None  # no training continues from an encoder
    caplog.clear()
    write_transformers(model, tmp_path)
    assert not caplog.text


def test_pixels_are_read_from_the_preprocessor_s_config(tmp_path: Path) -> None:
    theirs("ViTMAEModel").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    assert load(tmp_path).data == Input(size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_a_classifier_that_theirs_cannot_hold_is_refused(tmp_path: Path, build) -> None:
    model = Classifier.of(build(size=(12, 12)), classes=3, pool=MeanPool.Config(), head=HeadConfig(norm="layer"))
    with pytest.raises(ValueError, match="vit cannot hold pool.name mean, head.norm layer.*--pool.name class, or export --to timm"):
        write_transformers(model, tmp_path)


def test_a_model_starts_from_such_a_folder(tmp_path: Path, build: Callable[..., MaskedModel]) -> None:
    model = mae(build)
    write_transformers(model, tmp_path)
    fresh = mae(build)
    initialise_from(fresh, tmp_path)
    assert_same(fresh.state_dict(), model.state_dict())
    config = fresh.encoder.config
    other = build(size=(12, 12), encoder=replace(config, heads=3))
    with pytest.raises(ValueError, match="other numbers of attention heads"):
        initialise_from(other, tmp_path)
