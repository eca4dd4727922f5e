"""Tests of the attentive probe on images and on the views of real videos, and of the recipes of probes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_recipe, reset_accelerate
from probe_data import TEST, digits_data, write_config, write_digits

from mmm.classifier import HeadConfig
from mmm.config import cli, serialize
from mmm.data import ClipsConfig, open_data
from mmm.data.sources.builtin_videos import motion_folder
from mmm.data.transforms.crop import normalise
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.probes.logistic_sweep import SweepConfig
from mmm.evaluate.probes.setup import open_probe_setup
from mmm.evaluate.probes.train import ProbeTraining
from mmm.maskers import TubeMasker
from mmm.pools import AttentivePool, MeanPool
from mmm.tokenizers import Tubes
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from tasks import attentive_probe, linear_probe, pretrain

TRAINING = TrainConfig(
    steps=4, batch_size=16, micro_batch_size=8, learning_rate=3e-3, scale_learning_rate=None, precision="fp32", log_every=2
)
RECIPES = ("image_linear_probe", "video_linear_probe")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    reset_accelerate()


def test_it_learns_on_frozen_tokens_at_several_rates(tmp_path: Path) -> None:
    data = digits_data(write_digits(tmp_path / "data"))
    config = attentive_probe.Config(
        model=write_config(tmp_path / "untrained", data),
        data=data,
        train=replace(TRAINING, steps=50, learning_rate=0.02, log_every=50),
        rates=(0.0005, 1.0),
        held_back=0.2,
        folder=str(tmp_path / "run"),
    )
    found = attentive_probe.run(config)["trained"]
    assert found["chosen"] == 1
    assert found["samples"] == 10 * TEST
    assert found["top1"] > 0.25  # of ten classes
    assert found["tried"][0]["test"]["top1"] < found["top1"]
    assert found["protocol"]["pool"] == {"name": "attentive", "queries": 1, "heads": None, "mlp_ratio": 4.0}
    assert found["protocol"]["task"] == "attentive_probe"
    with pytest.raises(ValueError, match="the exact probe needs a pool without weights"):
        linear_probe.run(
            linear_probe.Config(
                model=config.model, data=data, pool=AttentivePool.Config(), train=TRAINING, folder=str(tmp_path / "x")
            )
        )


def video_setting(folder: Path, clips: Path) -> attentive_probe.Config:
    """Returns a config with real videos of two classes: two to train on, two to score, one that cannot be decoded to its end."""
    for split, label, name in (
        ("train", "a", "test.mp4"),
        ("train", "b", "test.avi"),
        ("test", "a", "test.avi"),
        ("test", "b", "rotated_90.mov"),
        ("test", "b", "corrupted.mp4"),
    ):
        (folder / "data" / split / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / name, folder / "data" / split / label / name)
    data = ClipsConfig(
        source=str(folder / "data"), frames=4, stride=2, image_size=16, eval_clips=2, eval_crops=3, workers=0, max_bad=0.5
    )
    model = pretrain.Config(
        data=data,
        tokenizer=Tubes.Config(size=8, frames=2),
        masker=TubeMasker.Config(ratio=0.5),
        encoder=VisionTransformer.Config(width=24, depth=1, heads=2),
        decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
        train=TrainConfig(steps=2, batch_size=8, learning_rate=1e-3),
    )
    (folder / "untrained").mkdir()
    serialize.save(model, folder / "untrained" / "config.yaml")
    training = replace(TRAINING, steps=1, batch_size=4, micro_batch_size=4)
    return attentive_probe.Config(
        model=str(folder / "untrained" / "config.yaml"), data=data, head=HeadConfig(std=0.3), train=training, rates=(1.0,)
    )


def plain_loop(config: attentive_probe.Config, setup: Any, training: ProbeTraining) -> tuple[list[int], list[int]]:
    """Counts the readable and the correctly classified test videos of each class, one view after the other."""
    test, classifier = open_data(config.data, "eval"), training.probes.eval()
    right, counted = [0] * setup.splits.classes, [0] * setup.splits.classes
    for number in range(len(test)):
        views, failed = test.eval_views(torch.tensor([number]))  # (V, C, T, h, w)
        if failed:
            continue
        label, shares = int(test.labels()[number]), torch.zeros(setup.splits.classes)
        for view in views:
            x = normalise(view[None], config.data.mean, config.data.std)
            shares += classifier(classifier.prepare(setup.model.encode(x).last))[0, 0].detach().softmax(0) / len(views)
        right[label] += int(int(shares.argmax()) == label)
        counted[label] += 1
    return counted, right


def test_views_of_the_built_in_films_agree_with_a_plain_loop(tmp_path: Path, real_data: Path) -> None:
    videos = motion_folder(tmp_path / "videos", {"train": 16, "validation": 8, "test": 24})
    config = video_setting(tmp_path, real_data / "clips")
    config = replace(config, data=replace(config.data, source=str(videos), eval_split="test"))
    setup = open_probe_setup(config, start(config.train))
    training = ProbeTraining.prepare(config, setup, weights="")
    tally = training.score(setup.splits.test, [])
    counted, right = plain_loop(config, setup, training)
    assert tally.seen.tolist() == counted == [3] * 8
    assert tally.first[0].tolist() == right
    assert sum(right)  # untrained heads classify some correctly by chance


@pytest.mark.parametrize("pool", [AttentivePool.Config(), MeanPool.Config()], ids=lambda pool: pool.name)
def test_views_of_real_videos_agree_with_a_plain_loop(pool: Any, tmp_path: Path, real_data: Path) -> None:
    """The softmax of six views of each video is averaged, each video counts once, and a damaged video is left out."""
    if not (real_data / "clips").is_dir():
        pytest.skip("no real video files here")
    config = replace(video_setting(tmp_path, real_data / "clips"), pool=pool)
    setup = open_probe_setup(config, start(config.train))
    training = ProbeTraining.prepare(config, setup, weights="")
    problems: list[Any] = []
    tally = training.score(setup.splits.test, problems)

    counted, right = plain_loop(config, setup, training)
    assert counted == [1, 1]
    assert tally.seen.tolist() == counted
    assert tally.first[0].tolist() == right
    assert [Path(problem.name).name for problem in problems] == ["corrupted.mp4"]


def test_videos_are_probed_from_end_to_end(tmp_path: Path, real_data: Path) -> None:
    if not (real_data / "clips").is_dir():
        pytest.skip("no real video files here")
    config = video_setting(tmp_path, real_data / "clips")
    found = attentive_probe.run(replace(config, folder=str(tmp_path / "run")))["trained"]
    assert (found["samples"], found["unreadable"]) == (2, 1)
    assert [found["protocol"][name] for name in ("views", "clips", "crops", "size")] == [6, 2, 3, [4, 16, 16]]
    exact = linear_probe.Config(model=config.model, data=config.data, train=config.train, exact=SweepConfig(penalties=(0.1,)))
    exact = replace(exact, folder=str(tmp_path / "exact"))
    assert linear_probe.run(exact)["exact"]["samples"] == 2


# --- recipes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_presets_are_saved_and_loaded_to_the_same(name: str, tmp_path: Path) -> None:
    for preset, value in load_recipe(name).PRESETS.items():
        serialize.save(value, tmp_path / f"{preset}.yaml")
        assert serialize.load(linear_probe.Config, tmp_path / f"{preset}.yaml") == value


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_the_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(name)
    with pytest.raises(SystemExit) as end:
        cli.main(linear_probe.run, presets=recipe.PRESETS, doc=recipe.__doc__, argv=["--pool.name", "attentive", "--help_all"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert recipe.__doc__.split(":")[0][:40] in " ".join(shown.split())
    for flag in ("--pool.queries", "--head.norm", "--rates", "--held_back", "--train.learning_rate", "--exact.penalties"):
        assert flag in shown


def test_the_paper_s_values() -> None:
    """MAE's linear probe has a learning rate of 6.4 for a batch of 16,384."""
    recipe = load_recipe("image_linear_probe").IMAGENET
    train = recipe.train
    assert train.learning_rate * train.batch_size / train.scale_learning_rate == pytest.approx(6.4)
    assert (train.epochs, train.warmup_epochs, train.weight_decay) == (90, 10, 0.0)
    assert (recipe.pool.name, recipe.head.norm, recipe.head.std, recipe.data.crop_scale) == ("class", "batch", 0.01, (0.08, 1.0))


def test_the_demonstration_probes_a_run(run_recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shortened command of the recipe's docstring probes a run of image_mae.py, and adds the result to its evaluations."""
    small = ("--encoder.width", "24", "--encoder.depth", "1", "--encoder.heads", "2")
    run_recipe("image_mae", *small, "--folder", str(tmp_path / "run"))
    reset_accelerate()
    recipe = load_recipe("image_linear_probe")
    short = ["--train.steps", "2", "--train.batch_size", "16", "--methods", "trained", "--folder", str(tmp_path / "probe")]
    argv = ["--model", str(tmp_path / "run"), *short]
    found = cli.main(linear_probe.run, presets=recipe.PRESETS, doc=recipe.__doc__, argv=argv)
    assert "this is the demonstration" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert (lines[-1]["kind"], lines[-1]["step"]) == ("linear_probe", 2)
    assert "changes" not in lines[-1]
    assert lines[-1]["trained"]["top1"] == found["trained"]["top1"]
    assert found["trained"]["protocol"]["step"] == 2
    with pytest.raises(SystemExit) as end:
        cli.main(linear_probe.run, presets=recipe.PRESETS, doc=recipe.__doc__, argv=short)
    assert end.value.code == 2
    assert "--model is not set" in capsys.readouterr().err
