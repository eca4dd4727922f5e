"""Sources of videos: folders, folders of frames, lists, tables; labels, splits and errors."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import pictures, write

from mmm.data import Clips, ClipsConfig, ImagesConfig, eval_batches, open_data
from mmm.data.datasets.windows import open_windows
from mmm.data.decode.video import OpenVideo, read_clip
from tasks import prepare_video
from tasks.scan import Config as ScanConfig
from tasks.scan import check

CONFIG = ClipsConfig(image_size=16, frames=2, stride=1, workers=0, holdout=0.0, max_bad=1.0)


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("one") / "one.mp4", count=6, size=(24, 32)).read_bytes()


def tree(root: Path, video: bytes, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(video)
    return root


def opened(source: Path | str, part: str = "train", **options: object) -> Clips:
    clips = open_data(replace(CONFIG, source=str(source), **options), part)
    assert isinstance(clips, Clips)
    return clips


def names(clips: Clips) -> list[str]:
    return [clips.name(i) for i in range(len(clips))]


def assert_readable(clips: Clips) -> None:
    assert [problem for batch in eval_batches(clips, clips.config, batch_size=4) for problem in batch.problems] == []


def test_a_folder_of_videos(tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, video, "a/1.mp4", "b/deep/2.MKV", "b/0.avi", "a/thumbnail.jpg", "a/notes.txt", "a/._1.mp4")
    with caplog.at_level(logging.WARNING, "mmm.data.sources.folder"):
        clips = opened(tmp_path)
    assert names(clips) == ["a/1.mp4", "b/0.avi", "b/deep/2.MKV"]
    assert clips.labels().tolist() == [0, 1, 1]
    assert "3 videos found; left out: 1 x ." in caplog.text
    assert_readable(clips)


def test_splits_and_classes_of_a_folder(tmp_path: Path, video: bytes) -> None:
    tree(tmp_path, video, "train/b/0.mp4", "train/a/1.mp4", "val/b/2.mp4")
    assert (opened(tmp_path).classes, opened(tmp_path, "eval").labels().tolist()) == (("a", "b"), [1])
    assert len(opened(tree(tmp_path / "flat", video, "0.mp4", "1.mp4"))) == 2


def frames(folder: Path, count: int = 12, size: tuple[int, int] = (20, 24)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures(count, *size)):
        Image.fromarray(picture).save(folder / f"frame{i}.png")


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    frames(tmp_path / "v")
    made = list(pictures(12, 20, 24))
    assert np.array_equal(read_clip(tmp_path / "v", [2, 10]), np.stack([made[2], made[10]]))  # 10 after 9, not after 1
    assert np.array_equal(read_clip(str(tmp_path / "v")), np.stack(made))


def test_folders_of_frames_with_and_without_classes(tmp_path: Path) -> None:
    for name in ("run/v1", "run/v2", "jump/v1"):
        frames(tmp_path / "labelled" / name)
    clips = opened(tmp_path / "labelled")
    assert names(clips) == ["jump/v1", "run/v1", "run/v2"]
    assert clips.labels().tolist() == [0, 1, 1]
    assert clips.classes == ("jump", "run")
    assert_readable(clips)
    for name in ("v1", "v2"):
        frames(tmp_path / "plain" / name)
    assert names(opened(tmp_path / "plain")) == ["v1", "v2"]
    assert opened(tmp_path / "plain").labels() is None


def test_classes_of_images_are_no_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (9 + number, 12)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError, match=r"cat differ in size \(12 x 9, 12 x 10, 12 x 11\), so they are not the frames of a video"):
        opened(tmp_path)
    frames(tmp_path / "other" / "v1")
    with caplog.at_level(logging.INFO, "mmm.data.datasets.clips"):
        opened(tmp_path / "other")
    assert "each of its folders of images is read as a video" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n0144_{}.png", "the numbers in their names do not increase in equal steps: n0144_0.png"),
        ("{:05d}.png", "neighbours differ as much as"),
    ],
)
def test_classes_of_images_of_one_size_are_no_videos_either(tmp_path: Path, name: str, reason: str) -> None:
    """Folders of images are refused unless `frame_folders` is set; then names with gaps are read in their order."""
    generator = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for number in range(16):
            image = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
            Image.fromarray(image).save(tmp_path / str(label) / name.format(number**2 if "n0" in name else number))
    with pytest.raises(ValueError, match=rf"{reason}.*take a recipe for images, or set data\.frame_folders true"):
        opened(tmp_path)
    assert_readable(opened(tmp_path, frame_folders=True))
    assert (
        check(ScanConfig(source=str(tmp_path), medium="videos", workers=0, out=str(tmp_path / "scan.json")))["medium"] == "videos"
    )


def test_a_single_video_is_a_source(tmp_path: Path, video: bytes) -> None:
    clips = opened(tree(tmp_path, video, "a.mp4") / "a.mp4")
    assert len(clips) == 1
    assert_readable(clips)


def test_frames_that_do_not_fit_are_unreadable(tmp_path: Path) -> None:
    frames(tmp_path / "v1")
    frames(tmp_path / "v2", 1)
    Image.new("RGB", (9, 9)).save(tmp_path / "v2" / "frame1.png")
    (batch,) = eval_batches(opened(tmp_path), CONFIG, batch_size=4)
    assert [(problem.name, problem.reason) for problem in batch.problems] == [
        ("v2", "its frames differ in size: (20, 24) and (9, 9), frame1.png")
    ]
    by_time = opened(tmp_path, fps=10.0)
    (batch,) = eval_batches(by_time, by_time.config, batch_size=4)
    assert "a folder of frames has no times" in batch.problems[0].reason


def test_windows_start_at_times_that_folders_of_frames_do_not_have(tmp_path: Path, video: bytes) -> None:
    frames(tmp_path / "v1")
    tree(tmp_path, video, "v2.mp4")
    (tmp_path / "list.txt").write_text("v1\nv2.mp4\n")
    windows = open_windows(opened(tmp_path / "list.txt"), 9.0)
    (batch,) = eval_batches(windows, CONFIG, batch_size=4)
    assert batch.index.tolist() == [1]
    assert batch.problems == [(0, "v1", "a folder of frames has no times; leave out --every, because windows start at times")]


def test_an_elongated_video_is_reported_and_left_out(tmp_path: Path) -> None:
    frames(tmp_path / "v1", 2, (1, 20000))
    (batch,) = eval_batches(opened(tmp_path, image_size=64), CONFIG, batch_size=4)
    assert (len(batch), batch.problems[0].reason[:46]) == (0, "1 x 20000 pixels become 64 x 1280000 when they")


@pytest.mark.parametrize(
    "lines",
    [
        'a.mp4 0\n"with space.mp4" 2\nsub/b.mp4 1\n',
        'a.mp4,0\nwith space.mp4,2\n"sub/b.mp4",1\n',
        "# a comment\na.mp4\t0\n\nwith space.mp4\t2\nsub/b.mp4\t1\n",
        '\ufeffa.mp4  0\r\n"with space.mp4"  2\r\n./sub/b.mp4 1\r\n',
    ],
)
def test_lists_of_paths_and_labels(tmp_path: Path, video: bytes, lines: str) -> None:
    tree(tmp_path, video, "a.mp4", "with space.mp4", "sub/b.mp4")
    (tmp_path / "list.txt").write_bytes(lines.encode())
    clips = opened(tmp_path / "list.txt")
    assert [Path(name).name for name in names(clips)] == ["a.mp4", "with space.mp4", "b.mp4"]
    assert clips.labels().tolist() == [0, 2, 1]
    assert_readable(clips)


def test_separators_within_quotes_do_not_count(tmp_path: Path, video: bytes) -> None:
    tree(tmp_path, video, "a,b c.mp4")
    (tmp_path / "list.txt").write_text('"a,b c.mp4" 0\n')
    assert_readable(opened(tmp_path / "list.txt"))


def test_lists_with_names_absolute_paths_and_no_labels(tmp_path: Path, video: bytes) -> None:
    videos = tree(tmp_path / "videos", video, "a,b.mp4", "c.mp4")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_text(f'"{videos}/a,b.mp4",run\n../videos/c.mp4,jump\n')
    (lists / "val.csv").write_text("../videos/c.mp4,walk\n")
    train, val = opened(lists / "train.csv"), opened(lists / "train.csv", "eval")
    assert train.classes == val.classes == ("jump", "run", "walk")
    assert (train.labels().tolist(), val.labels().tolist()) == ([1, 0], [2])
    assert_readable(train)
    (lists / "plain.list").write_text(f"{videos}/c.mp4\n")
    assert opened(lists / "plain.list").labels() is None
    (lists / "empty.csv").write_text("path,label\n../videos/c.mp4,\n../videos/c.mp4,\n")
    assert opened(lists / "empty.csv").labels() is None
    (lists / "gone.txt").write_text("nowhere.mp4 0\n")
    (batch,) = eval_batches(opened(lists / "gone.txt"), CONFIG, batch_size=1)
    assert batch.problems[0].reason == "there is no such file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my video.mp4 0\n", r"line 1 has 3 columns: 'my video.mp4 0'; .* in quotes"),
        ("a.mp4 0\nb.mp4\n", "line 2: a label in some lines but not in all"),
        ("path,label\na.mp4,0\nb.mp4,2\nc.mp4,\n", r"line 4: a label in some lines but not in all: 'c\.mp4,'"),
        ("a.mp4 -1\n", "-1 is not a label"),
        ("a 5 20 1\n", "third column may be the last frame of a range, or the number of its frames; say which column is which"),
        ("a 0 20\nb 7 20\n", "third may be the number of its frames or a label; say which column is which"),
        ("a 20 3\na 40 3\n", "third may be the number of its frames or a label"),
        ("path,start_frame,end_frame\na,9,5\n", "line 2 holds no frame: start 9, end 5"),
        ("a 0 0\n", "line 1 holds no frame: start 0, total 0; say which column is which"),  # path start label
        ("path,start,label\na,1.5,2\n", "line 2: start '1.5' is not a whole number"),
        ("a 0 -1\nb 0\n", "line 2: 2 columns, not 3"),
        ("\n# nothing\n", "names no videos"),
    ],
)
def test_lists_that_are_not_understood(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "list.txt")


def test_a_header_is_no_sample_and_numbers_keep_their_value(tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, video, "a.mp4", "b.mp4", "c.mp4")
    for header in ("path,label", "video_name,class_no", "split,label,path"):
        order = (lambda path, label: f"x,{label},{path}") if header.startswith("split") else (lambda path, label: f"{path},{label}")
        file = tmp_path / f"{header.replace(',', '_')}.csv"
        file.write_text("\n".join([header, order("a.mp4", 0), order("b.mp4", 10), order("c.mp4", 2)]) + "\n")
        with caplog.at_level(logging.INFO, "mmm.data.sources.file_list"):
            clips = opened(file)
        assert names(clips) == ["a.mp4", "b.mp4", "c.mp4"]
        assert clips.labels().tolist() == [0, 10, 2]
        assert clips.classes == tuple(map(str, range(11)))
        assert f"line 1 is taken as a header: {header}" in caplog.text
        assert "of the labels 0 to 10, 8 have no sample: 1, 3, 4, 5, 6, 7, 8, 9" in caplog.text
        assert_readable(clips)
    (tmp_path / "named.csv").write_text("path,label\na.mp4,run\nb.mp4,jump\n")
    assert opened(tmp_path / "named.csv").classes == ("jump", "run")


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("v1.mp4 0 -1\nv2 0 12\n", None),
        ("v1.mp4 0 -1 7\nv2 1 12 3\n", [7, 3]),
        ("v2 12 7\nv2 12 3\n", [7, 3]),
        ("path start_frame total label\nv1.mp4 0 -1 7\nv2 0 12 3\n", [7, 3]),
    ],
)
def test_the_lists_of_the_second_videomae(tmp_path: Path, video: bytes, lines: str, labels: list[int] | None) -> None:
    tree(tmp_path / "videos", video, "v1.mp4")
    frames(tmp_path / "videos" / "v2")
    (tmp_path / "list.txt").write_text(lines)
    clips = opened(tmp_path / "list.txt", root=str(tmp_path / "videos"))
    assert_readable(clips)
    found = clips.labels()
    assert (None if found is None else found.tolist()) == labels
    with pytest.raises(ValueError, match=r"data\.root nowhere is not a folder"):
        opened(tmp_path / "list.txt", root="nowhere")


@pytest.mark.parametrize(
    ("lines", "columns", "labels"),
    [
        ("path start_frame end_frame label\nv.mp4 5 20 1\nv.mp4 30 38 0\nf 5 20 2\nv.mp4 36 99 0\n", None, [1, 0, 2, 0]),
        ("v.mp4 5 16 1\nv.mp4 30 9 0\nf 5 16 2\nv.mp4 36 64 0\n", None, [1, 0, 2, 0]),  # 9 is less than 30, so it counts frames
        ("v.mp4,5,20\nv.mp4,30,38\nf,5,20\nv.mp4,36,-1\n", "path start end", None),
        ("1 v.mp4 5 16\n0 v.mp4 30 9\n2 f 5 16\n0 v.mp4 36 -1\n", "label path start total", [1, 0, 2, 0]),
        ("v.mp4 5 16\nv.mp4 30 9\nf 5 16\nv.mp4 36 -1\n", None, None),  # the format of VideoMAE V2 for pretraining
    ],
)
def test_a_row_with_a_start_is_that_part_of_the_video(
    tmp_path: Path, lines: str, columns: str | None, labels: list[int] | None
) -> None:
    write(tmp_path / "v.mp4")
    (tmp_path / "f").mkdir()
    for number, picture in enumerate(pictures(), 3):  # the frame numbers start at 3
        Image.fromarray(picture).save(tmp_path / "f" / f"img_{number:05d}.png")
    (tmp_path / "list.txt").write_text(lines)
    clips = opened(tmp_path / "list.txt", list_columns=() if columns is None else (columns,))
    found = clips.labels()
    assert (None if found is None else found.tolist()) == labels
    video, folder = read_clip(tmp_path / "v.mp4"), read_clip(tmp_path / "f")
    for row, expected in enumerate((video[5:21], video[30:39], folder[2:18], video[36:])):
        with OpenVideo(clips.raw(row)) as part:
            assert part.times[0] == 0
            assert np.array_equal(part.read(range(len(part))), expected)
            assert np.array_equal(np.concatenate([block.copy() for _, block in part.blocks([3, 1])]), expected[[1, 3]])
        assert clips.inspect(row)["frames"] == len(expected)
    assert clips.name(1) == "v.mp4, frames 30 to 38"
    assert_readable(clips)
    columns_of = {"source": str(tmp_path / "list.txt"), "list_columns": clips.config.list_columns}
    assert check(ScanConfig(**columns_of, workers=0, out=str(tmp_path / "scan.json")))["splits"]["train"]["unreadable"] == 0
    with pytest.raises(ValueError, match="lists parts of videos, and this task encodes whole videos"):
        prepare_video.run(prepare_video.Config(**columns_of, out=str(tmp_path / "small")))
    (tmp_path / "late.txt").write_text("v.mp4 90 -1\n")
    (batch,) = eval_batches(opened(tmp_path / "late.txt"), CONFIG, batch_size=1)
    assert "has no frames 90; its 40 frames have the numbers 0 to 39" in batch.problems[0].reason


def test_the_log_says_how_each_column_is_read(tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers alone do not show whether a column is a label or a number of frames: these lists may also be `path start label`."""
    tree(tmp_path, video, "a.mp4", "b.mp4")
    for name, lines, said in (
        ("one", "a.mp4 0 5\nb.mp4 0 7\n", "read as `path start total`, and the first line as path a.mp4, start 0, total 5; if"),
        ("two", "a.mp4 3 1\nb.mp4 9 0\n", "read as `path total label`, and the first line as path a.mp4, total 3, label 1; if"),
        ("header", "name,x,y\na.mp4,3,1\nb.mp4,9,0\n", "the first line as path a.mp4, total 3, label 1; if this is wrong, name"),
    ):
        (tmp_path / f"{name}.txt").write_text(lines)
        with caplog.at_level(logging.INFO, "mmm.data.sources.file_list"):
            opened(tmp_path / f"{name}.txt")
        assert said in caplog.text
    clips = opened(tmp_path / "two.txt", list_columns=("path", "start", "label"))
    assert names(clips) == ["a.mp4, frames from 3", "b.mp4, frames from 9"]
    assert clips.labels().tolist() == [1, 0]
    (tmp_path / "named.txt").write_text("name,x,y\na.mp4,0,2\nb.mp4,7,2\n")  # its content fits two formats
    assert opened(tmp_path / "named.txt", list_columns=("path", "start", "label")).labels().tolist() == [2, 2]


def test_starts_without_ends_and_names_that_are_wrong(tmp_path: Path, video: bytes) -> None:
    tree(tmp_path, video, "v.mp4")
    (tmp_path / "list.csv").write_text("path,start_frame,label\nv.mp4,4,7\nv.mp4,0,8\n")
    clips = opened(tmp_path / "list.csv")
    assert names(clips) == ["v.mp4, frames from 4", "v.mp4"]
    assert clips.labels().tolist() == [7, 8]
    with OpenVideo(tmp_path / "v.mp4") as whole, OpenVideo(clips.raw(0)) as part:
        assert len(part) == len(whole) - 4
    for columns, message in (
        ("path strat", "did you mean 'start'"),
        ("start label", "give path"),
        ("path end end", "at most once"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / "list.csv", list_columns=tuple(columns.split()))
    with pytest.raises(ValueError, match="images have none"):
        open_data(ImagesConfig(source=str(tmp_path / "list.csv")), "train")


def test_an_evaluation_list_is_scored_with_the_classes_of_the_training_list(tmp_path: Path, video: bytes) -> None:
    tree(tmp_path, video, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "ssv2_train.csv").write_text("a.mp4 push\nb.mp4 lift\n")
    (tmp_path / "ssv2_val.csv").write_text("c.mp4 push\n")
    (tmp_path / "test.csv").write_text("b.mp4 lift\n")
    (tmp_path / "val.csv").write_text("a.mp4 fall\n")
    for held, name, label in (("ssv2_val.csv", "c.mp4", 1), ("test.csv", "b.mp4", 0)):
        options = {"eval_source": str(tmp_path / held), "holdout": 0.5}
        train, scored = (opened(tmp_path / "ssv2_train.csv", part, **options) for part in ("train", "eval"))
        assert (names(train), names(scored)) == (["a.mp4", "b.mp4"], [name])  # nothing is held out
        assert train.classes == scored.classes == ("lift", "push")
        assert scored.labels().tolist() == [label]
    with pytest.raises(ValueError, match=r"data\.eval_source .*val\.csv has classes that data\.source .* does not have: fall"):
        opened(tmp_path / "ssv2_train.csv", "eval", eval_source=str(tmp_path / "val.csv"))


def parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("cell", ["bytes", "struct", "path"])
def test_tables_with_a_column_of_videos(tmp_path: Path, video: bytes, cell: str) -> None:
    tree(tmp_path / "data", video, "a.mp4")
    value = {"bytes": video, "struct": {"bytes": video, "path": "a.mp4"}, "path": "a.mp4"}[cell]
    path = parquet(tmp_path / "data" / "train.parquet", {"clip": [value, value], "label": [1, 0], "text": ["x", "y"]})
    clips = opened(path, video_column="clip" if cell == "path" else None)
    assert clips.labels().tolist() == [1, 0]
    assert "train row 0" in clips.name(0)
    assert_readable(clips)


def test_a_video_column_of_datasets_is_read_without_its_decoder(tmp_path: Path, video: bytes) -> None:
    from datasets import Dataset, Features, Value, Video

    path = tree(tmp_path, video, "a.mp4") / "a.mp4"
    rows = {"picture": [b"x"], "film": [{"bytes": path.read_bytes(), "path": "a.mp4"}], "label": [0]}
    features = Features({"picture": Value("binary"), "film": Video(decode=False), "label": Value("int64")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert_readable(opened(tmp_path / "train.parquet"))  # the column of type Video, not the one of bytes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "data.source is not set; give a folder, files, a list file"),
        ("builtin:photographs", "no such built-in videos"),
        ("{tmp}/nowhere.txt", "does not exist"),
        ("{tmp}/text", "holds no videos, only 1 x .md"),
        ("{tmp}/text/a.md", r"\.md: this kind of file is not read; give videos, lists \(\.txt, "),
        ("{tmp}/two.parquet", r"several columns of videos \(a, b\); name one with data.video_column"),
        ("{tmp}/none.parquet", "has no column of videos"),
    ],
)
def test_sources_that_are_refused(tmp_path: Path, source: str | None, message: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.md").write_text("x")
    parquet(tmp_path / "two.parquet", {"a": [b"x"], "b": [b"y"]})
    parquet(tmp_path / "none.parquet", {"a": [1]})
    with pytest.raises(ValueError, match=message):
        open_data(replace(CONFIG, source=source and source.format(tmp=tmp_path)), "train")


def test_holding_out_and_fingerprints(tmp_path: Path, video: bytes) -> None:
    tree(tmp_path, video, *(f"{i}.mp4" for i in range(10)))
    train, held = opened(tmp_path, holdout=0.3), opened(tmp_path, "eval", holdout=0.3)
    assert sorted(names(train) + names(held)) == [f"{i}.mp4" for i in range(10)]
    assert len(held) == 3
    before = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == before
    (tmp_path / "9.mp4").write_bytes(video + b"x")
    assert opened(tmp_path).fingerprint != before
    assert train.subset(torch.tensor([2, 0])).name(0) == train.name(2)
