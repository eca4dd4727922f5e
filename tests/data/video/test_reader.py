"""Frames equal those of a full decode for every kind of file and every backend, or are refused with a reason."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_files import FRAMES, all_frames, flipped, make_videos, pictures, remux, sound, trimmed, write

from mmm.data import Unreadable
from mmm.data.decode.video import OpenVideo, packets, probe, read_clip, require
from mmm.data.decode.video.info import inspect

KINDS = [
    *("closed", "open", "long_group", "short_group", "variable_rate", "late_start", "one_frame", "odd_size", "ten_bit"),
    *("interlaced", "h264_avi", "mpeg4_avi", "mpeg_ts", "mpeg_ps", "raw", "no_first_key", "cut_in_open_group"),
    *("hevc_open", "vp8", "vp8_rotated", "vp9", "av1", "wmv"),
]
DECORD = pytest.param(
    "decord", marks=pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def clips(real_data: Path) -> Path:
    if not (real_data / "clips").is_dir():
        pytest.skip("no real video files here")
    return real_data / "clips"


def draws(count: int, seed: int = 0) -> list[list[int]]:
    """Draws clips as in training and harder ones: backwards, repeated, single, and all frames."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, max(1, count - 16), 5)
    dense = [
        [min(int(start) + stride * i, count - 1) for i in range(6)] for start, stride in zip(starts, (1, 2, 3, 4, 7), strict=True)
    ]
    return [*dense, [count - 1], [count - 1, 0, count // 2, 0], *([list(range(count))] if count < 100 else [])][count // 100 :]


def assert_exact(path: Path, backend: str) -> None:
    truth = all_frames(path)
    for source in (path, path.read_bytes()):
        for frames in draws(len(truth)):
            found = read_clip(source, frames, backend=backend)
            wrong = [number for number, frame in zip(frames, found, strict=True) if not np.array_equal(frame, truth[number])]
            assert not wrong, f"{path.name} by {backend}: frames {wrong} of {frames}"


@pytest.mark.parametrize("backend", ["av", DECORD])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_full_decode(videos: dict[str, Path], kind: str, backend: str) -> None:
    if kind not in videos:
        pytest.skip(f"this PyAV cannot encode {kind}")
    assert_exact(videos[kind], backend)


@pytest.mark.parametrize("backend", ["av", DECORD])
@pytest.mark.parametrize("name", ["test.mp4", "test.avi", "rotated_90.mov", "unordered.mov"])
def test_real_files_are_exact(clips: Path, name: str, backend: str) -> None:
    assert_exact(clips / name, backend)


@pytest.mark.parametrize("kind", ["closed", "long_group", "variable_rate", "odd_size", "mpeg4_avi"])
def test_decord_itself_reads_clean_files_and_agrees_in_every_bit(videos: dict[str, Path], kind: str) -> None:
    pytest.importorskip("decord")
    from mmm.data.decode.video.decord import DecordVideo

    with OpenVideo(videos[kind], "decord") as video:
        assert isinstance(video.video, DecordVideo)
    for frames in draws(len(all_frames(videos[kind])), seed=1):
        assert np.array_equal(read_clip(videos[kind], frames), read_clip(videos[kind], frames, backend="decord"))


@pytest.mark.parametrize("kind", ["open", "hevc_open", "h264_avi", "mpeg_ts", "no_first_key", "ten_bit", "interlaced"])
def test_pyav_takes_over_where_decord_is_not_exact(videos: dict[str, Path], kind: str) -> None:
    pytest.importorskip("decord")
    from mmm.data.decode.video.decord import DecordVideo

    with OpenVideo(videos[kind], "decord") as video:
        assert not isinstance(video.video, DecordVideo)


@pytest.mark.parametrize("kind", KINDS)
def test_torchcodec_agrees(videos: dict[str, Path], kind: str) -> None:
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchcodec cannot be used: {str(error).splitlines()[0]}")
    if kind in videos:
        assert_exact(videos[kind], "torchcodec")


def test_frames_are_chosen_by_the_time_at_which_they_are_shown(videos: dict[str, Path]) -> None:
    truth = all_frames(videos["variable_rate"])
    with OpenVideo(videos["variable_rate"]) as video:
        times = video.times
    intervals = np.random.default_rng(1).integers(10, 90, FRAMES) / 1000
    assert times == pytest.approx(np.cumsum(intervals) - intervals[0], abs=1e-3)
    requested = [0.0, times[5], times[5] + intervals[6] / 2, times[20] - 0.004, times[-1] + 9]
    found = read_clip(videos["variable_rate"], times=requested)
    for frame, number in zip(found, (0, 5, 5, 19, FRAMES - 1), strict=True):
        assert np.array_equal(frame, truth[number])


def test_times_start_at_the_first_frame(videos: dict[str, Path]) -> None:
    with OpenVideo(videos["late_start"]) as video:
        assert video.times[:3] == pytest.approx([0, 0.033, 0.066])
    assert probe(videos["late_start"]).frames == FRAMES


def test_size_is_height_and_width_or_the_short_side(videos: dict[str, Path]) -> None:
    assert read_clip(videos["closed"], [0], size=(20, 40)).shape == (1, 20, 40, 3)
    assert read_clip(videos["closed"], [0], size=32).shape == (1, 32, 48, 3)
    small = read_clip(videos["closed"], [3], size=(32, 48))[0].astype(float)
    whole = all_frames(videos["closed"])[3].astype(float).reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(small - whole).mean() < 15  # antialiased: near the mean of four pixels; plain bilinear takes one


def test_grey_is_one_channel(videos: dict[str, Path]) -> None:
    grey, colour = read_clip(videos["closed"], [5], channels=1), read_clip(videos["closed"], [5])
    assert grey.shape == (1, *colour.shape[1:3], 1)
    assert np.corrcoef(grey.ravel(), (colour @ [0.299, 0.587, 0.114]).ravel())[0, 1] > 0.98
    with pytest.raises(Unreadable, match="channels"):
        read_clip(videos["closed"], [5], channels=4)


def test_rotation_is_honoured(clips: Path) -> None:
    assert read_clip(clips / "rotated_90.mov").shape == (3, 568, 320, 3)
    info = probe(clips / "rotated_90.mov")
    assert (info.height, info.width, info.rotation) == (568, 320, -90)


def test_probe_tells_the_facts(videos: dict[str, Path], clips: Path) -> None:
    info = probe(videos["closed"].read_bytes())
    assert (info.frames, info.height, info.width, info.codec, info.variable, info.open_group) == (40, 64, 96, "h264", False, False)
    assert info.fps == pytest.approx(30)
    assert info.duration == pytest.approx(FRAMES / 30, abs=1e-3)
    assert info.group == pytest.approx(12, abs=2)
    assert probe(videos["variable_rate"]).variable
    assert probe(videos["open"]).open_group
    assert (probe(clips / "test.avi").frames, probe(clips / "test.mp4").frames) == (164, 300)


def test_a_frame_that_is_not_there_is_an_error(videos: dict[str, Path]) -> None:
    for number in (-1, FRAMES):
        with pytest.raises(IndexError, match="of a video of 40"):
            read_clip(videos["closed"], [number])
    with pytest.raises(ValueError, match="no such backend; did you mean 'decord'"):
        read_clip(videos["closed"], backend="decrod")
    with pytest.raises(ValueError, match="not installed"):
        require("torchcodec") if importlib.util.find_spec("torchcodec") is None else pytest.skip("torchcodec is installed")


def assert_single_frames_and_clips_are_exact(path: Path) -> None:
    truth = all_frames(path)
    with OpenVideo(path) as video:
        assert len(video) == len(truth), path.name
        for frames in [[number] for number in range(len(truth))] + draws(len(truth), 2):
            found = video.read(frames)
            wrong = [number for number, frame in zip(frames, found, strict=True) if not np.array_equal(frame, truth[number])]
            assert not wrong, f"{path.name}: frames {wrong} of {frames}"


@pytest.mark.parametrize("start", [5, 12, 17, 31])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_files_cut_between_keyframes_are_exact(videos: dict[str, Path], tmp_path: Path, start: int, suffix: str) -> None:
    for kind in ("closed", "open"):
        path = trimmed(videos[kind], tmp_path / f"{kind}.{suffix}", start)
        assert_single_frames_and_clips_are_exact(path)
        assert len(all_frames(path)) == FRAMES - start
        assert inspect(path)["frames"] == FRAMES - start


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("bframes", [0, 2])
def test_decoding_does_not_start_at_a_recovery_point(tmp_path: Path, bframes: int, container: str) -> None:
    """In a video with intra refresh, only the first frame can be decoded by itself."""
    path = tmp_path / f"refresh.{container}"
    write(
        path,
        group=24,
        options={"x264-params": f"intra-refresh=1:bframes={bframes}"},
        size=(128, 160),
        count=90,
        container="mpegts" if container == "ts" else None,
    )
    with av.open(str(path)) as file:
        assert sum(packet.is_keyframe for packet in file.demux(video=0)) > 2
    assert_single_frames_and_clips_are_exact(path)


@pytest.mark.parametrize("parameters", ["", "ref=4:b-pyramid=normal:bframes=3:b-adapt=0"])
@pytest.mark.parametrize("container", ["mp4", "ts"])
def test_lost_packets_are_reported_and_all_returned_frames_are_exact(tmp_path: Path, parameters: str, container: str) -> None:
    whole = write(tmp_path / f"whole.{container}", group=24, options={"x264-params": parameters}, count=96)
    truth = {frame.tobytes() for frame in all_frames(whole)}
    generator, reasons = np.random.default_rng(0), []
    for _ in range(6):
        lost = set(generator.choice(np.arange(1, 95), 3, replace=False).tolist())
        path = remux(whole, tmp_path / f"lost.{container}", lambda number, lost=lost: number in lost)
        clips = [range(start, start + 20, stride) for start, stride in generator.integers((0, 1), (70, 5), (12, 2)).tolist()]
        for frames in [*clips, None]:
            try:
                found = {frame.tobytes() for frame in read_clip(path, frames)}
            except Unreadable as error:
                reasons.append(str(error))
            else:
                assert found <= truth
    assert len(reasons) > 10
    assert all(re.search("packets are missing|cannot be decoded|damaged", reason) for reason in reasons)


@pytest.mark.parametrize("kind", ["vp8", "vp9", "av1", "hevc_open", "mpeg4_avi", "mpeg_ps", "wmv"])
def test_a_frame_beside_lost_packets_is_the_same_whatever_is_read_with_it(
    videos: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    if kind not in videos:
        pytest.skip("this PyAV cannot encode it")
    whole, generator, found = videos[kind], np.random.default_rng(1), defaultdict[int, set[bytes]](set)
    truth = {frame.tobytes() for frame in all_frames(whole)}
    for _ in range(3):
        lost = set(generator.choice(np.arange(1, FRAMES - 2), 3, replace=False).tolist())
        path = remux(
            whole, tmp_path / f"lost{whole.suffix}", lambda number, lost=lost: number in lost, "mpeg" if kind == "mpeg_ps" else None
        )
        with OpenVideo(path) as video:
            count = len(video)
        found.clear()
        starts = generator.integers((0, 1), (count - 4, 5), (12, 2)).tolist()
        for frames in [*(range(start, min(start + 20, count), stride) for start, stride in starts), range(count)]:
            with suppress(Unreadable):
                for number, frame in zip(frames, read_clip(path, frames), strict=True):
                    found[number].add(frame.tobytes())
        assert found
        assert not [number for number, frames in found.items() if len(frames) > 1]
        assert kind != "hevc_open" or set().union(*found.values()) <= truth


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Records the videos whose packets are listed, starting from an empty cache that keeps every list."""
    listed: list[str] = []
    plain = packets.list_packets

    def record(container: Any, stream: Any) -> packets.Packets:
        listed.append(Path(container.name).name)
        return plain(container, stream)

    monkeypatch.setattr(packets, "list_packets", record)
    monkeypatch.setattr(packets, "LONG", 1)
    monkeypatch.setattr(packets, "_memory", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return listed


@pytest.mark.parametrize("kind", ["closed", "open", "variable_rate", "late_start", "mpeg_ts", "raw", "h264_avi", "hevc_open"])
def test_the_packets_of_a_long_video_are_listed_once(
    videos: dict[str, Path], tmp_path: Path, lists: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / videos[kind].name
    path.write_bytes(videos[kind].read_bytes())
    truth = all_frames(path)
    for again in range(3):
        if again == 2:
            monkeypatch.setattr(packets, "_memory", {})  # simulates another process
        for frames in draws(len(truth), again):
            assert np.array_equal(read_clip(path, frames), np.stack([truth[number] for number in frames]))
    assert lists == [path.name]
    path.write_bytes(videos["short_group"].read_bytes())  # another video with the same name
    assert np.array_equal(read_clip(path, [7]), [all_frames(videos["short_group"])[7]])
    assert len(lists) == 2


def test_a_damaged_or_a_missing_cache_costs_time_only(
    videos: dict[str, Path], tmp_path: Path, lists: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = all_frames(videos["closed"])
    read_clip(videos["closed"], [3])
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    for content in (b"", b"PK" + bytes(50), kept.read_bytes()[:-40]):
        kept.write_bytes(content)
        monkeypatch.setattr(packets, "_memory", {})
        assert np.array_equal(read_clip(videos["closed"], [3]), [truth[3]])
    assert len(lists) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", str(videos["closed"]))  # a file, in which no folder can be created
    for number in (3, 30):
        monkeypatch.setattr(packets, "_memory", {} if number == 3 else packets._memory)
        assert np.array_equal(read_clip(videos["closed"], [number]), [truth[number]])
    assert len(lists) == 5


# --- damage -----------------------------------------------------------------------------------------------------------------


def broken(folder: Path, good: Path) -> dict[str, tuple[Path | bytes, str]]:
    """Makes unreadable files; returns each with a part of the reason."""
    data = good.read_bytes()
    (folder / "good.mp4").write_bytes(data)
    files = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"This is not a video.\n" * 50, "cannot be opened"),
        "truncated.mp4": (data[: len(data) // 2], "cannot be"),  # the index at the end is lost
        "zeroes.mp4": (bytes(5000), "cannot be opened"),
        "playlist.mp4": (b"ffconcat version 1.0\nfile good.mp4\n", "is not a video of a known format"),
    }
    found: dict[str, tuple[Path | bytes, str]] = {"empty bytes": (b"", "empty")}
    for name, (content, reason) in files.items():
        (folder / name).write_bytes(content)
        found[name] = folder / name, reason
    found["no picture"] = sound(folder / "sound.mp4"), "no video stream"
    found["missing"] = folder / "nowhere.mp4", "no such file"
    os.mkfifo(folder / "pipe.mp4")
    found["pipe"] = folder / "pipe.mp4", "not a regular file"
    (folder / "nothing").mkdir()
    found["empty folder"] = folder / "nothing", "without images"
    return found


@pytest.mark.parametrize("backend", ["av", DECORD])
def test_what_cannot_be_read_says_why_in_the_same_words(videos: dict[str, Path], tmp_path: Path, backend: str) -> None:
    for name, (source, reason) in broken(tmp_path, videos["closed"]).items():
        said = set()
        for _ in range(2):
            with pytest.raises(Unreadable, match=reason) as caught:
                read_clip(source, [0], backend=backend)
            said.add(str(caught.value))
        (text,) = said
        assert "\n" not in text, name
        assert str(tmp_path) not in text


def test_a_file_cut_off_in_its_stream_gives_what_is_whole(videos: dict[str, Path], tmp_path: Path) -> None:
    """The index is at the front: the frames before the cut are exact, and the others are refused."""
    front = tmp_path / "front.mp4"
    with av.open(str(videos["closed"])) as old, av.open(str(front), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    data, truth = front.read_bytes(), all_frames(videos["closed"])
    cut = data[: int(len(data) * 0.6)]
    assert np.array_equal(read_clip(cut, [0, 4, 8]), np.stack([truth[number] for number in (0, 4, 8)]))
    with pytest.raises(Unreadable):
        read_clip(cut)


def shows_damage(path: Path) -> bool:
    """Returns whether a plain decode from start to end reports damage."""
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.thread_type = "NONE"
            return any(frame.is_corrupt for frame in file.decode(stream))
    except av.error.FFmpegError:
        return True


@pytest.mark.parametrize("backend", ["av", DECORD])
def test_a_stream_that_shows_damage_is_refused(videos: dict[str, Path], tmp_path: Path, backend: str) -> None:
    truth, found = all_frames(videos["closed"]), 0
    for seed in range(12):
        path = flipped(tmp_path / f"{seed}.mp4", videos["closed"], seed)
        if not shows_damage(path):
            continue  # a valid stream with other pixels
        found += 1
        with pytest.raises(Unreadable, match=r"damaged|cannot be decoded"):
            read_clip(path, backend=backend)
    assert found >= 5
    assert len(truth) == FRAMES


def test_a_real_damaged_file_is_refused_where_it_is_damaged(clips: Path) -> None:
    assert read_clip(clips / "corrupted.mp4", [0, 3, 6]).shape == (3, 720, 1280, 3)
    with pytest.raises(Unreadable, match="cannot be decoded: Invalid data"):
        read_clip(clips / "corrupted.mp4")


def test_a_picture_too_large_is_refused_before_it_is_decoded(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmm.data.decode.video.validate.MAX_PIXELS", 1000)
    with pytest.raises(Unreadable, match="64 x 96 pixels"):
        read_clip(videos["closed"], [0])


def test_nothing_is_left_open(videos: dict[str, Path], tmp_path: Path) -> None:
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("no /proc here")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos["closed"].read_bytes()[:3000])
    before = len(list(handles.iterdir()))
    for _ in range(30):
        read_clip(videos["closed"], [0, 4])
        probe(videos["mpeg_ts"])
        with pytest.raises(Unreadable):
            read_clip(cut)
    assert len(list(handles.iterdir())) <= before + 1


def test_frames_from_another_container_are_the_same(videos: dict[str, Path], tmp_path: Path) -> None:
    copy = remux(videos["closed"], tmp_path / "copy.mkv")
    assert np.array_equal(read_clip(copy, [1, 20]), read_clip(io.BytesIO(videos["closed"].read_bytes()).getvalue(), [1, 20]))


def test_the_pictures_are_those_that_were_encoded(tmp_path: Path) -> None:
    """The expected images are those given to a lossless encoder; they are grey, so that no colour conversion changes them."""
    path = write(tmp_path / "lossless.mp4", options={"qp": "0"}, pixels="yuv444p", count=20)
    for found, made in zip(read_clip(path, [2, 9, 17]), [list(pictures(20))[i] for i in (2, 9, 17)], strict=True):
        assert np.abs(found.astype(int) - made).mean() < 3
