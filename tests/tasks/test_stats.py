"""`mmm stats`: its numbers equal NumPy's, unreadable inputs are listed, and the proposed command is correct."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmm.config.cli import parse
from mmm.data.loading.statistics import choose
from recipes import image_mae, video_mae
from tasks import stats
from tasks.__main__ import main


def write_images(folder: Path, sizes: list[tuple[int, int]], *, grey: bool = False) -> np.ndarray:
    """Writes images of one colour each, which no resizing changes, and returns the colours, (N, 3)."""
    colours = np.random.default_rng(0).integers(0, 256, (len(sizes), 1 if grey else 3), dtype=np.uint8)
    colours = np.repeat(colours, 3, axis=1) if grey else colours
    for number, (height, width) in enumerate(sizes):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(colours[number], (height, width, 3)).copy()).save(path)
    return colours


def test_mean_and_std_are_those_of_the_pixels(tmp_path: Path, capsys: Any) -> None:
    colours = write_images(tmp_path / "images", [(30, 40), (200, 300), (50, 60), (64, 64), (128, 90)]) / 255
    found = stats.run(stats.Config(source=str(tmp_path / "images"), workers=0, out=str(tmp_path / "out" / "stats.json")))
    np.testing.assert_allclose(found["mean"], colours.mean(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["std"], colours.std(0), rtol=0, atol=1e-9)
    assert (found["inputs"], found["read"], found["classes"], found["grey"]) == (5, 5, 2, False)
    assert found["facts"]["height"] == (30, 64, 200)
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["mean"] == list(found["mean"])
    assert "5 images of 2 classes; 5 were read" in capsys.readouterr().out


def test_the_proposed_command_is_one_that_the_recipe_takes(tmp_path: Path) -> None:
    write_images(tmp_path / "grey", [(60, 100), (80, 70), (50, 400)], grey=True)
    found = stats.run(stats.Config(source=str(tmp_path / "grey"), workers=0))
    words = shlex.split(found["proposal"])
    assert words[:3] == ["mmm", "pretrain", "image_mae"]
    config = parse(image_mae.PRESETS, words[3:])
    assert (config.data.image_size, config.tokenizer.size, config.data.channels) == (64, 8, 1)
    assert config.data.mean == (round(found["mean"][0], 3),)
    assert config.train.steps == image_mae.SMALL.train.steps


def test_videos_are_measured_by_a_few_frames(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from video_files import write

    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "a.mp4", count=20, size=(48, 64))
    write(tmp_path / "videos" / "b.mp4", count=30, size=(48, 64))
    found = stats.run(stats.Config(source=str(tmp_path / "videos"), workers=0))
    assert found["medium"] == "videos"
    assert found["facts"]["frames"] == (20, 25, 30)
    config = parse(video_mae.PRESETS, shlex.split(found["proposal"])[3:])
    assert config.data.image_size == 32
    assert config.data.source == str(tmp_path / "videos")


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path, capsys: Any) -> None:
    write_images(tmp_path / "images", [(32, 32), (32, 32)])
    (tmp_path / "images" / "class0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    found = stats.run(stats.Config(source=str(tmp_path / "images"), workers=0))
    assert (found["inputs"], found["read"]) == (3, 2)
    assert [Path(name).name for name in found["unreadable"]] == ["broken.png"]
    shown = capsys.readouterr().out
    assert "1 cannot be read, for instance" in shown
    assert "a training stops at more than data.max_bad 0.01: repair them" in shown
    for path in (tmp_path / "images").rglob("[01].png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of 1 inputs can be read; .*broken\.png"):
        stats.run(stats.Config(source=str(tmp_path / "images"), workers=0))


def test_a_part_of_many_inputs_is_chosen_once_and_for_all() -> None:
    chosen = choose(1000, 50)
    assert len(set(chosen)) == 50
    assert chosen == sorted(chosen) == choose(1000, 50)
    assert abs(np.mean(chosen) - 500) < 150  # chosen from all inputs, not only the first ones
    assert choose(3, 50) == [0, 1, 2]


def test_the_columns_of_a_list_are_named_and_proposed(tmp_path: Path) -> None:
    colours = write_images(tmp_path, [(32, 32), (40, 40), (32, 32)]) / 255
    rows = [f"{number} class{number % 2}/{number}.png" for number in range(3)]  # the label comes first, which cannot be detected
    (tmp_path / "list.txt").write_text("\n".join(rows) + "\n")
    found = stats.run(stats.Config(source=str(tmp_path / "list.txt"), list_columns=("label", "path"), medium="images", workers=0))
    np.testing.assert_allclose(found["mean"], colours.mean(0), rtol=0, atol=1e-9)
    assert parse(image_mae.PRESETS, shlex.split(found["proposal"])[3:]).data.list_columns == ("label", "path")
    (tmp_path / "list.txt").rename(tmp_path / "test.txt")  # its only split is called test
    found = stats.run(stats.Config(source=str(tmp_path / "test.txt"), list_columns=("label", "path"), medium="images", workers=0))
    assert "--data.split test" in found["proposal"]


def test_images_of_one_colour_and_a_column_get_a_command_that_runs(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 20, 30)).save(image, "png")
    cell = {"bytes": image.getvalue(), "path": None}
    pq.write_table(pa.table({"front": [cell] * 3, "back": [cell] * 3}), tmp_path / "two.parquet")
    found = stats.run(stats.Config(source=str(tmp_path / "two.parquet"), column="back", workers=0))
    config = parse(image_mae.PRESETS, shlex.split(found["proposal"])[3:])
    assert config.data.image_column == "back"
    assert config.data.std == (0.001, 0.001, 0.001)


def test_a_wrong_number_of_samples_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["stats", "builtin:photographs", "--samples", "0"])
    assert "--samples 0 is not a whole number of at least 1" in capsys.readouterr().err
