"""Frames that are read in blocks, and the crops cut from them, equal those of a single read, for any block size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from video_files import write

from mmm.core.rng import sample_keys
from mmm.data import Clips, ClipsConfig, Unreadable, open_data
from mmm.data.decode.video import BACKENDS, OpenVideo, reader
from mmm.data.decode.video.reader import Source, Video

CONFIG = ClipsConfig(image_size=32, frames=4, stride=2, workers=0, holdout=0.0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "closed": write(folder / "closed.mp4"),
        "open": write(folder / "open.mp4", options={"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}),
        "odd_size": write(folder / "odd.mp4", size=(45, 71), pixels="yuv444p", count=7),  # shorter than a clip
        "mpeg_ts": write(folder / "closed.ts", container="mpegts"),
        "h264_avi": write(folder / "h264.avi"),
    }


class Whole:
    """A backend that decodes all frames at once."""

    def __init__(self, video: Video) -> None:
        self.times, self.read, self.close = video.times, video.read, video.close


@pytest.mark.parametrize("size", [1, 30_000, 2**40])  # one frame per block, three (the last block has one), all
def test_blocks_hold_what_reading_gives(videos: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK", size)
    for kind, path in videos.items():
        with OpenVideo(path) as video:
            wanted = [0, 3, 3, len(video) - 1, 1]
            got = {}
            for numbers, pixels in video.blocks(wanted):
                assert len(pixels) == len(numbers) <= max(1, size // pixels[0].size)
                got |= {number: frame.copy() for number, frame in zip(numbers, pixels, strict=True)}
            assert sorted(got) == sorted(set(wanted)), kind
            assert np.array_equal(np.stack([got[number] for number in wanted]), video.read(wanted)), kind


def test_other_backends_give_one_block(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BACKENDS["av"]

    def whole(source: Source) -> Video:
        return Whole(plain(source))

    with OpenVideo(videos["closed"]) as video:
        expected = video.read([1, 5])
    monkeypatch.setitem(BACKENDS, "av", whole)
    with OpenVideo(videos["closed"]) as video:
        ((numbers, pixels),) = video.blocks([5, 1], 3)
    assert numbers == [1, 5]
    assert np.array_equal(pixels, expected)


def test_a_frame_that_is_not_there_or_has_other_channels(videos: dict[str, Path]) -> None:
    with OpenVideo(videos["closed"]) as video:
        with pytest.raises(IndexError, match=r"frames \[-1\] of a video of"):
            next(video.blocks([-1], 3))
        with pytest.raises(IndexError):
            next(video.blocks([len(video)], 3))
        with pytest.raises(Unreadable, match=r"data\.channels is 2"):
            next(video.blocks([0], 2))


@pytest.mark.parametrize("repeat", ["crop", "clip"])
def test_samples_do_not_depend_on_the_size_of_a_block(
    videos: dict[str, Path], repeat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = open_data(replace(CONFIG, source=str(videos["closed"].parent), repeat=repeat, frames=8), "train")
    assert isinstance(clips, Clips)
    index = torch.arange(len(clips))
    keys = sample_keys(0, 0, index[:, None], repeat=torch.arange(3)).flatten()
    views, failed = clips.train_views(index, keys)
    monkeypatch.setattr(reader, "BLOCK", 1)
    again, failed_too = clips.train_views(index, keys)
    assert not failed
    assert not failed_too
    assert torch.equal(views, again)
