"""The rendered videos: direction of movement, what a single frame reveals, and repair of a damaged cache."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmm.data import ClipsConfig, open_data
from mmm.data.decode.video import read_clip
from mmm.data.sources import builtin_videos as videos
from mmm.data.sources.builtin_images import PHOTOGRAPHS, photograph
from mmm.evaluate.features.logistic_regression import few_label_accuracy

FEW = {"train": 16, "validation": 8, "test": 8}
CLIPS = ClipsConfig(
    source="builtin:motion",
    frames=16,
    stride=1,
    image_size=32,
    channels=1,
    mean=(0.5,),
    std=(0.2,),
    crop_sides=(1.0, 0.9),
    workers=0,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    videos.motion_folder(cache, FEW)
    return cache


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def moved(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[int, int]:
    """Returns the shift in pixels, down and right and at most 8, for which the second image fits the first best."""
    side, most = len(first), 8

    def apart(down: int, right: int) -> float:
        one = first[max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)].astype(float)
        other = second[max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)].astype(float)
        return float(((one - other) ** 2).mean())

    places = [(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)]
    return min(places, key=lambda place: apart(*place))


def test_videos_move_in_the_direction_of_their_class() -> None:
    for index, (name, (down, right)) in enumerate(videos.DIRECTIONS.items()):
        for further in (0, 8, 16):
            pictures = videos.motion_frames("train", index + further)
            found = moved(pictures[0], pictures[4])
            expected = np.array([down, right]) * 4
            assert np.dot(found, expected) > 0, name
            assert (np.sign(found) * (np.abs(expected) > 1) == np.sign(expected) * (np.abs(expected) > 1)).all(), name


def test_videos_are_functions_of_split_and_index() -> None:
    first = videos.motion_frames("test", 5)
    videos._plane.cache_clear()
    videos.motion_frames("train", 5)
    np.testing.assert_array_equal(first, videos.motion_frames("test", 5))
    assert not np.array_equal(first, videos.motion_frames("validation", 5))
    assert not np.array_equal(first, videos.motion_frames("test", 13))  # another video of the same class
    assert first.shape == (videos.FRAMES, videos.SIDE, videos.SIDE)


def test_all_videos_have_the_same_brightness() -> None:
    for index in range(24):
        pictures = videos.motion_frames("train", index).astype(float)
        assert abs(pictures.mean() - videos.BRIGHTNESS) < 8
        assert 16 < pictures.std() < videos.CONTRAST + 1


def test_a_frame_says_nothing_of_the_class() -> None:
    """Linear classifiers on single frames, first, middle and last, stay within four standard errors of chance."""
    count, test = 480, 480
    pictures = np.stack([videos.motion_frames("train", index)[[0, 10, 19], ::2, ::2] for index in range(count + test)])
    values = torch.from_numpy(pictures).float().flatten(2) / 255  # (n, 3, h w)
    labels = torch.arange(count + test) % 8
    for frame in range(3):
        known, asked = values[:count, frame], values[count:, frame]
        top1 = few_label_accuracy(known, labels[:count], asked, labels[count:], 60)["top1"]
        assert abs(top1 - 1 / 8) < 4 * (1 / 8 * 7 / 8 / test) ** 0.5


def test_no_pixel_of_a_photograph_is_in_two_splits() -> None:
    ends: dict[str, int] = {}  # right end of the columns that earlier splits use, by photograph
    for split, (photographs, start, end) in videos.PARTS.items():
        for file in photographs:
            grey = np.asarray(photograph(file).convert("L"), dtype=float)
            left, right = round(start * grey.shape[1]), round(end * grey.shape[1])
            assert left >= ends.get(file, 0)
            ends[file] = right
            plane = videos._plane(file, split)
            assert plane.shape == (2 * len(grey), 2 * (right - left))
            np.testing.assert_array_equal(plane[: len(grey), : right - left], grey[:, left:right])
            np.testing.assert_array_equal(plane, plane[::-1])
            np.testing.assert_array_equal(plane, plane[:, ::-1])
    assert len(ends) == len(PHOTOGRAPHS) + len(videos.UNSEEN)


def test_files_hold_the_videos(cache: Path) -> None:
    root = videos.motion_folder(cache, FEW)
    paths = sorted(root.rglob("*.mp4"))
    assert len(paths) == sum(FEW.values())
    path = root / "test" / list(videos.DIRECTIONS)[3] / "00003.mp4"
    pixels, wanted = read_clip(path, channels=1)[..., 0].astype(float), videos.motion_frames("test", 3)
    assert pixels.shape == wanted.shape
    assert 10 * np.log10(255**2 / ((pixels - wanted) ** 2).mean()) > 32  # dB


def test_the_source_is_read_like_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(videos, "COUNTS", FEW)
    for split, count in FEW.items():
        clips = open_data(CLIPS, split)
        labels = clips.labels()
        assert labels is not None
        assert labels.bincount().tolist() == [count // 8] * 8
        assert clips.classes == tuple(sorted(videos.DIRECTIONS))
        assert all(clips.classes[label] in clips.name(row) for row, label in enumerate(labels.tolist()))
    pixels, failed = open_data(CLIPS, "eval").eval_views(torch.arange(3))
    assert pixels.shape == (3, 1, 16, 32, 32)
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["mmm"]
    with pytest.raises(ValueError, match=r"builtin:motoin: no such built-in videos; did you mean 'motion'\?"):
        open_data(ClipsConfig(source="builtin:motoin"), "train")


def test_what_is_there_is_not_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "write_motion_video", None)
    root = videos.motion_folder(cache, FEW)
    monkeypatch.setattr(videos, "SPEED", (3.0, 4.0))  # other settings give other files
    with pytest.raises(TypeError):
        videos.motion_folder(cache, FEW)
    assert root.is_dir()


@pytest.mark.parametrize("damage", ["cut", "missing", "list", "half"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, damage: str) -> None:
    root = videos.motion_folder(tmp_path, FEW)
    victim = sorted(root.rglob("*.mp4"))[7]
    whole = content(root)
    assert whole == content(videos.motion_folder(cache, FEW))
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:100])
    elif damage == "missing":
        victim.unlink()
    elif damage == "list":
        (root / videos.SIZES).write_text(json.dumps({})[:1])
    else:  # the process was killed while it wrote the files
        root.rename(root.with_name(f".{root.name}.tmp"))
    assert videos.motion_folder(tmp_path, FEW) == root
    assert content(root) == whole


def test_two_processes_at_once_end_well(tmp_path: Path, cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=videos.motion_folder, args=(tmp_path, FEW)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert content(videos.motion_folder(tmp_path, FEW)) == content(videos.motion_folder(cache, FEW))
    assert not list(tmp_path.glob(".*.tmp"))
