"""Tests of fine-tuning on images and clips: training, scores, resume, two processes, other sizes and unreadable samples.

Run as a script, this file starts two processes (`test_two_processes_equal_one`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import PYTHONPATH
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

import mmm
from mmm import MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.config.serialize import load, save
from mmm.core.positions import Positions
from mmm.core.types import Input
from mmm.data import ClipsConfig, ImagesConfig, open_data
from mmm.data.transforms.crop import normalise
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.classification import classify
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.objectives.adapt_encoder import adapt_encoder
from mmm.objectives.finetune import build_classifier
from mmm.pools import ClassPool, MeanPool
from mmm.tokenizers import Patches, Tubes
from mmm.train.best_weights import BestWeights
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.mixup import SoftConfig
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import make_plan
from tasks import finetune

CLASSES = ("dark", "light", "middle")
IMAGES = ImagesConfig(
    image_size=8, eval_split="test", mean=(0.5,) * 3, std=(0.25,) * 3, crop_scale=(0.5, 1.0), workers=0, max_bad=0.2
)
CLIPS = ClipsConfig(
    image_size=8, frames=4, stride=1, eval_split="test", mean=(0.5,) * 3, std=(0.25,) * 3, workers=0, repeats=2, max_bad=0.2
)
ENCODER = VisionTransformer.Config(width=16, depth=2, heads=2)
TRAIN = TrainConfig(
    steps=30, batch_size=12, learning_rate=2e-2, scale_learning_rate=None, warmup_steps=3, precision="fp32", threads=1, log_every=5
)
# all options that draw random numbers, or that a resume could lose
ALL = SoftConfig(smoothing=0.1, mixup=0.8, cutmix=1.0, erase=0.5)


def picture(label: int, place: int, side: int = 12) -> np.ndarray:
    """Returns noise around one of three levels of grey."""
    noise = np.random.default_rng(100 * label + place).integers(-40, 40, (side, side, 3))
    return np.clip(60 + 70 * (0, 2, 1)[label] + noise, 0, 255).astype(np.uint8)


def write_samples(folder: Path, clips: bool = False, train: int = 12, test: int = 7) -> Path:
    """Writes images, or folders of frames, of three classes."""
    for split, count, first in (("train", train, 0), ("test", test, 50)):
        for label, name in enumerate(CLASSES):
            for place in range(first, first + count):
                path = folder / split / name / f"{place:02d}"
                files = [path / f"{frame}.png" for frame in range(6)] if clips else [path.with_suffix(".png")]
                for frame, file in enumerate(files):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture(label, place + 7 * frame)).save(file)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("clips"), clips=True, train=8, test=4)


@pytest.fixture(autouse=True)
def _one_run_a_test() -> Iterator[None]:
    from conftest import reset_accelerate

    threads = torch.get_num_threads()
    yield
    reset_accelerate()
    torch.set_num_threads(threads)


def image_config(source: Path, folder: Path, **choices: Any) -> finetune.Config:
    data = replace(IMAGES, **({"source": str(source)} | choices.pop("data", {})))
    train = replace(TRAIN, **choices.pop("train", {}))
    encoder = replace(ENCODER, **choices.pop("encoder", {}))
    return finetune.Config(data=data, tokenizer=Patches.Config(size=4), encoder=encoder, train=train, folder=str(folder), **choices)


def clip_config(source: Path, folder: Path, **choices: Any) -> finetune.Config:
    data = replace(CLIPS, source=str(source), **choices.pop("data", {}))
    encoder = replace(ENCODER, class_token=False, **choices.pop("encoder", {}))
    train = replace(TRAIN, **choices.pop("train", {}))
    tokenizer = Tubes.Config(size=4, frames=2)
    return finetune.Config(data=data, tokenizer=tokenizer, encoder=encoder, train=train, folder=str(folder), **choices)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics without measurements of time."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "clock"} for line in parsed]


def weights(run: Path, step: int, file: str = "model", folder: str = "checkpoints") -> dict[str, torch.Tensor]:
    return load_file(run / folder / f"step_{step:08d}" / f"{file}.safetensors")


# --- learning ---------------------------------------------------------------------------------------------------------------


def test_images_are_learned_with_soft_targets_and_all_is_recorded(images: Path, tmp_path: Path, capsys: Any) -> None:
    config = image_config(images, tmp_path / "run", soft=replace(ALL, erase=0.1), layer_decay=0.9, train={"evaluate_every": 10})
    result = finetune.run(config)
    assert result["top1"] >= 0.9
    assert (result["samples"], result["unreadable"], result["classes"]) == (21, 0, list(CLASSES))
    assert len(result["per_class"]) == 3
    assert result["mean_per_class"] == pytest.approx(sum(result["per_class"]) / 3)
    assert result["top5"] == 1.0
    assert "trained from scratch: top-1" in capsys.readouterr().out
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written if "test_top1" in line] == [10, 20, 30]
    assert written[-1]["test_loss"] == pytest.approx(result["loss"])
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["top1"] == result["top1"]
    assert saved["protocol"]["model"] == "scratch"
    assert saved["protocol"]["test"]["per_class"] == [7, 7, 7]
    assert saved["protocol"]["schedule"]["soft.mixup"] == 0.8
    assert load(finetune.Config, tmp_path / "run" / "config.yaml").train == config.train


@pytest.mark.parametrize(("norm", "pool"), [("layer", MeanPool), ("none", MeanPool), ("layer", ClassPool)])
def test_a_fine_tuned_run_loads_with_its_head(images: Path, tmp_path: Path, norm: Any, pool: Any, caplog: Any) -> None:
    """The encoder keeps the norm after its last block unless the head has one in its place. On a class token the head has none."""
    run, parts = tmp_path / "run", {"head": HeadConfig(norm=norm), "pool": pool.Config()}
    result = finetune.run(image_config(images, run, **parts, train={"steps": 2}))
    model, saved = mmm.load(run), weights(run, 2)
    assert isinstance(model, Classifier)
    assert list(model.labels or ()) == result["classes"]
    assert model.state_dict().keys() == saved.keys()
    assert ("encoder.norm.weight" in saved) == (norm == "none" or pool is ClassPool)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    again = image_config(images, tmp_path / "again", **parts, model=str(run), train={"steps": 1})
    assert finetune.run(again)["samples"] == 21
    assert "only its encoder is used" in caplog.text


def test_clips_are_learned_and_scored_by_all_their_views(clips: Path, tmp_path: Path) -> None:
    config = clip_config(clips, tmp_path / "run", soft=ALL, data={"eval_clips": 2, "eval_crops": 3, "augment": "rand-m7-n4-inc1"})
    result = finetune.run(config)
    assert result["top1"] >= 0.9
    assert result["samples"] == 12  # each sample counts once, for any number of views
    assert result["protocol"]["views"] == 6
    assert lines(tmp_path / "run")[-1]["epoch"] == pytest.approx(30 * 12 / (24 * 2))


def test_nothing_is_learned_without_a_learning_rate(images: Path, tmp_path: Path) -> None:
    """The accuracy is low without training, so the tests above show that training works."""
    result = finetune.run(image_config(images, tmp_path / "run", train={"learning_rate": 1e-9}))
    assert result["top1"] < 0.8


# --- starting from pretrained weights ---------------------------------------------------------------------------------------


def pretrained(tmp_path: Path, images: Path) -> Path:
    """Runs the MAE task for two steps, and returns the run folder."""
    from conftest import reset_accelerate

    from mmm.decoders import SelfAttentionDecoder
    from tasks import pretrain

    config = pretrain.Config(
        data=replace(IMAGES, source=str(images)),
        tokenizer=Patches.Config(size=4),
        encoder=replace(ENCODER, width=24),
        decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
        train=replace(TRAIN, steps=2),
        folder=str(tmp_path / "pretrained"),
        evaluate=EvaluatorSet.of(MaskedLoss.Config(samples=4)),
    )
    pretrain.run(config)
    reset_accelerate()
    return tmp_path / "pretrained"


def test_a_run_s_encoder_is_taken_as_it_is_and_no_other_part(images: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path, images)
    frozen = {"learning_rate": 1e-12, "steps": 1, "weight_decay": 0.0}
    config = image_config(images, tmp_path / "tuned", model=str(run), train=frozen, encoder={"drop_path": 0.2})
    result = finetune.run(config)
    before, after = weights(run, 2), weights(tmp_path / "tuned", 1)
    shared = {name for name in after if name.startswith("encoder.")}
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in shared)
    assert after.keys() - shared == {f"head.{part}.{kind}" for part in ("fc_norm", "linear") for kind in ("weight", "bias")}
    assert {name for name in before if name.startswith("encoder.")} - shared == {"encoder.norm.weight", "encoder.norm.bias"}
    saved = yaml.safe_load((tmp_path / "tuned" / "config.yaml").read_text())
    assert (saved["encoder"]["width"], saved["encoder"]["drop_path"], saved["tokenizer"]["size"]) == (24, 0.2, 4)
    assert result["protocol"]["model"] == str(run)


def test_pixels_normalised_otherwise_are_refused(images: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path, images)
    with pytest.raises(ValueError, match=r"give --data\.mean 0\.5 0\.5 0\.5"):
        finetune.run(image_config(images, tmp_path / "tuned", model=str(run), data={"mean": (0.4,) * 3}))


POSITIONS: tuple[Positions, ...] = ("sine_cosine", "flat_sine_cosine", "learned")


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("home", "size"), [((12, 16), (16, 24)), ((4, 8, 8), (8, 8, 12)), ((4, 8, 8), (4, 8, 8))])
def test_an_encoder_at_another_size_gives_what_the_pretrained_one_gives_there(
    build: Callable[..., MaskedModel], positions: Positions, home: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """The pretrained encoder computes or resizes positions for another grid in every forward pass, the adapted one only once."""
    model = build(home, encoder=replace(ENCODER, positions=positions))
    data = Input(size=size)
    encoder: Any = adapt_encoder(model, data, drop_path=0.1, last_norm=True).eval()
    classifier = Classifier.build(model.tokenizer, encoder, classes=3)
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(classifier.encode(x), model.eval().encode(x).last, rtol=1e-5, atol=1e-5)
    assert encoder.home == model.tokenizer.grid_of(size)
    assert encoder.pos_embed.shape[1] == 1 + encoder.home[0] * encoder.home[1] * (encoder.home[2] if len(size) == 3 else 1)
    assert encoder.config.drop_path == 0.1
    assert encoder.pos_embed.requires_grad == (positions == "learned")
    assert not encoder.pos_embed.is_set_to(model.encoder.pos_embed)


@pytest.mark.parametrize(("positions", "trains"), [("sine_cosine", True), ("sine_cosine", False), ("learned", False)])
def test_a_model_of_one_size_is_tuned_at_another(
    build: Callable[..., MaskedModel], clips: Path, tmp_path: Path, positions: Positions, trains: bool
) -> None:
    """A model for two frames of 8 pixels is fine-tuned on four frames of 12 pixels, with positions that are trained or fixed."""
    model = build((2, 8, 8), encoder=replace(ENCODER, positions=positions))
    config = clip_config(clips, tmp_path, data={"image_size": 12}, train_positions=trains)
    classifier = build_classifier(config, model, 3)
    encoder: Any = classifier.encoder
    before = encoder.pos_embed.detach().clone()
    optimizer = make_optimizer(classifier, TRAIN, layer_decay=0.5)
    F.cross_entropy(classifier(torch.randn(4, 3, 4, 12, 12)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert torch.equal(before, encoder.pos_embed) == (positions != "learned" and not trains)
    assert isinstance(encoder.norm, torch.nn.Identity)  # the norm of the head replaces it


def test_a_norm_that_the_model_lacks_is_said(build: Callable[..., MaskedModel], caplog: Any) -> None:
    """CrossMAE's encoders have no norm after the last block."""
    from mmm.decoders import CrossAttentionDecoder

    model = build(decoder=CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear"))
    encoder: Any = adapt_encoder(model, Input(size=(12, 16)), drop_path=0.0, last_norm=True)
    assert torch.equal(encoder.norm.weight, torch.ones(24))
    assert "no norm.bias and norm.weight; it is newly initialised" in caplog.text


# --- exact resume -----------------------------------------------------------------------------------------------------------


def everything(source: Path, folder: Path, **choices: Any) -> finetune.Config:
    """Returns a config with mixing, erasing, augmenting, drop path, dropout, an average and weights chosen by held-back samples."""
    return image_config(
        source,
        folder,
        soft=ALL,
        layer_decay=0.7,
        train_positions=True,
        held_back=0.25,
        head=HeadConfig(norm="layer", dropout=0.3),
        encoder={"drop_path": 0.4},
        data={"augment": "rand-m9-mstd0.5-inc1"},
        train={
            "steps": 8,
            "batch_size": 16,
            "micro_batch_size": 4,
            "ema": 0.8,
            "save_every": 3,
            "log_every": 1,
            "evaluate_every": 2,
            "keep_last": None,
        },
        **choices,
    )


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with `samples`, one of which is damaged, and `run`, a run with all options. Tests must not write to it."""
    import random

    from conftest import reset_accelerate

    folder = tmp_path_factory.mktemp("whole")
    damaged(images, folder / "samples")
    random.seed(0), np.random.seed(0)
    before = random.getstate(), str(np.random.get_state(legacy=False))
    finetune.run(everything(folder / "samples", folder / "run"))
    # fine-tuning leaves the caller's random generators as they were, except for torch's, which the loop seeds for each step
    assert (random.getstate(), str(np.random.get_state(legacy=False))) == before
    reset_accelerate()
    return folder


@pytest.mark.parametrize("until", [3, 6])
def test_stopped_and_resumed_is_never_stopped(whole: Path, tmp_path: Path, until: int) -> None:
    """The stopped run has no checkpoint after step `until`, but all lines of metrics and the best weights."""
    shutil.copytree(whole / "run", tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if int(path.name[-8:]) > until:
            shutil.rmtree(path)
    result = finetune.run(everything(whole / "samples", tmp_path / "run", resume=True))
    for file in ("model", "ema", "optimizer"):
        one, other = (weights(folder / "run", 8, file) for folder in (whole, tmp_path))
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert lines(whole / "run") == lines(tmp_path / "run")
    before = json.loads((whole / "run" / "result.json").read_text())
    assert {**before, "run": None} == json.loads(json.dumps({**result, "run": None}))


# --- choosing weights -------------------------------------------------------------------------------------------------------


def test_samples_held_back_choose_the_weights_and_the_test_part_never_does(images: Path, tmp_path: Path) -> None:
    """The rising learning rate first improves and then destroys the weights, so that the best ones are in the middle."""
    train = {"steps": 16, "evaluate_every": 2, "learning_rate": 0.05, "warmup_steps": 14, "keep_last": 1}
    result = finetune.run(image_config(images, tmp_path / "run", held_back=0.3, train=train))
    scores = {line["step"]: line["held_back_top1"] for line in lines(tmp_path / "run") if "held_back_top1" in line}
    assert list(scores) == list(range(2, 17, 2))
    assert result["step"] == max(scores, key=lambda step: (scores[step], -step))
    assert not any(name.startswith("test_") for line in lines(tmp_path / "run") for name in line)
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == [f"step_{result['step']:08d}"]
    assert result["protocol"]["validation"]["samples"] == 11
    assert result["protocol"]["train"]["samples"] == 25
    best = weights(tmp_path / "run", result["step"], folder="best")
    for path in ("run", "run/best", f"run/best/step_{result['step']:08d}"):  # the run is used with the weights that were scored
        loaded = mmm.load(tmp_path / path).state_dict()
        assert all(torch.equal(loaded[name], best[name]) for name in best)
    last = mmm.load(tmp_path / "run" / "checkpoints").state_dict()
    assert not all(torch.equal(last[name], best[name]) for name in best)


def test_the_best_weights_of_an_earlier_start_are_replaced(tmp_path: Path) -> None:
    """A start with other options has its best score at the same step."""
    training = SimpleNamespace(accelerator=start(TRAIN), step=3, unwrapped=torch.nn.Linear(1, 1))
    for value in (1.0, 2.0):
        torch.nn.init.constant_(training.unwrapped.weight, value)
        best = BestWeights(SimpleNamespace(path=tmp_path), training, "top1")  # type: ignore[arg-type]
        best.offer(50.0)
    best.load(loaded := torch.nn.Linear(1, 1))
    assert loaded.weight.item() == 2.0


# --- scoring ----------------------------------------------------------------------------------------------------------------


def damaged(source: Path, copy: Path) -> Path:
    """Copies the samples, and replaces one test sample of 'light' by a file that is not an image."""
    shutil.copytree(source, copy)
    broken = sorted((copy / "test" / "light").iterdir())[1]
    file = sorted(broken.iterdir())[2] if broken.is_dir() else broken
    file.write_bytes(b"no picture")
    return copy


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_are_those_of_a_plain_loop(clips: Path, tmp_path: Path, batch_size: int) -> None:
    """Scores average the views of each clip for any batch size, and leave unreadable samples out of every count."""
    data = replace(CLIPS, source=str(damaged(clips, tmp_path / "damaged")), image_size=8, eval_clips=2, eval_crops=2)
    part: Any = open_data(data, "eval")
    model = build_classifier(clip_config(clips, tmp_path), None, 3)
    problems: list[Any] = []
    found = classify(model, part, batch_size=batch_size, device=torch.device("cpu"), problems=problems)
    right, losses, seen = torch.zeros(3), [], torch.zeros(3)
    for index, label in enumerate(part.labels().tolist()):
        views, failed = part.eval_views(torch.tensor([index]))
        if failed:
            continue
        shares = [model.eval()(normalise(view[None], data.mean, data.std)).softmax(-1) for view in views]
        mean = torch.stack(shares).mean(0)[0].detach()
        seen[label] += 1
        right[label] += int(mean.argmax()) == label
        losses.append(-mean[label].log())
    assert seen.tolist() == [4, 3, 4]
    assert (found["samples"], found["unreadable"]) == (11, 1)
    assert found["per_class"] == pytest.approx((right / seen).tolist())
    assert found["top1"] == pytest.approx((right.sum() / seen.sum()).item())
    assert found["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert [problem.name.split("/")[-2:] for problem in problems] == [["light", "51"]]


def test_what_cannot_be_read_is_reported(images: Path, tmp_path: Path) -> None:
    result = finetune.run(image_config(damaged(images, tmp_path / "damaged"), tmp_path / "run", train={"steps": 1}))
    assert (result["samples"], result["unreadable"]) == (20, 1)
    assert "light/51.png" in (tmp_path / "run" / "bad_inputs.jsonl").read_text()


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"soft": SoftConfig(mixup=0.8), "train": {"batch_size": 9}}, "and a micro-batch has 9"),
        ({"data": {"source": None}}, "data.source is not set"),
        ({"held_back": 0.001}, "of 36 samples is 0"),
        ({"layer_decay": 1.5}, "layer_decay 1.5"),
        ({"held_back": 1.0}, "held_back 1 is not"),
        ({"data": {"image_size": 10}}, "not a multiple of the token's 4"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(
    images: Path, tmp_path: Path, choices: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        finetune.run(image_config(images, tmp_path / "run", **choices))
    assert not (tmp_path / "run").exists()


def test_splits_that_count_other_classes_are_not_scored(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Column

    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        features = Features({"image": Column(), "label": ClassLabel(names=names)})
        rows = {"image": [Image.fromarray(picture(0, place)) for place in range(4)], "label": [0, 1, 0, 1]}
        (tmp_path / "tables").mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "tables" / f"{split}.parquet")
    with pytest.raises(ValueError, match="do not have the same classes: their order"):
        finetune.run(image_config(tmp_path / "tables", tmp_path / "run"))


def test_classes_that_are_never_trained_on_are_said(images: Path, tmp_path: Path, caplog: Any) -> None:
    shutil.copytree(images, tmp_path / "other")
    (tmp_path / "other" / "test" / "light").rename(tmp_path / "other" / "test" / "shiny")
    result = finetune.run(image_config(tmp_path / "other", tmp_path / "run", train={"steps": 1}))
    assert "1 classes are never trained on: shiny" in caplog.text
    assert result["classes"] == ["dark", "light", "middle", "shiny"]
    assert result["per_class"][1] is None


def test_the_dry_run_says_what_a_run_takes_and_makes_none(images: Path, tmp_path: Path, capsys: Any) -> None:
    result = finetune.run(replace(everything(images, tmp_path / "run"), dry_run=True))
    shown = capsys.readouterr().out
    assert result["dry_run"] in shown
    assert "tokens of a sample" in shown
    assert not (tmp_path / "run").exists()


# --- recipes ----------------------------------------------------------------------------------------------------------------


def test_published_values_of_every_preset() -> None:
    """Each preset has its authors' peak learning rate, epochs, layer decay, drop path, and videos or images per update."""
    from conftest import load_recipe

    published = {
        "imagenet": (2e-3, 100, 0.65, 0.1, 1024),
        "imagenet_large": (4e-3, 50, 0.75, 0.2, 1024),
        "imagenet_huge": (4e-3, 50, 0.75, 0.3, 1024),
        "kinetics": (7.5e-4, 75, 0.75, 0.1, 6 * 64),
        "kinetics_small": (7.5e-4, 150, 0.75, 0.1, 12 * 32),
        "kinetics_large": (1e-3, 35, 0.75, 0.1, 2 * 64),
        "kinetics_huge": (2e-3, 50, 0.75, 0.2, 8 * 64),
        "ssv2": (7.5e-4, 30, 0.75, 0.1, 6 * 64),
        "ssv2_small": (1.5e-3, 40, 0.7, 0.1, 12 * 32),
        "ucf101": (2.5e-4, 100, 0.7, 0.2, 16 * 8),
    }
    presets = load_recipe("image_finetune").PRESETS | load_recipe("video_finetune").PRESETS
    for name, (rate, epochs, decay, drop_path, inputs) in published.items():
        preset: finetune.Config = presets[name]
        plan = make_plan(preset.train, samples=10**6, processes=1)
        assert plan.peak == pytest.approx(rate), name
        assert preset.train.warmup_epochs == 5
        assert (preset.train.epochs, preset.layer_decay, preset.encoder.drop_path) == (epochs, decay, drop_path)  # type: ignore
        assert preset.train.batch_size == inputs * preset.data.repeats
    assert presets["ssv2"].data.flip == 0.0


@pytest.mark.parametrize("name", ["image_finetune", "video_finetune"])
def test_presets_are_saved_and_loaded_to_the_same(name: str, tmp_path: Path) -> None:
    from conftest import load_recipe

    for preset, value in load_recipe(name).PRESETS.items():
        save(value, tmp_path / f"{preset}.yaml")
        assert load(finetune.Config, tmp_path / f"{preset}.yaml") == value


# --- two processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # ten seconds on two cores; test_loop and test_recipes test the training loop in the same way
def test_two_processes_equal_one(whole: Path, tmp_path: Path) -> None:
    """Two processes use the same micro-batches, mixing, augmentation and drop path, and count each test sample once."""
    both = subprocess.Popen(
        [sys.executable, __file__, str(whole / "samples"), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = both.communicate(timeout=150)  # the timeout fails the test if a process waits for one that has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(both.pid, signal.SIGKILL)
    assert both.returncode == 0, output
    one, two = (json.loads((folder / "run" / "result.json").read_text()) for folder in (whole, tmp_path))
    first, second = lines(whole / "run"), lines(tmp_path / "run")
    assert second[0]["loss"] == pytest.approx(first[0]["loss"], rel=1e-6)
    for name in ("loss", "held_back_loss"):
        values, expected = ([line[name] for line in run if name in line] for run in (second, first))
        assert values == pytest.approx(expected, rel=1e-3)
    assert (two["samples"], two["unreadable"], two["step"]) == (20, 1, one["step"])
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def fork_two(source: Path, folder: Path) -> None:
    """Forks into two processes after the imports. No threads have started yet, so the fork loses none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    other = os.fork()
    os.environ.update({"RANK": str(int(other == 0)), "LOCAL_RANK": str(int(other == 0))})
    finetune.run(everything(source, folder))
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


if __name__ == "__main__":
    fork_two(Path(sys.argv[1]), Path(sys.argv[2]))
