"""Tests of frozen features: each image once, in order, for any number of processes, and their evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from mmm import MaskedModel
from mmm.data import Images, ImagesConfig, open_images
from mmm.encoders import VisionTransformer
from mmm.evaluate.batches import choose
from mmm.evaluate.features.frozen_eval import FeatureEvalConfig, evaluate_features, format_features
from mmm.evaluate.features.table import RAW_SIDE, encoded, extract_features, raw_pixels
from mmm.evaluate.progress import progress

Build = Callable[..., MaskedModel]
TILES = ImagesConfig(source="builtin:photographs", image_size=16, channels=1, mean=(0.5,), std=(0.25,), workers=0)


@pytest.fixture(scope="module")
def tiles() -> tuple[Images, Images]:
    return open_images(TILES, "train"), open_images(TILES, "eval")


@pytest.fixture
def photographs(real_data: Path, tmp_path: Path) -> Images:
    """Opens six real photographs in two classes, and two files that are not images."""
    for number, file in enumerate(sorted((real_data / "images" / "train").rglob("*.JPEG"))[:6]):
        folder = tmp_path / ("even", "odd")[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "even" / "2a.jpg").write_bytes(b"")
    (tmp_path / "odd" / "9.jpg").write_bytes(file.read_bytes()[:300])
    return open_images(ImagesConfig(source=str(tmp_path), image_size=(12, 16), holdout=0.0, workers=0), "train")


def test_every_readable_image_once_and_in_order(build: Build, photographs: Images) -> None:
    model = build()
    table = extract_features(photographs, {"tokens": encoded(model, "mean")}, device="cpu", batch_size=3)["tokens"]
    assert table.index.tolist() == [0, 1, 3, 4, 5, 6]
    assert table.labels.tolist() == photographs.labels()[table.index].tolist()
    assert [Path(problem.name).name for problem in table.problems] == ["2a.jpg", "9.jpg"]
    assert table.values.shape == (6, 24)
    assert table.values.dtype == torch.float32
    alone = extract_features(photographs.subset(torch.tensor([4])), {"tokens": encoded(model, "mean")}, device="cpu")["tokens"]
    assert torch.allclose(alone.values[0], table.values[3], atol=1e-6)
    assert model.training


def test_nothing_readable_is_an_error(build: Build, photographs: Images) -> None:
    with pytest.raises(ValueError, match="none of the images of train"):
        extract_features(photographs.subset(torch.tensor([2, 7])), {"raw": raw_pixels}, device="cpu")


def test_pools_are_what_they_say(build: Build) -> None:
    model, x = build().eval(), torch.randn(2, 3, 12, 16)
    features = model.encode(x)
    assert torch.equal(encoded(model, "mean")(x), features.last[:, 1:].mean(1))
    assert torch.equal(encoded(model, "class")(x), features.last[:, 0])
    assert encoded(model, "both")(x).shape == (2, 48)
    assert not encoded(model, "both")(x).requires_grad
    assert encoded(model, "mean", torch.bfloat16)(x).dtype == torch.float32
    bare = build(encoder=VisionTransformer.Config(width=24, depth=1, heads=2, class_token=False))
    with pytest.raises(ValueError, match="no class token"):
        encoded(bare, "class")(x)


def test_raw_pixels_are_the_pixels_until_there_are_too_many() -> None:
    x = torch.randn(2, 3, 20, RAW_SIDE)
    assert torch.equal(raw_pixels(x), x.flatten(1))
    large = torch.randn(2, 1, 4 * RAW_SIDE, 2 * RAW_SIDE)
    means = large.unflatten(3, (-1, 2)).unflatten(2, (-1, 4)).mean((3, 5))
    assert torch.allclose(raw_pixels(large), means.flatten(1), atol=1e-6)


def test_images_are_chosen_by_key(tiles: tuple[Images, Images]) -> None:
    train, _ = tiles
    first, again, other = (choose(train, 60, seed).rows for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 60
    assert torch.equal(first, first.sort().values)
    assert choose(train, None) is choose(train, 10**6) is train


def test_judging_gives_every_feature_its_scores(build: Build, tiles: tuple[Images, Images]) -> None:
    model = build((16, 16), 1)
    config = FeatureEvalConfig(labels_per_class=10, train_samples=300, test_samples=120)
    found = evaluate_features({"trained": model}, *tiles, config, device="cpu")
    assert (found["train"], found["test"], found["classes"]) == (300, 120, 12)
    for kind in ("neighbours", "linear"):
        assert set(found[kind]) == {"trained", "raw_pixels"}
        assert all(1 / 12 < scores["top1"] < 1 for scores in found[kind].values())
    assert json.loads(json.dumps(found)) == found
    text = format_features(found)
    assert "raw pixels" in text
    assert f"{found['linear']['trained']['top1']:.1%}" in text


def test_images_without_labels_are_said(real_data: Path, build: Build, tmp_path: Path) -> None:
    file = next((real_data / "images" / "train").rglob("*.JPEG"))
    (tmp_path / "one.jpg").write_bytes(file.read_bytes())
    flat = open_images(ImagesConfig(source=str(tmp_path), image_size=(12, 16), holdout=0.0, workers=0), "train")
    with pytest.raises(ValueError, match="no labels"):
        evaluate_features({"trained": build()}, flat, flat, FeatureEvalConfig(), device="cpu")
    with pytest.raises(ValueError, match="--k 0 is not a whole number of at least 1"):
        FeatureEvalConfig(k=0)


TOGETHER = """
import sys, torch
from torch import distributed, multiprocessing
from mmm.data import ImagesConfig, open_images
from mmm.evaluate.batches import choose
from mmm.evaluate.features.table import extract_features, raw_pixels

def part(rank, store, out):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    images = choose(open_images(ImagesConfig(source="builtin:photographs", image_size=16, channels=1, mean=(0.5,), std=(0.25,),
                                             workers=0), "eval"), 37)
    table = extract_features(images, {"raw": raw_pixels}, device="cpu", batch_size=8)["raw"]
    torch.save([table.values, table.labels, table.index], f"{out}/{rank}.pt")

if __name__ == "__main__":
    multiprocessing.start_processes(part, (sys.argv[1] + "/store", sys.argv[1]), nprocs=2, start_method="fork")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="starts its processes by fork")
def test_two_processes_share_the_work_and_both_get_it_all(tiles: tuple[Images, Images], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TOGETHER, str(tmp_path)], cwd=REPOSITORY, check=True, timeout=300)
    alone = extract_features(choose(tiles[1], 37), {"raw": raw_pixels}, device="cpu")["raw"]
    for rank in range(2):
        values, labels, index = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(values, alone.values)
        assert torch.equal(labels, alone.labels)
        assert index.tolist() == list(range(37))


def test_minutes_of_work_are_not_silent(
    build: Build, tiles: tuple[Images, Images], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 13, point 23: nearest neighbours on 50,000 images printed nothing for two minutes."""
    monkeypatch.setattr("mmm.evaluate.progress.SECONDS", 0.0)
    monkeypatch.setattr("mmm.evaluate.features.knn.BLOCK", 300 * 50)
    config = FeatureEvalConfig(labels_per_class=10, train_samples=300, test_samples=120)
    with caplog.at_level("INFO"):
        evaluate_features({"trained": build((16, 16), 1)}, *tiles, config, device="cpu", batch_size=64)
    heard = [record.getMessage() for record in caplog.records]
    assert [line for line in heard if "features of" in line] == [
        *(f"features of the images of {tiles[0].where}: {done} of 300" for done in (64, 128, 192, 256)),
        f"features of the images of {tiles[1].where}: 64 of 120",
    ]
    assert "nearest neighbours of test features: 50 of 120" in heard
    assert "penalties of the linear classifier: 4 of 5" in heard


def test_a_terminal_without_a_width_gets_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmm.evaluate.progress.SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((0, 0)))
    with caplog.at_level("INFO"):
        assert list(progress("abc", 3, "letters")) == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records] == ["letters: 1 of 3", "letters: 2 of 3"]
