"""Samples of several sizes in one training run do not depend on processes, micro-batches, workers and resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from malformed import bomb_png_header
from PIL import Image
from safetensors.torch import load_file

from mmm.data import Batch, Images, ImagesConfig, open_images, train_batches
from mmm.data.decode.image import decode_image, image_size
from mmm.data.errors import Unreadable
from mmm.data.loading.sizes import size_of, train_sizes

CONFIG = ImagesConfig(image_size=24, workers=0, holdout=0.0, size_step=4)
MODES: dict[str, dict[str, Any]] = {
    "sides": {"sides": (16, 24, 32)},
    "aspects": {"sides": (16, 32), "aspects": (0.5, 1.0, 2.0), "repeats": 2},
    "packed": {"sides": (16, 32), "aspects": (0.5, 1.0, 2.0), "pack": True, "repeats": 2},
    "kept": {"image_size": 56, "keep_aspect": True, "pack": True, "resize": "device"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes thirteen images of different shapes, one of which cannot be read."""
    place, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(13):
        height, width = generator.integers(20, 70, 2)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(place / f"{i:02d}.png")
    (place / "05.png").write_bytes(b"no image")
    return place


def opened(folder: Path, **options: Any) -> Images:
    return open_images(replace(CONFIG, source=str(folder), **options), "train")


def samples(batches: list[Batch]) -> list[tuple[int, torch.Tensor]]:
    """Returns the key and the pixels of each sample, sorted."""
    rows = [row for batch in batches for part in batch.to("cpu").parts for row in zip(part.keys.tolist(), part.pixels, strict=True)]
    return sorted(rows, key=lambda row: row[0])


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    pairs = list(zip(samples(one), samples(other), strict=True))
    assert pairs
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("mode", MODES)
def test_sizes_follow_from_the_step_or_the_key_alone(folder: Path, mode: str) -> None:
    images = opened(folder, **MODES[mode])
    options: dict[str, Any] = {"seed": 1, "batch_size": 12, "steps": 6}
    whole = list(train_batches(images, images.config, **options))
    sizes = {tuple(part.pixels.shape[-2:]) for batch in whole for part in batch.to("cpu").parts}
    assert len(sizes) > 1
    assert all(batch.also for batch in whole) == images.config.pack
    assert all(len(batch) == 12 for batch in whole)
    parts = [
        batch
        for rank in range(2)
        for batch in train_batches(images, images.config, **options | {"batch_size": 2, "accumulation": 3}, world=2, rank=rank)
    ]
    assert_same(whole, parts)
    assert_same(whole[4:], list(train_batches(images, images.config, **options, start_step=4)))


def test_worker_processes_make_the_same_packed_samples(folder: Path) -> None:
    images = opened(folder, **MODES["kept"])
    alone, workers = (
        list(train_batches(images, replace(images.config, workers=count), seed=1, batch_size=6, steps=2)) for count in (0, 2)
    )
    assert_same(alone, workers)


def test_a_kept_aspect_is_the_images_own_and_its_area_at_most_that_of_image_size(folder: Path) -> None:
    images = opened(folder, **MODES["kept"], crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    (batch,) = train_batches(images, images.config, seed=1, batch_size=13, steps=1)
    apart = []
    for part in batch.to("cpu").parts:
        height, width = part.pixels.shape[-2:]
        assert height * width <= 56 * 56
        assert (height % 4, width % 4) == (0, 0)
        apart += [abs(np.log(width / height / images.aspect(index))) for index in part.index.tolist()]
    assert [problem.index for problem in batch.problems] == [5]  # reported once, and replaced by an image of another shape
    assert max(sorted(apart)[:-1]) < 0.25  # sides are rounded to four pixels
    assert len(apart) == 13


def test_the_size_of_an_image_is_read_upright_from_its_header(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.tif", exif=turned)
    np.save(tmp_path / "array.npy", np.zeros((20, 30, 3), np.uint8))
    for name, size in (("turned.jpg", (30, 20)), ("turned.tif", (30, 20)), ("array.npy", (20, 30))):
        assert image_size(tmp_path / name, 3) == decode_image(tmp_path / name, 3).shape[:2] == size


def test_an_image_above_pillows_limit_is_unreadable(tmp_path: Path) -> None:
    """Pillow raises an error of its own when it opens an image of more than 178,956,970 pixels."""
    (tmp_path / "0.png").write_bytes(bomb_png_header(0)[0])
    with pytest.raises(Unreadable, match=r"400,000,000 pixels, more than the 50,000,000"):
        image_size(tmp_path / "0.png", 3)
    assert opened(tmp_path).aspect(0) == 1.0


def test_an_aspect_keeps_the_area_of_the_square_and_never_exceeds_it() -> None:
    assert size_of(224, 1, 16) == (224, 224)
    for aspect in (0.05, 0.4, 0.75, 4 / 3, 1.9, 30):
        height, width = size_of(224, aspect, 16)
        assert 0.75 * 224**2 < height * width <= 224**2
        assert (height % 16, width % 16) == (0, 0)
    assert train_sizes(replace(CONFIG, image_size=98, sides=(98, 126))) == ((98, 98), (126, 126))  # squares keep the given sides
    assert train_sizes(CONFIG) == ((24, 24),)


def test_a_packed_run_resumes_bit_for_bit(run_recipe: Callable[..., Any], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sizes = ["--data.sides", "16", "32", "--data.aspects", "0.5", "1", "2", "--data.size_step", "4", "--data.pack"]
    flags = [*sizes, "--encoder.drop_path", "0.5", "--train.steps", "4", "--train.save_every", "2"]
    run_recipe("image_mae", *flags, "--folder", str(whole))
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step_00000004")
    run_recipe("image_mae", *flags, "--folder", str(stopped), "--resume")
    one, other = (load_file(run / "checkpoints" / "step_00000004" / "model.safetensors") for run in (whole, stopped))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--data.sides 24 25", "samples of 25 x 25 pixels: the input's height 25 is not a multiple"),
        ("--data.pack", "set data.sides, data.aspects or data.keep_aspect"),
        ("--data.keep_aspect", "data.keep_aspect needs data.pack"),
        ("--data.keep_aspect --data.pack --data.size_step 6", "data.size_step 6 is not a multiple of a token's side, 4"),
        ("--data.sides 24 32 --data.pack --target.name clusters", "data.pack: target.name clusters"),
        ("--data.sides 24 32 --data.pack --train.compile", "train.compile"),
    ],
)
def test_sizes_that_a_run_could_not_take_are_refused(
    flags: str, words: str, run_recipe: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_recipe("image_mae", *flags.split())
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_task_that_takes_one_size_refuses_packed_samples(folder: Path) -> None:
    from mmm.data.loading.loader import prepare

    images = opened(folder, **MODES["packed"])
    (batch,) = train_batches(images, images.config, seed=0, batch_size=8, steps=1)
    with pytest.raises(ValueError, match=r"data\.pack is for pretraining"):
        prepare(batch, images.config, train=True)
