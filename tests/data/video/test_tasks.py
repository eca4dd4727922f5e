"""The tasks scan and prepare_video."""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import FRAMES, HEIGHT, WIDTH, make_videos, pictures, remux, write

from mmm.data import ClipsConfig, open_data
from mmm.data.decode.video import BACKENDS, OpenVideo, encode, probe, read_clip
from mmm.data.decode.video.reader import resize
from tasks import prepare_video, scan
from tasks.__main__ import main

BAD = {"b/empty.mp4": "empty", "b/text.mp4": "cannot be opened", "a/cut.ts": "damaged|decoded"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos, root = make_videos(tmp_path_factory.mktemp("videos")), tmp_path_factory.mktemp("tree")
    for i, kind in enumerate(("closed", "open", "variable_rate", "mpeg4_avi", "one_frame", "odd_size", "h264_avi")):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        (root / "ab"[i % 2] / videos[kind].name).write_bytes(videos[kind].read_bytes())
    (root / "b" / "empty.mp4").write_bytes(b"")
    (root / "b" / "text.mp4").write_text("no video")
    (root / "a" / "cut.ts").write_bytes(videos["mpeg_ts"].read_bytes()[:2000])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_a_scan_names_every_bad_file_once_and_tells_the_facts(tree: Path, tmp_path: Path, workers: int) -> None:
    report = scan.check(scan.Config(source=str(tree), workers=workers, out=str(tmp_path / "deep" / "scan.json")))
    assert json.loads((tmp_path / "deep" / "scan.json").read_text()) == report
    found = report["splits"]["train"]
    assert (found["inputs"], found["unreadable"]) == (10, 3)
    assert sorted(file["name"] for file in found["files"]) == sorted(BAD)
    assert all(re.search(BAD[file["name"]], file["reason"]) for file in found["files"])
    assert found["facts"]["frames"]["largest"] == FRAMES
    assert found["facts"]["codec"] == {"h264": 6, "mpeg4": 1}
    assert found["facts"]["variable"] == {"False": 6, "True": 1}


def test_a_scan_reads_to_the_end(tmp_path: Path, real_data: Path) -> None:
    if not (real_data / "clips").is_dir():
        pytest.skip("no real video files here")
    found = scan.check(scan.Config(source=str(real_data / "clips"), workers=0, out=str(tmp_path / "scan.json")))["splits"]["train"]
    assert [(file["name"], file["reason"]) for file in found["files"]] == [
        ("corrupted.mp4", "cannot be decoded: Invalid data found when processing input")
    ]
    assert found["facts"]["rotation"] == {"least": -90, "middle": 0.0, "largest": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="the trap reaches the workers by a fork")
def test_a_scan_gives_up_what_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmm.data.decode.video import packets

    for name in ("0.mp4", "1.mp4", "2.mp4"):
        write(tmp_path / name, count=3)
    plain = packets.list_packets

    def trap(container: object, stream: object) -> object:
        return ctypes.PyDLL(None).sleep(1000) if str(container.name).endswith("1.mp4") else plain(container, stream)  # type: ignore

    monkeypatch.setattr(packets, "list_packets", trap)
    found = scan.check(scan.Config(source=str(tmp_path), workers=1, deadline=0.7, out=str(tmp_path / "scan.json")))["splits"][
        "train"
    ]
    assert found["files"] == [{"name": "1.mp4", "reason": "reading it took more than 0.7 s"}]


def test_images_can_be_scanned(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "images" / "train"
    report = scan.check(scan.Config(source=str(source), workers=0, out=str(tmp_path / "scan.json")))
    assert report["medium"] == "images"
    found = report["splits"]["train"]
    assert (found["inputs"], found["unreadable"]) == (65, 0)


def test_a_scan_finds_the_medium_and_every_broken_image(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(next(iter(pictures(1)))).save(path)
    flags = ["scan", str(tmp_path / "images"), "--workers", "0", "--out", str(tmp_path / "scan.json")]
    assert main(flags) == 0
    broken = ["a/1.png", "b/0.png", "b/2.png"]
    for name in broken:
        (tmp_path / "images" / name).write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 1
    report = json.loads((tmp_path / "scan.json").read_text())
    assert (report["medium"], report["splits"]["train"]["inputs"]) == ("images", 5)
    assert sorted(file["name"] for file in report["splits"]["train"]["files"]) == broken
    frames = scan.check(scan.Config(source=flags[1], medium="videos", workers=0, out=flags[-1]))["splits"]["train"]["files"]
    assert [file["reason"][:38] for file in frames] == [
        "1 of its 2 frames cannot be read; fram",
        "2 of its 3 frames cannot be read; fram",
    ]


@pytest.mark.parametrize(("suffix", "medium"), [(".mp4", "videos"), (".png", "images")])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_the_medium_of_tables_and_tars_is_that_of_their_first_input(tmp_path: Path, suffix: str, medium: str, kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"0{suffix}"
    if suffix == ".png":
        Image.fromarray(next(iter(pictures(1)))).save(path)
    else:
        write(path, count=3)
    source = tmp_path / f"train.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"sample": [path.read_bytes()]}), source)
    else:
        with tarfile.open(source, "w") as tar:
            tar.add(path, path.name)
    report = scan.check(scan.Config(source=str(source), workers=0, out=str(tmp_path / "scan.json")))
    assert (report["medium"], report["splits"]["train"]["unreadable"]) == (medium, 0)


def prepared(source: Path, out: Path, **options: object) -> dict[str, dict[str, object]]:
    config = prepare_video.Config(**{"source": str(source), "out": str(out), "short_side": 32, "workers": 0, "crf": 12, **options})  # type: ignore
    splits: dict[str, dict[str, object]] = prepare_video.run(config)["splits"]
    return splits


def test_prepared_videos_show_the_same_small_and_fast_to_read(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = prepared(tree, tmp_path / "out", workers=2)["train"]
    assert (found["encoded"], found["done_before"]) == (7, 0)
    assert {file["name"] for file in found["left_out"]} == set(BAD)  # type: ignore
    assert "7 of 10 videos encoded" in capsys.readouterr().out
    before, after = (open_data(ClipsConfig(source=str(folder), holdout=0.0), "train") for folder in (tree, tmp_path / "out"))
    assert after.classes == before.classes == ("a", "b")
    assert len(after) == 7
    for path in sorted((tmp_path / "out").rglob("*.mp4")):
        (original,) = [p for p in (tree / path.parent.name).iterdir() if p.stem == path.stem]
        old, new = read_clip(original, channels=1), read_clip(path, channels=1)
        assert min(new.shape[1:3]) == 32
        small = resize(old, new.shape[1:3]).astype(float)
        distance = np.square(small[:, None] - new[None].astype(float)).mean((2, 3, 4))  # (N, N)
        assert distance.argmin(0).tolist() == list(range(len(old))), original.name
        assert 10 * np.log10(255**2 / distance.diagonal().mean()) > 22, original.name  # noise of blocks of four pixels
        info, was = probe(path), probe(original)
        assert info.codec == "h264"
        assert info.group <= 12
        assert not info.open_group
        assert info.duration == pytest.approx(was.duration, abs=0.002)
        assert info.variable == was.variable
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_preparing_goes_on_where_it_stopped(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(tree, out)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    gone = sorted(kept)[2]
    gone.unlink()
    found = prepared(tree, out)["train"]
    assert (found["encoded"], found["done_before"]) == (1, 6)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != gone)
    with pytest.raises(ValueError, match=r"was encoded with crf 12, not 20; give another folder"):
        prepared(tree, out, crf=20)


def test_a_time_that_occurs_twice_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    video = write(tmp_path / "plain.mkv", "mjpeg", pixels="yuvj420p", count=5)
    remux(video, tmp_path / "in" / "a.mkv", stamps=[0, 40, 40, 40, 120])
    assert prepared(tmp_path / "in", tmp_path / "out")["train"]["encoded"] == 1
    with OpenVideo(tmp_path / "out" / "a.mp4") as after:
        assert after.times.round(3).tolist() == [0.0, 0.04, 0.041, 0.042, 0.12]


def test_lists_and_tables_and_names_that_meet(tmp_path: Path) -> None:
    video = write(tmp_path / "in" / "a.mp4" if (tmp_path / "in").mkdir() is None else tmp_path, count=3)
    (tmp_path / "in" / "a.avi").write_bytes(video.read_bytes())
    (tmp_path / "in" / "train.csv").write_text("a.mp4,run\na.avi,jump\ngone.mp4,run\n")
    (tmp_path / "in" / "val.csv").write_text("a.mp4,run\n")
    found = prepared(tmp_path / "in" / "train.csv", tmp_path / "out")
    assert (found["train"]["encoded"], found["val"]["encoded"]) == (2, 1)
    clips = open_data(ClipsConfig(source=str(tmp_path / "out" / "train.csv")), "train")
    assert [clips.name(i) for i in range(len(clips))] == ["a.mp4.mp4", "a.avi.mp4"]
    assert [clips.classes[label] for label in clips.labels().tolist()] == ["run", "jump"]
    assert read_clip(tmp_path / "out" / "a.mp4.mp4").shape == (3, 32, 48, 3)
    assert (HEIGHT, WIDTH) == (64, 96)


def test_two_videos_are_never_encoded_to_one_file(tmp_path: Path) -> None:
    for name in ("v/a.mp4", "lists/v/a.mp4", "b/x.mp4", "b/x.avi", "b/x.avi.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, count=8)
    (tmp_path / "lists" / "train.csv").write_text("../v/a.mp4,0\nv/a.mp4,1\nv/a.mp4,1\n")
    report = prepare_video.run(
        prepare_video.Config(source=str(tmp_path / "lists" / "train.csv"), out=str(tmp_path / "out"), workers=1)
    )
    assert report["splits"]["train"]["encoded"] == 2
    assert (tmp_path / "out" / "train.csv").read_text() == "_up/v/a.mp4,0\nv/a.mp4,1\nv/a.mp4,1\n"
    with pytest.raises(ValueError, match=r"x\.avi and .*x\.avi\.mkv would both be encoded to .*x\.avi\.mp4; rename one"):
        prepared(tmp_path / "b", tmp_path / "other")


@pytest.mark.parametrize("splits", [("train", "val"), ("train",)])
def test_splits_and_classes_of_a_folder_stay_as_they_are(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for label in ("jump", "run"):
            (tmp_path / "in" / split / label).mkdir(parents=True)
            write(tmp_path / "in" / split / label / f"{split}.mp4", count=3)
    prepared(tmp_path / "in", tmp_path / "out")
    before, after = ({path.relative_to(tmp_path / top) for path in (tmp_path / top).rglob("*.mp4")} for top in ("in", "out"))
    assert after == before
    for split in splits:
        clips = open_data(ClipsConfig(source=str(tmp_path / "out"), holdout=0.0), split)
        assert (clips.classes, clips.labels().tolist()) == (("jump", "run"), [0, 1])


def test_a_decoder_is_not_needed_to_know_the_backends() -> None:
    assert list(BACKENDS)[:3] == ["av", "decord", "torchcodec"]
    with pytest.raises(ValueError, match="out is not set"):
        prepare_video.run(prepare_video.Config(source="x"))
    with pytest.raises(ValueError, match="--crf 99 is not a whole number from 0 to 51"):
        prepare_video.Config(source="x", out="y", crf=99)
    with pytest.raises(ValueError, match="--preset 'meduim' is not ultrafast, .* or placebo; did you mean 'medium'"):
        prepare_video.Config(source="x", out="y", preset="meduim")  # type: ignore


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="every write to this file fails; not all systems have it")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_full_disk_ends_the_run_and_is_no_fault_of_the_video(
    tmp_path: Path, kind: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in" / "v1"
    folder.mkdir(parents=True)
    if kind == "frames":
        Image.fromarray(next(iter(pictures(1)))).save(folder / "0.png")
    else:
        folder.rmdir()
        write(folder.with_suffix(".mp4"), count=3)
    monkeypatch.setattr(encode, "replacing", lambda path: nullcontext(Path("/dev/full")))
    with pytest.raises(ValueError, match=r"^/\S*/out/v1\.mp4 cannot be written: No space left on device$"):
        prepared(tmp_path / "in", tmp_path / "out", workers=workers)
