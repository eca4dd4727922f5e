"""Reconstructions of clips are drawn as frames in one picture, and as an animation and a video."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_extract import ask, video_run, videos  # noqa: F401 (fixtures)

from mmm.evaluate.plots.image_grid import NOTHING, to_rgb
from mmm.evaluate.reconstruction.video import FPS, SIDE, STRIP, animate, strip_of


def test_a_strip_shows_each_clip_over_time_in_order() -> None:
    clips = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(2, 3, 16, 8, 10) / 16
    columns, captions = strip_of([("one", clips), ("two", 1 - clips)])
    assert len(columns) == STRIP
    numbers = [int(name.split()[1]) for name, _ in columns]
    assert numbers == sorted(set(numbers))
    assert (numbers[0] - 1, 16 - numbers[-1]) == (1, 1)
    for number, (_, cells) in zip(numbers, columns, strict=True):
        assert cells.shape == (4, 3, 8, 10)
        assert cells[:, 0, 0, 0].tolist() == pytest.approx([(number - 1) / 16, 1 - (number - 1) / 16] * 2)
    assert captions == [["one", "two"] * 2]
    assert len(strip_of([("one", clips[:, :, :2])])[0]) == 2


def test_large_frames_are_reduced_and_what_is_hidden_stays_so() -> None:
    clips = torch.full((1, 3, 1, 2 * SIDE, SIDE), 0.5)
    clips[..., : SIDE // 2] = torch.nan
    ((_, cells),), _ = strip_of([("one", clips)])
    assert cells.shape == (1, 3, SIDE, SIDE // 2)
    assert (to_rgb(cells)[0, :, : SIDE // 4] == torch.tensor(NOTHING)).all()
    assert not cells[..., SIDE // 4 + 1 :].isnan().any()
    assert torch.allclose(cells[..., SIDE // 4 + 2 :], torch.tensor(0.5))


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_what_moves_shows_every_frame(tmp_path: Path) -> None:
    """The animation and the video show the same frames, with the brightness of the clip."""
    light = torch.linspace(0.1, 0.9, 5)
    clips = light.view(1, 1, 5, 1, 1).expand(1, 3, 5, 16, 16)
    moving, video = animate([("up", clips), ("down", clips.flip(2))], tmp_path / "new" / "a.png", title="t")
    with Image.open(moving) as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0
        shown = []
        for number in range(5):
            picture.seek(number)
            shown.append(np.asarray(picture.convert("RGB")))
    video_frames = frames_of(video)
    assert len(video_frames) == 5
    with av.open(str(video)) as file:
        assert file.streams.video[0].average_rate == pytest.approx(FPS)
    assert video_frames[0].shape[0] % 2 == video_frames[0].shape[1] % 2 == 0
    for frames in (shown, video_frames):
        place = (frames[0].shape[0] // 2, 60)
        values = [float(frame[place].mean()) / 255 for frame in frames]
        assert values == pytest.approx(light.tolist(), abs=0.04)


def test_reconstruct_draws_clips_thrice(
    video_run: Path,  # noqa: F811
    videos: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(video_run, tmp_path / "run")
    argv = ["reconstruct", str(run), "--source", str(videos), "--samples", "3", "--device", "cpu", "--workers", "0"]
    found = ask([*argv, "--out", str(tmp_path / "clips.png")])
    said = capsys.readouterr().out
    for name, suffix in (("picture", ".png"), ("animation", ".webp"), ("video", ".mp4")):
        assert Path(found[name]) == tmp_path / f"clips{suffix}"
        assert found[name] in said
    assert Image.open(found["animation"]).n_frames == 4
    assert len(frames_of(Path(found["video"]))) == 4
    still = Image.open(found["picture"])
    assert still.size[1] > 12 * 100  # three clips, with a row for each of four versions
    assert still.size[0] > 4 * 100  # one column per frame
