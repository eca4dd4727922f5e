"""Crops that the device resizes equal those that workers resize: for images and clips, any workers and ranks, and damaged files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tar_files import photographs
from torch import Tensor
from video_files import pictures

from mmm.data import Batch, Clips, ClipsConfig, DataConfig, Images, ImagesConfig, open_data, train_batches
from mmm.data.decode.video.encode import EncodeConfig, write_video
from mmm.data.transforms.device_resize import DeferredCrop, DeferredCrops, bounding_box
from mmm.data.transforms.resize import resize_float, resize_into

IMAGES = ImagesConfig(image_size=64, workers=0, holdout=0.0, max_bad=1.0, resize="device")
CLIPS = ClipsConfig(image_size=64, frames=4, stride=2, workers=0, holdout=0.0, max_bad=1.0, resize="device")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataConfig]:
    """Returns configs of six images and four videos of several sizes, with one damaged file of each and one video shorter than a
    clip."""
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "images").mkdir()
    (folder / "videos").mkdir()
    for number, picture in enumerate(photographs(5)):
        (folder / "images" / f"{number}.jpg").write_bytes(picture)
    (folder / "images" / "bad.jpg").write_bytes(picture[:300])
    for number, (count, size) in enumerate([(12, (96, 128)), (3, (80, 100)), (20, (64, 64))]):
        write_video(folder / "videos" / f"{number}.mp4", pictures(count, *size), fps=30, config=EncodeConfig(short_side=None))
    (folder / "videos" / "bad.mp4").write_bytes(b"no video")
    return {
        "images": replace(IMAGES, source=str(folder / "images")),
        "clips": replace(CLIPS, source=str(folder / "videos")),
        "clips, other frames": replace(CLIPS, source=str(folder / "videos"), repeat="clip", crop="random_resized"),
    }


def opened(config: DataConfig) -> Images | Clips:
    return open_data(config, "train")


def batches(config: DataConfig, **choices: int) -> list[Batch]:
    samples = opened(config)
    return list(train_batches(samples, config, seed=2, **{"batch_size": 6, "steps": 3} | choices))


def joined(found: list[Batch]) -> dict[str, Tensor]:
    moved = [batch.to("cpu") for batch in found]
    assert all(batch.deferred is None for batch in moved)
    return {name: torch.cat([getattr(batch, name) for batch in moved]) for name in ("pixels", "keys", "index", "epoch")}


@pytest.mark.parametrize("kind", ["images", "clips", "clips, other frames"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_samples_are_those_of_a_worker(data: dict[str, DataConfig], kind: str, repeats: int) -> None:
    config = replace(data[kind], repeats=repeats)
    later, now = batches(config), batches(replace(config, resize="worker"))
    assert all(batch.deferred is not None and batch.pixels.numel() == 0 for batch in later)
    assert all(batch.deferred is None for batch in now)
    ours, expected = joined(later), joined(now)
    assert ours["pixels"].shape == (18, 3, *config.size)
    for name, values in expected.items():
        assert torch.equal(ours[name], values), name
    assert [batch.problems for batch in later] == [batch.problems for batch in now]
    assert any(batch.problems for batch in now)  # the substitutes are the same, too


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_same_from_worker_processes_and_on_two_ranks(data: dict[str, DataConfig], kind: str) -> None:
    config = replace(data[kind], repeats=2)
    whole = joined(batches(config, batch_size=4, steps=2))
    parts = [batches(replace(config, workers=1), batch_size=2, steps=2, world=2, rank=rank) for rank in range(2)]
    pieces = joined([parts[rank][step] for step in range(2) for rank in range(2)])
    for name, values in whole.items():
        assert torch.equal(pieces[name], values), name


def test_one_part_holds_all_crops_of_an_input(data: dict[str, DataConfig]) -> None:
    """The regions sent are smaller than the samples, which are larger than these videos."""
    config = replace(data["clips"], repeats=4, image_size=224)
    (batch,) = batches(config, batch_size=4, steps=1)
    assert batch.deferred is not None
    assert [len(boxes) for _, boxes in batch.deferred.regions] == [4]
    assert batch.deferred.buffer.numel() <= 4 * 96 * 128 * 3 < 4 * 4 * 224 * 224 * 3


def test_floating_point_is_at_most_one_level_off(data: dict[str, DataConfig]) -> None:
    """Compares the floating-point resize of GPUs with the integer one, for enlarged and reduced crops and for sharp edges."""
    (picture,) = [np.asarray(opened(replace(data["images"], cache=True)).read(0))]  # type: ignore[union-attr]
    edges = np.zeros_like(picture)
    edges[::3, 1::2] = 255
    for pixels in (picture, edges):
        part = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        for size in ((64, 64), (part.shape[2] + 40, part.shape[3] + 3)):
            for kernel in ("bilinear", "bicubic"):
                exact = torch.empty(1, 3, *size, dtype=torch.uint8)
                resize_into(exact, part, kernel)
                off = (resize_float(part, size, kernel).int() - exact.int()).abs()
                assert off.max() <= (1 if pixels is picture else 2), (size, kernel)
                assert off.float().mean() < 0.3


def test_small_samples_stay_with_the_workers(data: dict[str, DataConfig]) -> None:
    (batch,) = batches(replace(data["images"], image_size=32), steps=1)
    assert batch.deferred is None
    assert batch.pixels.shape == (6, 3, 32, 32)


def test_the_rectangle_of_boxes() -> None:
    assert bounding_box([[4, 10, 6, 8], [2, 12, 3, 20]]) == ([2, 10, 8, 22], [[2, 0, 6, 8], [0, 2, 3, 20]])
    cut = DeferredCrop(torch.arange(24, dtype=torch.uint8).view(2, 4, 3), [[0, 1, 2, 2]])
    sample = DeferredCrops([[cut]], (3, 2, 2), "bicubic").pack().resize("cpu")
    assert torch.equal(sample[0], cut.pixels[:, 1:3].permute(2, 0, 1))


def test_augmentation_needs_resized_crops() -> None:
    with pytest.raises(ValueError, match=r"data\.resize device does not work with data\.augment.* set worker"):
        replace(IMAGES, augment="rand-m9-mstd0.5-inc1").check()
