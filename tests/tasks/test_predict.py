"""`mmm predict`: a classifier on files, folders and videos."""

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
    """The rows equal the predictions of the model itself, and the unreadable file is reported."""
    found = ask(["predict", str(model), str(folder), "--top", "2", "--out", str(tmp_path / "rows.json"), *CPU])["predictions"]
    said = {row["name"].rsplit("/")[-1]: row for row in found}
    assert list(said) == ["0.png", "1.png", "2.png", "broken.png"]
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


def test_accuracy_of_labelled_inputs(
    model: Path, build: Callable[..., MaskedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sub-folders with names of the model's classes are labels, in any order and number. Other sub-folders are not."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, 30, 20, 3), dtype=np.uint8)
    for number, values in enumerate(pixels):
        file = tmp_path / "photographs" / "val" / ("owl", "cat", "2019")[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    (tmp_path / "photographs" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(pixels[0]).save(tmp_path / "photographs" / "train" / "cat" / "0.png")
    found = ask(["predict", str(model), str(tmp_path / "photographs"), "--split", "val", *CPU])
    rows = found["predictions"]
    assert len(rows) == 12
    assert all(row.get("label") == {"owl": "owl", "cat": "cat"}.get(Path(row["name"]).parent.name) for row in rows)
    labelled = [row for row in rows if "label" in row]
    right = [next(iter(row["classes"])) == row["label"] for row in labelled]
    assert found["accuracy"]["samples"] == len(labelled) == 8
    assert found["accuracy"]["top1"] == sum(right) / 8
    assert found["accuracy"]["top5"] == 1
    assert f"top-1 {sum(right) / 8:.2%}, " in capsys.readouterr().out
    Classifier.of(build(), classes=3).save_pretrained(tmp_path / "unnamed")  # three sub-folders are its three classes
    found = ask(["predict", str(tmp_path / "unnamed"), str(tmp_path / "photographs" / "val"), *CPU])
    assert found["accuracy"]["samples"] == 12
    assert {row["label"] for row in found["predictions"]} == {"0", "1", "2"}
    other = ask(["predict", str(model), str(tmp_path / "photographs" / "val" / "2019"), *CPU])
    assert "accuracy" not in other
    lines = [f"photographs/val/{('owl', 'cat', '2019')[number % 3]}/{number}.png {number % 4}" for number in range(8)]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")  # its only split is called test, and its labels are numbers
    found = ask(["predict", str(model), str(tmp_path / "test.csv"), *CPU])
    assert [row.get("label") for row in found["predictions"]] == ["cat", "dog", "owl", None] * 2


def test_several_sources_and_lists(model: Path, folder: Path, tmp_path: Path) -> None:
    """The rows of several sources name the source. The columns and the root of a list are those that are given."""
    (folder / "0.png").rename(folder / "3.png")  # the unreadable one is then neither first nor last
    (folder / "broken.png").rename(folder / "2.5.png")
    (tmp_path / "list.txt").write_text("cat 2.png\nowl 2.5.png\ndog 3.png\n")
    columns = ("--root", str(folder), "--list_columns", "label", "path")
    rows = ask(["predict", str(model), str(tmp_path / "list.txt"), *columns, *CPU])["predictions"]
    assert [(row["name"], row.get("label"), "problem" in row) for row in rows] == [
        ("2.png", "cat", False),
        ("2.5.png", None, True),
        ("3.png", "dog", False),
    ]
    sources = [str(folder / "1.png"), str(folder / "3.png")]
    found = ask(["predict", str(model), *sources, "--out", str(tmp_path / "rows.csv"), *CPU])["predictions"]
    assert [row["source"] for row in found] == sources
    with (tmp_path / "rows.csv").open() as file:
        assert [row["source"] for row in csv.DictReader(file)] == sources


def test_a_film(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """The probabilities of a video are the mean over its clips."""
    classifier = Classifier.of(build(size=(4, 16, 16)), classes=2)
    classifier.save_pretrained(tmp_path / "model")
    video = write(tmp_path / "video.mp4")
    (row,) = ask(["predict", str(tmp_path / "model"), str(video), "--eval_clips", "2", *CPU])["predictions"]
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
    with pytest.raises(ValueError, match="none of the 1 inputs could be read"):
        run(Config(inputs=(str(model), str(folder / "broken.png")), device="cpu"))
    with pytest.raises(ValueError, match="choose one, for instance --split train"):
        run(Config(inputs=(str(model), str(tmp_path / "splits")), device="cpu"))


def test_masks_and_objects(build: Callable[..., MaskedModel], folder: Path, tmp_path: Path) -> None:
    """Masks equal `segment` of the model at the size of each image, and boxes are inside the image."""
    from mmm.dense.detector import Detector, MaskRCNN
    from mmm.dense.heads import LinearHead
    from mmm.dense.segmenter import Segmenter
    from tasks.predict import Config, run

    built = build((16, 16))
    segmenter = Segmenter.build(
        built.tokenizer, built.encoder, LinearHead.Config(), classes=2, data=built.data, labels=("sky", "sea")
    )
    segmenter.save_pretrained(tmp_path / "segmenter")
    arguments = (str(folder), "--masks", str(tmp_path / "masks"), *CPU)
    found = ask(["predict", str(tmp_path / "segmenter"), *arguments])["predictions"]
    assert sum("problem" in row for row in found) == 1
    for row in found:
        if "problem" not in row:
            image = np.array(Image.open(row["name"] if Path(row["name"]).exists() else folder / Path(row["name"]).name))
            mask = np.asarray(Image.open(row["files"][0]))
            assert mask.shape == image.shape[:2] == (30, 20)
            assert row["classes"].get("sea", 0) == pytest.approx((mask == 1).mean())
            mean, std = (torch.tensor(values)[:, None, None] for values in (built.data.mean, built.data.std))
            x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std
            assert (segmenter.segment(x).argmax(1)[0].numpy() == mask).mean() > 0.999
            (own,) = segmenter.predict(folder / Path(row["name"]).name)
            assert (own["labels"].numpy() == mask).all()
            assert own["classes"] == pytest.approx(row["classes"])
    assert [one["labels"].shape for one in segmenter.predict(torch.randn(2, 3, 20, 30))] == [(20, 30)] * 2
    files = ["predict", str(tmp_path / "segmenter"), *[str(folder / "0.png")] * 2, "--masks", str(tmp_path / "twice"), *CPU]
    assert len({row["files"][0] for row in ask(files)["predictions"]}) == 2  # sources may contain files of the same name
    small = MaskRCNN.Config(window=2, channels=8, hidden=8, convolutions=1, proposals=10, detections=4)
    other = build((16, 16))  # another model, because the detector adds relative positions to its attention
    detector = Detector.build(other.tokenizer, other.encoder, small, classes=2, data=other.data)
    detector.save_pretrained(tmp_path / "detector")
    out = tmp_path / "objects.csv"
    found = ask(["predict", str(tmp_path / "detector"), *arguments, "--least", "0", "--out", str(out)])["predictions"]
    boxes = np.array([one["box"] for row in found for one in row.get("objects", ())])
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= [20, 30, 20, 30]).all()
    for row in found:
        if "problem" not in row:
            (own,) = detector.predict([Image.open(folder / Path(row["name"]).name)], least=0)
            assert [{name: value for name, value in one.items() if name != "mask"} for one in own] == row["objects"]
            assert all(one["mask"].shape == (30, 20) for one in own)
    assert len(detector.predict(torch.randn(2, 3, 16, 16), least=0)) == 2
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == len(boxes) + 1  # plus the row of the unreadable input
    Classifier.of(built, classes=2).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="--masks is for segmenters and detectors"):
        run(Config(inputs=(str(tmp_path / "classifier"), str(folder)), masks=str(tmp_path / "masks")))
