"""`mmm predict`: a classifier on files, folders and films."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_extract import ask
from video_files import write

from mmm import MaskedModel
from mmm.classifier import Classifier

CPU = ("--device", "cpu")


@pytest.fixture
def model(build: Callable[..., MaskedModel], tmp_path: Path) -> Path:
    Classifier.of(build(), classes=3, labels=("cat", "dog", "owl")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, values in enumerate(np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), dtype=np.uint8)):
        Image.fromarray(values).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_a_folder_and_a_file(model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows are what the model itself says of the files; what cannot be read is named."""
    found = ask(["predict", str(model), str(folder), "--top", "2", "--out", str(tmp_path / "rows.json"), *CPU])["predictions"]
    said = {row["name"].rsplit("/")[-1]: row for row in found}
    assert set(said) == {"0.png", "1.png", "2.png", "broken.png"}
    assert "not an image" in said["broken.png"]["problem"]
    classifier = Classifier.from_pretrained(model)
    for name in ("0.png", "1.png", "2.png"):
        (expected,) = classifier.predict(folder / name, top=2)
        assert list(said[name]["classes"]) == list(expected)
        assert list(said[name]["classes"].values()) == pytest.approx(list(expected.values()), rel=1e-5)
    assert json.loads((tmp_path / "rows.json").read_text()) == found
    assert "1 of 4 inputs could not be read" in capsys.readouterr().out
    ask(["predict", str(model), str(folder / "1.png"), "--out", str(tmp_path / "rows.csv"), *CPU])
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["probability1"]) + float(row["probability2"]) + float(row["probability3"]) == pytest.approx(1)


def test_a_film(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """A film's probabilities are the mean over its clips."""
    classifier = Classifier.of(build(size=(4, 16, 16)), classes=2)
    classifier.save_pretrained(tmp_path / "model")
    film = write(tmp_path / "film.mp4")
    (row,) = ask(["predict", str(tmp_path / "model"), str(film), "--eval_clips", "2", *CPU])["predictions"]
    assert sum(row["classes"].values()) == pytest.approx(1)
    assert torch.tensor(list(row["classes"].values())).isfinite().all()


def test_what_cannot_be_is_said(model: Path, build: Callable[..., MaskedModel], folder: Path, tmp_path: Path) -> None:
    from tasks.predict import Config, run

    with pytest.raises(ValueError, match="give a model and a source"):
        run(Config(inputs=(str(model),)))
    build().save_pretrained(tmp_path / "masked")
    with pytest.raises(ValueError, match="fine-tune it first"):
        run(Config(inputs=(str(tmp_path / "masked"), str(folder))))
    with pytest.raises(ValueError, match=r"neither a \.csv nor a \.json"):
        Config(out="rows.txt")
    for split in ("train", "val"):
        (tmp_path / "splits" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "splits" / split / "cat" / "0.png")
    with pytest.raises(ValueError, match="name the folder or file of one"):
        run(Config(inputs=(str(model), str(tmp_path / "splits")), device="cpu"))
