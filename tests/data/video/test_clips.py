"""Clips: the frames and crops of a sample, a single decode, and the same samples for any number of workers and processes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from video_files import all_frames, make_videos, pictures, write

from mmm.core.rng import sample_keys
from mmm.data import Batch, Clips, ClipsConfig, ImagesConfig, eval_batches, open_data, train_batches
from mmm.data.datasets.clip_sampling import even_frames, random_frames
from mmm.data.decode.video import BACKENDS, reader
from mmm.data.decode.video.reader import Source, Video
from mmm.data.loading.loader import prepare
from mmm.data.transforms.clip_crop import cut, even_boxes, multi_scale_boxes, resize, resize_into

CONFIG = ClipsConfig(image_size=32, frames=4, stride=2, workers=0, holdout=0.0, max_bad=1.0)
SIDES = (1.0, 0.875, 0.75, 0.66)


def seconds(count: int, fps: float = 30.0) -> np.ndarray:
    return np.arange(count) / fps


def keys(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, 0, torch.arange(count))


# --- frames -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (40, [0, 4, 8, 12, 16, 20, 24, 28, 32, *[36] * 7]),
        (10, [0, 4, *[8] * 14]),
        (1, [0] * 16),
        (64, [4 * i for i in range(16)]),
    ],
)
def test_a_short_video_repeats_the_last_frame_of_the_clip(count: int, expected: list[int]) -> None:
    """The expected frames are those of the published VideoMAE for 16 frames of stride 4."""
    config = ClipsConfig()
    assert random_frames(seconds(count), keys(3), config).tolist() == [expected] * 3
    assert even_frames(seconds(count), config).tolist() == [expected]


def test_dense_starts_are_even_over_all_that_fit() -> None:
    clips = random_frames(seconds(70), keys(7000), ClipsConfig())
    counts = np.bincount(clips[:, 0], minlength=7)
    assert len(counts) == 7  # the starts are 0 to 70 - 64
    assert counts.min() > 850
    assert (np.diff(clips) == 4).all()
    assert np.array_equal(clips[:50], random_frames(seconds(70), keys(50), ClipsConfig()))
    assert not np.array_equal(clips[:50], random_frames(seconds(70), keys(50, seed=1), ClipsConfig()))


def test_segments_take_one_frame_each_over_the_whole_video() -> None:
    config = ClipsConfig(frames=4, sampling="segments")
    clips = random_frames(seconds(22), keys(2000), config)
    for segment, (first, end) in enumerate([(0, 5), (5, 11), (11, 16), (16, 22)]):
        assert sorted(set(clips[:, segment].tolist())) == list(range(first, end))
    assert random_frames(seconds(2), keys(1), config).tolist() == [[0, 0, 1, 1]]
    assert even_frames(seconds(22), config).tolist() == [[2, 8, 13, 19]]
    assert even_frames(seconds(22), replace(config, eval_clips=2)).tolist() == [[1, 6, 12, 17], [3, 9, 14, 20]]


def test_frames_a_second_are_the_same_whatever_the_rate() -> None:
    config = ClipsConfig(frames=4, fps=10.0)
    assert even_frames(seconds(300), config)[0].tolist() == [144, 147, 150, 153]
    assert even_frames(seconds(600, fps=60.0), config)[0].tolist() == [288, 294, 300, 306]
    assert even_frames(seconds(50, fps=5.0), config)[0].tolist() == [24, 24, 25, 25]
    slow_then_fast = np.concatenate([np.arange(10) * 0.5, 5 + np.arange(100) * 0.05])
    clips = random_frames(slow_then_fast, keys(500), config)
    shown = slow_then_fast[clips]
    assert (np.abs(np.diff(shown) - 0.1) < 0.51).all()
    assert (np.diff(clips[shown[:, 0] > 5.2]) == 2).all()
    assert random_frames(seconds(5), keys(1), config).tolist() == [[0, 3, 3, 3]]  # 0.17 s is a little more than one step


def test_evaluation_spreads_its_clips() -> None:
    assert even_frames(seconds(100), replace(CONFIG, eval_clips=3))[:, 0].tolist() == [0, 46, 92]
    assert even_frames(seconds(100), CONFIG)[:, 0].tolist() == [46]
    assert even_frames(seconds(6), replace(CONFIG, eval_clips=3)).tolist() == [[0, 2, 4, 4]] * 3


# --- crops ------------------------------------------------------------------------------------------------------------------


def published_boxes(height: int, width: int, size: int) -> set[tuple[int, int, int, int]]:
    """Returns all boxes that VideoMAE's crop can draw, computed from its description."""
    sides = [int(min(height, width) * share) for share in SIDES]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    boxes = set()
    for i, tall in enumerate(sides):
        for j, wide in enumerate(sides):
            if abs(i - j) <= 1:
                down, right = (height - tall) // 4, (width - wide) // 4
                places = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]
                boxes |= {(y * down, x * right, tall, wide) for y, x in places}
    return boxes


@pytest.mark.parametrize(("height", "width", "size"), [(256, 340, 224), (226, 400, 224), (480, 270, 112)])
def test_multi_scale_crops_are_videomaes(height: int, width: int, size: int) -> None:
    drawn = keys(4000)
    boxes = multi_scale_boxes(drawn, torch.full_like(drawn, height), torch.full_like(drawn, width), (size, size), SIDES)
    assert set(map(tuple, boxes.tolist())) == published_boxes(height, width, size)
    again = multi_scale_boxes(drawn[7:8], torch.tensor([height]), torch.tensor([width]), (size, size), SIDES)
    assert torch.equal(again[0], boxes[7])


@pytest.mark.parametrize("size", [(112, 224), (224, 112), (96, 128)])
@pytest.mark.parametrize(("height", "width"), [(256, 340), (480, 270)])
def test_multi_scale_crops_have_about_the_aspect_ratio_of_the_sample(height: int, width: int, size: tuple[int, int]) -> None:
    """They are stretched by one step of the shares at most, as those of square samples."""
    drawn = keys(2000)
    boxes = multi_scale_boxes(drawn, torch.full_like(drawn, height), torch.full_like(drawn, width), size, SIDES)
    stretch = boxes[:, 3] / boxes[:, 2] * size[0] / size[1]
    assert 0.84 < stretch.min() < 0.89
    assert 1 / 0.89 < stretch.max() < 1 / 0.84
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()
    assert (boxes[:, 2:] == torch.tensor([height, width])).any(1).any()  # the largest box reaches two borders


@pytest.mark.parametrize(("height", "width"), [(223, 300), (3, 2), (1, 1), (224, 224)])
def test_multi_scale_crops_lie_inside(height: int, width: int) -> None:
    drawn = keys(500)
    boxes = multi_scale_boxes(drawn, torch.full_like(drawn, height), torch.full_like(drawn, width), (224, 224), SIDES)
    assert (boxes >= torch.tensor([0, 0, 1, 1])).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("box", [[0, 0, 40, 56], [3, 5, 20, 24], [7, 1, 17, 31], [2, 2, 33, 12]])
def test_resizing_into_place_is_resizing(channels: int, box: list[int]) -> None:
    clip = torch.randint(0, 256, (3, 40, 56, channels), dtype=torch.uint8)
    views = torch.zeros(2, 3, 20, 24, channels, dtype=torch.uint8)
    resize_into(views[1], cut(clip, box))
    assert torch.equal(views[1], resize(cut(clip, box), (20, 24)))
    assert not views[0].any()


def test_crops_of_evaluation_spread_over_the_long_side() -> None:
    assert even_boxes(32, 48, (32, 32), 1) == [[0, 8, 32, 32]]
    assert even_boxes(32, 48, (32, 32), 3) == [[0, 0, 32, 32], [0, 8, 32, 32], [0, 16, 32, 32]]
    assert even_boxes(60, 32, (32, 32), 2) == [[0, 0, 32, 32], [28, 0, 32, 32]]


# --- samples ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes videos of nine kinds in two classes."""
    videos, root = make_videos(tmp_path_factory.mktemp("videos")), tmp_path_factory.mktemp("tree")
    for i, kind in enumerate(
        ("closed", "open", "mpeg4_avi", "variable_rate", "one_frame", "odd_size", "mpeg_ts", "raw", "h264_avi")
    ):
        (root / f"class{i % 2}").mkdir(exist_ok=True)
        suffix = ".mp4" if kind == "raw" else videos[kind].suffix  # the content, not the suffix, gives the format
        (root / f"class{i % 2}" / f"{i}{suffix}").write_bytes(videos[kind].read_bytes())
    return root


@pytest.fixture(scope="module")
def damaged(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes files with the names of `tree`, three of which are unreadable."""
    root = tmp_path_factory.mktemp("damaged")
    for path in tree.rglob("*.*"):
        (root / path.parent.name).mkdir(exist_ok=True)
        content = {"2": b"", "3": b"text" * 99, "6": None}.get(path.stem, path.read_bytes())
        if content is not None:
            (root / path.parent.name / path.name).write_bytes(content)
        else:
            write(root / path.parent.name / path.name, count=1).write_bytes(path.read_bytes()[:2000])
    return root


def opened(source: Path, **options: object) -> Clips:
    clips = open_data(replace(CONFIG, source=str(source), **options), "train")
    assert isinstance(clips, Clips)
    return clips


def joined(batches: Iterable[Batch]) -> dict[str, Tensor]:
    batches = list(batches)
    return {name: torch.cat([getattr(b, name) for b in batches]) for name in ("pixels", "keys", "index", "epoch", "labels")}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, values in a.items():
        assert torch.equal(values, b[name]), name


def test_a_sample_is_the_crop_of_the_frames_that_its_key_says(tree: Path) -> None:
    clips = opened(tree)
    batch = next(train_batches(clips, CONFIG, seed=3, batch_size=4, steps=1))
    assert batch.pixels.shape == (4, 3, 4, 32, 32)
    assert batch.pixels.dtype == torch.uint8
    for row in range(4):
        truth = np.stack(all_frames(tree / clips.name(int(batch.index[row]))))
        key = batch.keys[row : row + 1]
        (frames,) = random_frames(seconds(len(truth)), key, CONFIG)
        height, width = (torch.tensor([side]) for side in truth.shape[1:3])
        (box,) = multi_scale_boxes(key, height, width, (32, 32), SIDES).tolist()
        expected = resize(cut(torch.from_numpy(truth[frames]), box), (32, 32)).permute(3, 0, 1, 2)
        assert torch.equal(batch.pixels[row], expected), clips.name(int(batch.index[row]))


def test_random_resized_crops_are_of_one_box_for_all_frames(tmp_path: Path) -> None:
    still = [next(iter(pictures(1)))] * 12
    from mmm.data.decode.video.encode import EncodeConfig, write_video

    write_video(tmp_path / "still.mp4", still, fps=30, config=EncodeConfig(crf=0, short_side=None))
    clips = opened(tmp_path, crop="random_resized", repeats=2)
    views, failed = clips.train_views(torch.tensor([0]), keys(2))
    assert not failed
    assert (views.float() - views[:, :, :1].float()).abs().mean() < 1
    assert (views[0].float() - views[1].float()).abs().mean() > 5


@pytest.mark.parametrize(("world", "accumulation", "workers", "repeats"), [(1, 1, 2, 1), (2, 2, 0, 1), (1, 3, 1, 2), (3, 1, 0, 4)])
def test_the_same_clips_for_any_processes_and_workers(
    tree: Path, world: int, accumulation: int, workers: int, repeats: int
) -> None:
    config = replace(CONFIG, repeats=repeats)
    clips = opened(tree, repeats=repeats)
    whole = joined(train_batches(clips, config, seed=1, batch_size=12, steps=3))
    size = 12 // world // accumulation
    runs = [
        list(
            train_batches(
                clips,
                replace(config, workers=workers),
                seed=1,
                batch_size=size,
                steps=3,
                accumulation=accumulation,
                world=world,
                rank=rank,
            )
        )
        for rank in range(world)
    ]
    parts = [runs[rank][step * accumulation + micro] for step in range(3) for rank in range(world) for micro in range(accumulation)]
    assert_same(whole, joined(parts))


def test_stopping_in_the_middle_of_an_epoch_changes_nothing(tree: Path) -> None:
    config = replace(CONFIG, repeats=2)
    clips = opened(tree, repeats=2)
    whole = list(train_batches(clips, config, seed=1, batch_size=4, steps=6))
    rest = list(train_batches(clips, config, seed=1, batch_size=4, steps=6, start_step=3))
    assert_same(joined(whole[3:]), joined(rest))


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Records the sources that are opened for decoding."""
    seen: list[Source] = []
    plain = BACKENDS["av"]

    def count(source: Source) -> Video:
        seen.append(source)
        return plain(source)

    monkeypatch.setitem(BACKENDS, "av", count)
    return seen


def test_repeats_share_one_decode_and_differ(tree: Path, opens: list[Source]) -> None:
    clips = opened(tree, repeats=4)
    batch = next(train_batches(clips, clips.config, seed=0, batch_size=8, steps=1))
    assert len(opens) == 2
    assert batch.index.tolist() == [batch.index[0]] * 4 + [batch.index[4]] * 4
    assert len(set(batch.keys.tolist())) == 8
    index = batch.index[::4]
    assert torch.equal(batch.keys, sample_keys(0, 0, index[:, None], repeat=torch.arange(4)).flatten())
    assert len({tuple(view.flatten().tolist()) for view in batch.pixels}) == 8


def test_an_epoch_of_repeats_decodes_each_video_once(tree: Path) -> None:
    clips = opened(tree, repeats=2)
    seen = joined(train_batches(clips, clips.config, seed=0, batch_size=6, steps=6))  # 36 samples, 2 epochs of 9 videos
    for epoch in (0, 1):
        assert sorted(seen["index"][seen["epoch"] == epoch].tolist()) == sorted([*range(9)] * 2)
    with pytest.raises(ValueError, match=r"data\.repeats 2 does not divide .* 5 samples"):
        next(train_batches(clips, clips.config, seed=0, batch_size=5, steps=1))


def test_repeats_share_their_frames_or_draw_new_ones(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "mmm.data.datasets.clips.random_frames",
        lambda times, drawn, config: (asked.append(len(drawn)), random_frames(times, drawn, config))[1],
    )
    for repeat, expected in (("crop", 1), ("clip", 3)):
        clips = opened(tree, repeats=3, repeat=repeat)
        next(train_batches(clips, clips.config, seed=0, batch_size=3, steps=1))
        assert asked.pop() == expected


def test_images_repeat_too(tmp_path: Path) -> None:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (80 - 10 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    one = ImagesConfig(source=str(tmp_path), image_size=16, workers=0, holdout=0.0)
    two = replace(one, repeats=2)
    images = open_data(one, "train")
    batch = next(train_batches(images, two, seed=0, batch_size=8, steps=1))
    assert torch.equal(batch.index, batch.index[::2].repeat_interleave(2))
    single = next(train_batches(images, one, seed=0, batch_size=4, steps=1))
    assert torch.equal(single.pixels, batch.pixels[::2])  # the first crop of each image is the one without repeats
    assert not torch.equal(batch.pixels[::2], batch.pixels[1::2])


def test_evaluation_decodes_each_video_once_for_all_its_views(tree: Path, opens: list[Source]) -> None:
    clips = opened(tree, eval_clips=2, eval_crops=3)
    batches = list(eval_batches(clips, clips.config, batch_size=12))
    seen = joined(batches)
    assert len(opens) == len(clips) == 9
    assert seen["index"].tolist() == [i for i in range(9) for _ in range(6)]
    assert [len(batch) for batch in batches] == [12, 12, 12, 12, 6]
    truth = np.stack(all_frames(tree / clips.name(0)))
    frames = even_frames(seconds(len(truth)), clips.config)
    small = resize(torch.from_numpy(truth[frames[1]]), (32, 48))
    assert torch.equal(seen["pixels"][5], cut(small, [0, 16, 32, 32]).permute(3, 0, 1, 2))
    assert len(set(seen["keys"].tolist())) == 54


def test_evaluation_holds_no_more_frames_of_full_size_than_a_block(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, held = opened(tree, eval_clips=3), list[int]()
    index = torch.arange(len(clips))
    whole, _ = clips.eval_views(index)
    monkeypatch.setattr(reader, "BLOCK", 2 * 64 * 96 * 3)
    monkeypatch.setattr("mmm.data.datasets.clips.resize", lambda clip, size: (held.append(clip.numel()), resize(clip, size))[1])
    views, failed = clips.eval_views(index)
    assert not failed
    assert torch.equal(views, whole)
    assert max(held) <= 2 * 64 * 96 * 3


def test_videos_that_are_all_shorter_than_a_clip_are_announced_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("0.mp4", "1.mp4"):
        write(tmp_path / name, count=5)
    short, fitting = opened(tmp_path, frames=16, stride=4), opened(tmp_path, frames=2, stride=4)
    for clips in (short, fitting):
        for _ in range(2):
            clips.eval_views(torch.arange(2))
            clips.subset(torch.tensor([1])).train_views(torch.tensor([0]), keys(1))
    said = [record.message for record in caplog.records if "shorter than a clip" in record.message]
    assert len(said) == 1
    assert "all of the 2 videos that were read are shorter than a clip of 16 frames" in said[0]


def test_damaged_videos_are_replaced_in_training_and_left_out_of_evaluation(damaged: Path) -> None:
    clips = opened(damaged)
    bad = {"class0/2.avi": "empty", "class1/3.mp4": "cannot be opened", "class0/6.ts": "cannot be decoded|first frame"}
    runs = [list(train_batches(clips, replace(CONFIG, workers=workers), seed=0, batch_size=9, steps=2)) for workers in (0, 2)]
    assert_same(joined(runs[0]), joined(runs[1]))
    assert [batch.problems for batch in runs[0]] == [batch.problems for batch in runs[1]]
    found = {problem.name: problem.reason for batch in runs[0] for problem in batch.problems}
    assert {"class0/2.avi", "class1/3.mp4"} <= set(found) <= set(bad)
    scored = list(eval_batches(clips, CONFIG, batch_size=4))
    named = {problem.name for batch in scored for problem in batch.problems}
    assert {"class0/2.avi", "class1/3.mp4"} <= named <= set(bad)
    names = [clips.name(int(index)) for batch in scored for index in batch.index]
    assert sorted(names) == sorted({clips.name(i) for i in range(9)} - named)


def test_grey_clips_and_the_device_side(tree: Path) -> None:
    clips = opened(tree, channels=1, mean=(0.5,), std=(0.5,), flip=1.0)
    batch = next(train_batches(clips, clips.config, seed=0, batch_size=2, steps=1))
    x = prepare(batch, clips.config, train=True)
    assert x.shape == (2, 1, 4, 32, 32)
    assert torch.equal(x, (batch.pixels.flip(-1).float() - 127.5) / 127.5)
    assert clips.config.input().size == (4, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "data.frames 0 is not a whole number of at least 1"),
        ({"stride": 0}, "data.stride 0 is not"),
        ({"fps": 0.0}, "data.fps 0 is not a number above 0 or none"),
        ({"crop_sides": (0.5, 1.0)}, "data.crop_sides 0.5 1.0: give shares in falling order"),
        ({"eval_crops": 0}, "data.eval_crops 0 is not"),
        ({"backend": "dekord"}, "data.backend dekord: no such backend; did you mean 'decord'"),
        (
            {"channels": 1, "mean": (0.5,), "std": (0.5,), "backend": "decord"},
            "data.channels 1: data.backend decord reads 3",
        ),
        ({"repeats": 0}, "data.repeats 0 is not"),
        ({"deadline": 0.0}, "data.deadline 0 is not a number above 0"),
        ({"mean": (0.5,)}, "data.mean has 1 values for data.channels 3"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options).input()


def test_the_global_generators_are_left_alone(tree: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(train_batches(opened(tree), CONFIG, seed=0, batch_size=4, steps=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_the_pixels_reach_the_model_in_its_own_order(tree: Path) -> None:
    """The pixels are stored channels last in memory, but have the usual order of dimensions."""
    batch = next(train_batches(opened(tree), CONFIG, seed=0, batch_size=2, steps=1))
    assert not batch.pixels.is_contiguous()
    assert torch.equal(batch.pixels.contiguous().flatten(), batch.pixels.flatten())
