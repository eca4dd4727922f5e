"""Exports: folders that mmm, timm and transformers load as the same model, their cards, and the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import load_recipe, reset_accelerate
from PIL import Image
from test_extract import ask
from test_files import Hostile
from test_load_mae import encoder_file
from torch import Tensor

import mmm
from mmm import Input, MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.config.cli import main as cli
from mmm.core.rng import sample_keys
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.data import ImagesConfig, open_images
from mmm.data.annotated.detection import empty_canvas, fitted, paint
from mmm.data.transforms.crop import normalise
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.dense.detector import Detector, MaskRCNN
from mmm.dense.heads import LinearHead
from mmm.dense.segmenter import Segmenter
from mmm.encoders import Encoder, EncoderConfig, VisionTransformer, encoders
from mmm.evaluate.run_results import Record, record
from mmm.maskers import RandomMasker, TubeMasker
from mmm.pools import pools
from mmm.targets import CodeTarget, LatentTarget, PairTarget
from mmm.weights.build import VIDEOMAE_TARGET
from mmm.weights.formats import FORMATS

PARTS = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2", "--decoder.width", "16", "--decoder.heads", "2")
SMALL = (*PARTS, "--decoder.depth", "1", "--data.workers", "0", "--train.precision", "fp32")
FILES = {"README.md", "config.json", "config.yaml", "model.safetensors", "preprocessor_config.json"}
SIZE = ("--data.image_size", "32", "--tokenizer.size", "8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a short run on real tiles; its folder and data are at private paths. Tests must not write to it."""
    tmp_path = tmp_path_factory.mktemp("trained")
    tiles = open_images(ImagesConfig(source="builtin:photographs", channels=3), "eval")
    for place in range(0, 240, 10):
        path = tmp_path / "private" / "tiles" / str(int(tiles.labels()[place])) / f"{place}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(tiles.read(place)).save(path)
    data = (
        "--data.source",
        str(tmp_path / "private" / "tiles"),
        "--data.holdout",
        "0.3",
        "--data.eval_split",
        "none",
        "--data.channels",
        "3",
    )
    pixels = ("--data.mean", "0.4", "0.4", "0.4", "--data.std", "0.2", "0.2", "0.2")
    recipe = load_recipe("image_mae")
    argv = ["--preset", "demo", "--train.steps", "2", "--train.batch_size", "8", "--evaluate", *data, *pixels, *SMALL, *SIZE]
    cli(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*argv, "--folder", str(tmp_path / "private" / "run")])
    reset_accelerate()
    return tmp_path / "private" / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Copies the run, so that a test can write to it."""
    shutil.copytree(trained.parent, tmp_path / "private")
    return tmp_path / "private" / "run"


def photographs(run: Path) -> Tensor:
    """Returns real tiles, normalised."""
    images = open_images(ImagesConfig(source=str(run.parent / "tiles"), image_size=32, holdout=0.0, workers=0), "train")
    return images.eval_views(torch.arange(4))[0].float() / 255 / 0.2 - 2


def same(one: MaskedModel, other: MaskedModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_loads_to_the_same_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "given"
    ask(["export", str(run), "--out", str(out)])
    model, again, x = mmm.load(run), mmm.load(out), photographs(run)
    assert {path.name for path in out.iterdir()} == FILES
    assert same(model, again)
    mask = model.masker(sample_keys(0, 0, torch.arange(4)), model.tokenizer.grid(x))
    assert torch.equal(model.eval()(x, mask=mask).loss, again.eval()(x, mask=mask).loss)
    assert same(mmm.load(out / "model.safetensors"), model)
    found = ask(["knn", str(out), "--source", str(run.parent / "tiles"), "--holdout", "0.3", "--k", "3", "--device", "cpu"])
    assert found["test"] == 7
    alone = tmp_path / "encoder"
    ask(["export", str(out), "--encoder_only", "--out", str(alone)])
    encoder = mmm.load(alone)
    assert encoder.decoder is None
    assert torch.equal(encoder.eval().encode(x).last, model.encode(x).last)
    assert (alone / "model.safetensors").stat().st_size < (out / "model.safetensors").stat().st_size


def test_from_here_to_here(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    ask(["export", "run", "--out", "given"])
    ask(["export", "run"])
    assert same(mmm.load("given"), mmm.load("run-export"))


def test_a_pickle_is_converted_and_a_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = encoder_file(width=192, depth=1, grid=(14, 14))
    torch.save({"model": weights, "epoch": 3}, tmp_path / "published.pth")
    ask(["export", str(tmp_path / "published.pth"), "--out", str(tmp_path / "given")])
    assert {path.name for path in (tmp_path / "given").iterdir()} == FILES
    assert same(mmm.load(tmp_path / "given"), mmm.load(tmp_path / "published.pth"))
    canary = tmp_path / "canary"
    torch.save({"model": weights, "args": Hostile(os.system, f"touch {canary}")}, tmp_path / "program.pth")
    with pytest.raises(SystemExit):
        ask(["export", str(tmp_path / "program.pth"), "--out", str(tmp_path / "other")])
    assert "could rebuild; refused" in capsys.readouterr().err
    assert not canary.exists()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("to", ["folder", "timm", "transformers"])
def test_the_card_of_an_encoder_calls_what_it_has(run: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's lines run in the library that they name, and return the features of all tokens; an encoder's card names no
    loss."""
    ask(["export", str(run), "--encoder_only", "--to", to, "--out", str(tmp_path / "given")])
    card = (tmp_path / "given" / "README.md").read_text()
    assert "loss = " not in card
    assert "has no loss and no reconstruction" in card
    names: dict[str, Any] = {"x": photographs(run)}
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
        expected = mmm.load(run).encode(names["x"]).tokens
    torch.testing.assert_close(names["features"][:, -expected.shape[1] :], expected, atol=1e-4, rtol=1e-4)


def test_a_card_says_what_the_run_says_and_no_more(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(run, "features", 2, {"neighbours": {"trained": {"top1": 0.4375, "top5": 1.0}}, "k": 20})
    record(run, "reconstruct", 1, {"psnr": {"model": 11.25}})  # results of other weights than these
    ask(["export", str(run), "--out", str(tmp_path / "given")])
    card = (tmp_path / "given" / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)---\n(.*)", card, re.DOTALL).groups()
    said = yaml.safe_load(front)
    assert (said["library_name"], said["license"], said["pipeline_tag"]) == ("mmm", "unknown", "image-feature-extraction")
    assert said["tags"] == ["masked-autoencoder", "self-supervised-learning", "image"]
    [result] = said["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.4375, 1.0]
    assert "| features | neighbours.trained.top1 | 0.4375 |" in body
    assert "11.25" not in card
    assert "updates: 2\n" in body
    assert "batch size: 8\n" in body
    assert "data: `tiles`" in body
    written = [path.read_text() for path in (tmp_path / "given").iterdir() if path.suffix != ".safetensors"]
    assert not [text for text in written if "private" in text or str(tmp_path) in text]
    model = mmm.load(run)
    assert f"encoder: {sum(weight.numel() for weight in model.encoder.parameters()):,}" in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    names: dict[str, Any] = {"x": photographs(run)}
    monkeypatch.chdir(tmp_path)
    exec(code, names)  # the code that the card shows
    assert names["features"].shape == (4, 16, 24)
    assert names["loss"].isfinite()


def test_results_of_the_average_are_not_those_of_the_trained_weights(run: Path, tmp_path: Path) -> None:
    """The card of the weights as they were trained showed the results of their moving average, and mmm knn replaced these."""
    recipe, folder = load_recipe("image_mae"), tmp_path / "averaged"
    argv = ["--config", str(run / "config.yaml"), "--train.ema", "0.5", "--evaluate", "features", "--evaluate.features.k", "3"]
    cli(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*argv, "--folder", str(folder)])
    reset_accelerate()
    average = folder / "checkpoints" / "step_00000002" / "ema.safetensors"
    for model, shown in ((folder, False), (average, True)):
        ask(["export", str(model), "--out", str(tmp_path / f"given-{shown}")])
        assert ("| features |" in (tmp_path / f"given-{shown}" / "README.md").read_text()) == shown
    own = Record.read(folder).evaluations["features"]
    ask(["knn", str(folder), "--k", "5", "--device", "cpu"])
    assert Record.read(folder).evaluations["features"] == own
    assert Record.read(folder, averaged=False).evaluations["features"]["k"] == 5
    ask(["knn", str(average), "--k", "5", "--device", "cpu"])
    assert Record.read(folder).evaluations["features"]["k"] == 5
    record(run, "features", 2, {"k": 7})  # a run without an average
    lines = (run / "evaluations.jsonl").read_text()
    (run / "evaluations.jsonl").write_text(lines.replace('"averaged": false, ', ""))  # as before this was recorded
    assert Record.read(run).evaluations["features"] == {"kind": "features", "step": 2, "k": 7}


@pytest.mark.parametrize(("changes", "average", "shown"), [({}, None, True), ({"step": 1}, None, False), ({}, 0.5, False)])
def test_scores_of_a_run_are_in_its_card(run: Path, tmp_path: Path, changes: Any, average: float | None, shown: bool) -> None:
    """The card of a fine-tuned model had no scores, because they are in result.json. If the run has a moving average, they are the
    scores of the average."""
    scores = {"step": 2, "top1": 0.75, "miou": 0.25, "iou": [0.25, None], "box": {"ap": 0.5, "ap50": None}} | changes
    (run / "result.json").write_text(json.dumps(scores))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["ema"] = average
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    ask(["export", str(run), "--out", str(tmp_path / "given")])
    _, front, body = (tmp_path / "given" / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(front)
    types = [one["metrics"][0]["type"] for one in found.get("model-index", [{"results": []}])[0]["results"]]
    assert sorted(found.get("metrics", [])) == (["accuracy", "mean_average_precision", "mean_iou"] if shown else [])
    assert bool(types) == shown
    assert ("| test | box.ap | 0.5 |" in body) == shown
    assert ("miou is the mean intersection over union" in body) == shown
    assert "psnr is in dB" not in body


def test_timm_takes_the_folder_that_is_written(run: Path, tmp_path: Path) -> None:
    found = ask(["export", str(run), "--to", "timm", "--out", str(tmp_path / "encoder")])
    names: dict[str, Any] = {}
    for line in found["load"]:
        exec(line, names)
    model, x, theirs = mmm.load(run), photographs(run), names["model"].eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(x), model.encode(x).last, atol=1e-5, rtol=1e-5)
    pixels = timm.data.resolve_model_data_config(theirs)
    assert [tuple(pixels[name]) for name in ("mean", "std", "input_size")] == [(0.4,) * 3, (0.2,) * 3, (3, 32, 32)]
    again = mmm.load(tmp_path / "encoder")
    assert again.data == Input(size=(32, 32), mean=(0.4,) * 3, std=(0.2,) * 3)
    assert torch.equal(again.encode(x).last, model.encode(x).last)


@pytest.mark.parametrize(
    "changes",
    [{"class_token": False}, {"depth": 1, "heads": 4}, {"qkv_bias": "none"}, {"width": 44, "mlp_ratio": 240 / 44}],
)
def test_timm_is_told_every_choice_that_matters(build: Callable[..., MaskedModel], changes: dict[str, Any], tmp_path: Path) -> None:

    model = build((12, 16), 2, encoder=VisionTransformer.Config(**({"width": 24, "depth": 2, "heads": 2} | changes))).eval()
    FORMATS["timm"].write(model, tmp_path)
    theirs, x = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), torch.randn(2, 2, 12, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(x), model.encode(x).last, atol=1e-5, rtol=1e-5)
    other = build(encoder=VisionTransformer.Config(width=24, depth=1, heads=2, norm_epsilon=1e-12))
    with pytest.raises(ValueError, match="norm_epsilon 1e-12"):
        FORMATS["timm"].write(other, tmp_path)


@pytest.mark.parametrize(("pool", "norm"), [("class", "none"), ("mean", "layer"), ("mean", "none")])
def test_timm_takes_classifiers(build: Callable[..., MaskedModel], tmp_path: Path, pool: str, norm: str) -> None:
    unnormed = {"decoder": CrossAttentionDecoder.Config(width=16, depth=1, heads=2, fusion="linear")}
    encoder = build((12, 16), **(unnormed if norm == "layer" else {}))
    head = HeadConfig(norm=norm, std=0.5)  # type: ignore[arg-type]
    model = Classifier.of(encoder, classes=3, pool=pools[pool].Config(), head=head, labels=("a", "b", "c")).eval()
    FORMATS["timm"].write(model, tmp_path)
    theirs, x = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), torch.randn(2, 3, 12, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), model(x), atol=1e-5, rtol=1e-5)
    again = mmm.load(tmp_path)
    assert torch.equal(again(x), model(x))
    assert (again.labels, again.data) == (model.labels, model.data)


def test_transformers_takes_the_folder_that_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    found = ask(["export", str(run), "--to", "transformers", "--out", str(out)])
    assert found["load"][0] == "from transformers import ViTMAEForPreTraining"
    from transformers import ViTMAEForPreTraining

    theirs, info = ViTMAEForPreTraining.from_pretrained(str(out), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.hidden_size == 24
    assert same(mmm.load(out), mmm.load(run))
    assert "ViTMAEForPreTraining.from_pretrained" in (out / "README.md").read_text()


def test_published_weights_are_exported_too(run: Path, tmp_path: Path) -> None:
    """For a plain file, the card does not say how it was trained."""
    from safetensors.torch import save_file

    from mmm.core.types import RequiredFeatures

    encoder = VisionTransformer(
        VisionTransformer.Config(size="tiny", depth=1), token=(8, 8), channels=3, grid=(4, 4), required=RequiredFeatures()
    )  # fmt: skip
    save_file(encoder.state_dict(), tmp_path / "published.safetensors")
    found = ask(["export", str(tmp_path / "published.safetensors")])
    out = tmp_path / "published-export"
    assert found["out"] == str(out)
    model, x = mmm.load(out), photographs(run)
    assert model.decoder is None
    assert torch.equal(model.encode(x).last, mmm.load(tmp_path / "published.safetensors").encode(x).last)
    card = (out / "README.md").read_text()
    assert "without this information" in card
    assert "decoder" not in card


FLAT = {"class_token": False, "positions": "flat_sine_cosine", "qkv_bias": "qv"}
OFFICIAL: dict[str, dict[str, Any]] = {
    "mae": {},
    "crossmae": {"decoder": CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")},
    "videomae": {
        "size": (4, 16, 16),
        "masker": TubeMasker.Config(ratio=0.75),
        "encoder": VisionTransformer.Config(width=24, depth=2, heads=2, **FLAT),
        "decoder": SelfAttentionDecoder.Config(
            width=16, depth=2, heads=2, positions="flat_sine_cosine", qkv_bias="qv", embed_bias=False
        ),
        "target": VIDEOMAE_TARGET,
    },
}


@pytest.mark.parametrize("layout", OFFICIAL)
def test_a_model_goes_whole_to_an_official_layout_and_back(layout: str, build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """The weights are equal bit for bit, and so is the loss for the same masks."""
    model = build(**({"size": (16, 16)} | OFFICIAL[layout])).eval()
    model.save_pretrained(tmp_path / "private" / "mine")
    found = ask(["export", str(tmp_path / "private" / "mine"), "--to", layout, "--out", str(tmp_path / "given")])
    assert {path.name for path in (tmp_path / "given").iterdir()} == {"README.md", "checkpoint.pth", "preprocessor_config.json"}
    assert str(tmp_path) not in (tmp_path / "given" / "README.md").read_text()
    assert found["to"] == layout
    frames = {"frames": 4} if layout == "videomae" else {}
    again = mmm.load(tmp_path / "given", heads=2, decoder_heads=2, image_size=16, norm_pix=True, **frames).eval()
    assert same(model, again)
    assert again.data == model.data
    x = torch.randn(2, 3, *model.data.size)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), model.tokenizer.grid(x))
    assert torch.equal(model(x, mask=mask).loss, again(x, mask=mask).loss)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--model is not set"),
        (("RUN", "--out", "RUN"), "exists already"),
        (("RUN", "--to", "tim"), "no such format; choose from folder, transformers, "),
        (("RUN", "--to", "videomae"), "VideoMAE's layout has flat positions"),
        (("RUN", "--to", "crossmae"), "CrossMAE's layout cannot hold encoder.norm.weight"),
        (("RUN/config.yaml",), "is no"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    flags: tuple[str, ...], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ask(["export", *(flag.replace("RUN", str(run)) for flag in flags)])
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# --- a model of the user's own loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 16), (4, 8, 8)])
def test_a_masked_model_is_saved_and_loaded_in_a_line_each(build: Callable[..., MaskedModel], tmp_path: Path, size) -> None:
    model = build(size, masker=RandomMasker.Config(ratio=0.5, predict=0.25)).eval()
    model.save_pretrained(tmp_path / "mine", license="mit", results={"top1": 0.5})
    again = MaskedModel.from_pretrained(tmp_path / "mine")
    assert same(model, again)
    assert (again.data, again.masker.config, again.target.config) == (model.data, model.masker.config, model.target.config)
    assert not again.training
    card = (tmp_path / "mine" / "README.md").read_text()
    said = yaml.safe_load(card.split("---\n")[1])
    tag = "image-feature-extraction" if len(size) == 2 else "feature-extraction"
    assert (said["license"], said["pipeline_tag"], said["metrics"]) == ("mit", tag, ["accuracy"])
    assert str(tmp_path) not in card
    with pytest.raises(ValueError, match="holds no head"):
        Classifier.from_pretrained(tmp_path / "mine")
    model.decoder = None
    model.save_pretrained(tmp_path / "mine")  # overwrites the existing files
    alone, x = MaskedModel.from_pretrained(tmp_path / "mine"), torch.randn(2, 3, *size)
    assert alone.decoder is None
    assert torch.equal(alone.encode(x).last, model.encode(x).last)


@pytest.mark.parametrize("pool", ["mean", "class", "attentive"])
def test_a_classifier_is_saved_and_loaded_in_a_line_each(build: Callable[..., MaskedModel], tmp_path: Path, pool: str) -> None:
    head = HeadConfig(norm="batch", dropout=0.1)
    model = Classifier.of(build(), classes=3, pool=pools[pool].Config(), head=head, labels=("a", "b", "c")).eval()
    model.save_pretrained(tmp_path)
    again, x = Classifier.from_pretrained(tmp_path), torch.randn(2, 3, 12, 16)
    assert torch.equal(again(x), model(x))
    assert (again.labels, again.data, again.head.config) == (model.labels, model.data, head)
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "Not stated. `mmm export RUN` writes" in card  # the weights may come from a run
    assert MaskedModel.from_pretrained(tmp_path).decoder is None


def test_the_path_of_a_teacher_is_not_published(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """Targets name the runs that they are trained with by paths; the last name of a path remains."""
    runs = tmp_path / "private"
    codes = CodeTarget.Config(codes=8, source=f"timm:{runs / 'codes'}")
    target = PairTarget.Config(first=LatentTarget.Config(teacher=str(runs / "teacher")), second=codes)
    model = build(target=target)
    model.save_pretrained(tmp_path / "mine")
    written = [(tmp_path / "mine" / name).read_text().replace("'", "") for name in ("config.yaml", "README.md")]
    assert all("teacher: teacher" in text and "source: timm:codes" in text for text in written)
    assert not [text for text in written if str(tmp_path) in text]
    again = MaskedModel.from_pretrained(tmp_path / "mine")
    assert same(model, again)
    assert again.target.config.first.teacher == "teacher"
    assert model.target.config == target


def test_a_model_that_does_not_know_its_data_is_told_so(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    model = build()
    model.data = None
    with pytest.raises(ValueError, match="lacks the properties of its data; build it as MaskedModel"):
        model.save_pretrained(tmp_path)


def test_an_encoder_of_one_s_own_goes_where_it_can(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    class Own(Encoder):
        """A linear layer with a final norm of another name."""

        @dataclass(frozen=True, kw_only=True)
        class Config(EncoderConfig):
            width: int = 8

            @property
            def shape(self) -> Shape:
                return Shape(width=self.width, depth=1, prefix=0)

        def __init__(self, config: Any, *, token, channels: int, grid, required: RequiredFeatures, blanks: bool = False) -> None:
            super().__init__(config, grid=grid, required=required)
            self.embed = torch.nn.Linear(channels * token[0] * token[1], config.width)
            self.ending = torch.nn.LayerNorm(config.width) if required.last else torch.nn.Identity()

        def encode(self, visible, where, grid, blocks):
            return Features(self.ending(self.embed(visible)), 0, where)

    encoders.register("own")(Own)
    try:
        model = build(encoder=Own.Config())
        model.save_pretrained(tmp_path / "own")
        assert same(MaskedModel.from_pretrained(tmp_path / "own"), model)
        for name in ("timm", "transformers", "mae"):
            with pytest.raises(ValueError, match="encoder own|encoder.name own|cannot hold encoder.embed"):
                FORMATS[name].write(model, tmp_path)
    finally:
        encoders.parts.pop("own")


def test_clips_are_not_for_timm(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes images, and this model is of clips; export --to folder, or --to transformers"):
        FORMATS["timm"].write(build((4, 8, 8)), tmp_path)


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (4, 32, 32)])
def test_transformers_prepares_pixels_as_evaluation_does(build, tmp_path: Path, size, real_data: Path) -> None:
    """A photograph, or a still clip of it, goes through the processor that preprocessor_config.json names."""
    import transformers

    build(size).save_pretrained(tmp_path)
    picture = Image.open(next((real_data / "images").rglob("*.JPEG"))).convert("RGB")
    picture = picture.crop((0, 0, 256, 256))  # square: other shapes round half a pixel differently
    if len(size) == 2:
        [found] = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt").pixel_values
        expected = MaskedModel.from_pretrained(tmp_path).transform(picture)[0]
    else:
        processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path)
        [frames] = processor([np.asarray(picture)] * 4, return_tensors="pt").pixel_values
        found = frames.transpose(0, 1)
        expected = MaskedModel.from_pretrained(tmp_path).transform(np.stack([np.asarray(picture)] * 4))[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1.5 / 255 / 0.15  # their rounding differs


def test_transformers_prepares_pixels_as_dense_models_do(build, tmp_path: Path) -> None:
    """A detector gets the whole image at the top left of its canvas, and a segmenter the image at its own size."""
    import transformers

    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    one, other, size = build((16, 16)), build((32, 48)), (32, 48)
    canvas, small = empty_canvas(other.data.mean, size), {"channels": 8, "hidden": 8, "convolutions": 1}
    paint(canvas, values, fitted((40, 40), size))
    segmenter = Segmenter.build(one.tokenizer, one.encoder, LinearHead.Config(), classes=2, data=one.data)
    detector = Detector.build(other.tokenizer, other.encoder, MaskRCNN.Config(window=2, **small), classes=2, data=other.data)
    for model, pixels in ((segmenter, torch.from_numpy(values).permute(2, 0, 1)), (detector, canvas)):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        [found] = transformers.AutoImageProcessor.from_pretrained(folder)(Image.fromarray(values), return_tensors="pt").pixel_values
        expected = normalise(pixels[None], model.data.mean, model.data.std)[0]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1.5 / 255 / min(model.data.std)


class FakeHub:
    """Replaces huggingface_hub.HfApi, and records its calls."""

    asked: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        FakeHub.asked = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append((repo_id, options))

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.asked.append((options["repo_id"], options))
        return SimpleNamespace(commit_url="https://hub.example/commit/1")


def test_push_uploads_the_exported_files_and_no_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    out = tmp_path / "given"
    ask(["export", str(run), "--out", str(out)])
    (out / "notes.txt").write_text("mine")
    found = ask(["push", str(out), "--repo", "someone/model"])
    assert found["commit"] == "https://hub.example/commit/1"
    (made, options), (_, upload) = FakeHub.asked
    assert (made, options["private"], options["exist_ok"]) == ("someone/model", True, True)
    assert upload["folder_path"] == str(out)
    assert set(upload["allow_patterns"]) == FILES
    assert "token" not in {**options, **upload}
    ask(["push", str(out), "--repo", "someone/model", "--no_private"])
    assert FakeHub.asked[0][1]["private"] is False
    for argv, said in (
        ([str(run), "--repo", "a/b"], "not an exported folder"),
        ([str(out), "--repo", "b"], "user/name"),
        ([], "needs"),
    ):
        with pytest.raises(SystemExit):
            ask(["push", *argv])
        assert said in capsys.readouterr().err


def test_a_model_is_pushed_in_a_line(build: Callable[..., MaskedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert build().push_to_hub("someone/model", license="mit") == "https://hub.example/commit/1"
    (_, options), (_, upload) = FakeHub.asked
    assert options["private"] is True
    assert set(upload["allow_patterns"]) == FILES
    assert not Path(upload["folder_path"]).exists()


def test_without_a_network_a_push_is_one_line(
    build: Callable[..., MaskedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library raises its own error for a connection that is refused, at a port where nothing listens."""
    build().save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit):
        ask(["push", str(tmp_path), "--repo", "someone/model"])
    error = capsys.readouterr().err
    assert "error: someone/model was not pushed: " in error
    assert error.count("\n") == 1


def test_a_refusal_of_the_hub_never_shows_a_token(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    class Refusing(FakeHub):
        def create_repo(self, repo_id: str, **options: Any) -> None:
            answer = SimpleNamespace(headers={}, request=None)
            raise HfHubHTTPError("401 Unauthorized for hf_abcdefSECRET\nmore", response=answer)  # type: ignore[arg-type]

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefSECRET")
    ask(["export", str(run), "--out", str(tmp_path / "given")])
    with pytest.raises(SystemExit):
        ask(["push", str(tmp_path / "given"), "--repo", "someone/model"])
    shown = capfd.readouterr()
    assert "hf auth login" in shown.err
    assert "SECRET" not in shown.out + shown.err
    assert json.dumps("SECRET") not in json.dumps([str(path) for path in tmp_path.rglob("*")])


# --- from the hub -----------------------------------------------------------------------------------------------------------


def test_a_name_on_the_hub_is_fetched_and_loaded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download requests only config and weights."""
    exported = tmp_path / "folder"
    ask(["export", str(run), "--out", str(exported)])
    asked: list[tuple[str, list[str]]] = []

    def fetch(repo: str, *, allow_patterns: list[str], **options: object) -> str:
        asked.append((repo, allow_patterns))
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found, own = mmm.load("somebody/a-model").state_dict(), mmm.load(exported).state_dict()
    assert asked == [("somebody/a-model", ["config.yaml", "config.json", "preprocessor_config.json", "model.safetensors"])]
    assert all(torch.equal(found[name], own[name]) for name in found | own)


def test_a_name_that_the_hub_does_not_know_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, **options: object) -> str:
        raise OSError("no route, token hf_abcdef\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match="somebody/nothing does not exist here, and it could not be downloaded") as said:
        mmm.load("somebody/nothing")
    assert "hf_abcdef" not in str(said.value)
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="does not exist; expected a run folder"):
        mmm.load("runs/model.pth")  # names of files are not looked up on the hub
