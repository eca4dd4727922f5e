"""Images with masks and depths: pairing, joint crops, and messages for errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmm.data.annotated.config import DepthConfig, MasksConfig
from mmm.data.annotated.maps import IGNORE, metres_of, split_planes
from mmm.data.annotated.pixels import open_pixels
from mmm.data.loading.loader import eval_batches, train_batches
from mmm.data.transforms.photometric import distort
from mmm.objectives.segment import prepare_pixels

DATA = MasksConfig(image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3, workers=0, max_bad=1.0, holdout=0.0, flip=0.0)
STEP = 40  # difference of grey values between labels


def write_pair(root: Path, name: str, labels: np.ndarray, split: str = "training", image: np.ndarray | None = None) -> None:
    """Writes an image whose grey values are STEP times its labels, and its mask."""
    for folder, values in (("images", labels * STEP if image is None else image), ("annotations", labels)):
        path = root / folder / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes ADE20K's layout: blocks of 8 pixels with the labels 1 to 3 and, in a corner, 0."""
    random = np.random.default_rng(0)
    for number in range(4):
        blocks = random.integers(1, 4, (4, 6))
        blocks[0, 0] = 0
        write_pair(tmp_path, f"{number}", blocks.repeat(8, 0).repeat(8, 1))
    write_pair(tmp_path, "8", np.full((32, 32), 2), split="validation")
    return tmp_path


def config(folder: Path, **changes: Any) -> MasksConfig:
    return replace(DATA, source=str(folder), **changes)


def test_an_image_and_its_mask_are_cropped_and_flipped_together(folder: Path) -> None:
    """The grey values give the labels, so that one can be computed from the other at every place inside a block."""
    data = config(folder, scale=(0.9, 2.0), flip=0.5, largest_class=1.0)
    part = open_pixels(data, "train")
    assert (len(part), part.count, part.where) == (4, 4, "train")
    for batch in train_batches(part, data, seed=0, batch_size=16, steps=2):
        x, labels = prepare_pixels(batch, data)
        grey = ((x * 0.25 + 0.5) * 255).round()[:, 0]
        wide = torch.nn.functional.pad(labels.float()[:, None], (2, 2, 2, 2), value=-1)
        most, least = (sign * torch.nn.functional.max_pool2d(sign * wide, 5, 1)[:, 0] for sign in (1, -1))
        inside = (most == least) & (labels != IGNORE)
        assert inside.float().mean() > 0.05
        assert torch.equal((grey[inside] / STEP).round().long(), labels[inside])
        outside = labels == IGNORE
        assert outside.any()
        assert x[outside[:, None].expand_as(x)].abs().max() < 0.02  # the mean colour


def test_evaluation_keeps_every_pixel(folder: Path) -> None:
    part = open_pixels(config(folder), "eval", 4)
    (batch,) = eval_batches(part, part.config, batch_size=1)
    image, labels = split_planes(batch.pixels, 3)
    assert labels.shape == (1, 32, 32)
    assert (labels == 2).all()
    assert (image == 2 * STEP).all()


def test_label_zero_is_ignored_where_it_is_said(folder: Path) -> None:
    part = open_pixels(config(folder, zero_is_ignored=True), "train")
    assert part.count == 3
    assert (part.read(0)[1][:8, :8] == IGNORE).all()
    assert set(np.unique(part.read(0)[1])) <= {0, 1, 2, IGNORE}


def test_classes_that_no_mask_has_are_said(folder: Path, caplog: Any) -> None:
    """A label is out of range where the number of classes is counted in the masks."""
    assert open_pixels(config(folder), "train").count == 4
    assert "no mask has" not in caplog.text
    write_pair(folder, "3", np.full((32, 48), 9), image=np.zeros((32, 48)))
    assert open_pixels(config(folder), "train").count == 10
    assert "the largest label is 9, which makes 10 classes, but no mask has the label 4, 5, 6, 7, 8;" in caplog.text


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: Image.new("L", (48, 31)).save(path), "its map has 31 x 48 pixels and the image 32 x 48"),
        (lambda path: Image.new("L", (48, 32), 9).save(path), "the label 9; the labels of 4 classes are 0 to 3"),
        (lambda path: Image.new("RGB", (48, 32), "red").save(path), "its map has colours"),
        (lambda path: path.write_bytes(b"no map"), "its map is not an image of a known format"),
        (lambda path: path.write_bytes(b""), "its map cannot be read: the file is empty"),
        (lambda path: Image.new("L", (48, 32), 1).save(path, "JPEG"), "is a JPEG"),
    ],
)
def test_a_wrong_mask_is_named_and_its_image_replaced(folder: Path, break_it: Any, said: str) -> None:
    break_it(folder / "annotations" / "training" / "2.png")
    data = config(folder, classes=4)
    (batch,) = train_batches(open_pixels(data, "train"), data, seed=0, batch_size=4, steps=1)
    assert {(problem.name, said in problem.reason) for problem in batch.problems} == {("training/2.png", True)}
    part = open_pixels(data, "train")
    batches = list(eval_batches(part, data, batch_size=1))
    assert [len(batch) for batch in batches] == [1, 1, 0, 1]  # an evaluation leaves the image out
    assert said in batches[2].problems[0].reason


def test_files_without_a_partner_are_counted(folder: Path, caplog: Any) -> None:
    (folder / "images" / "training" / "1.png").unlink()
    (folder / "annotations" / "training" / "3.png").unlink()
    part = open_pixels(config(folder), "train")
    assert len(part) == 2
    assert "1 images without a map are left out: 3.png" in caplog.text
    assert "1 maps without an image are left out: 1.png" in caplog.text


def test_a_palette_keeps_its_indices_and_255_is_ignored(folder: Path) -> None:
    """In VOC's masks the colours are for viewing only, and the border of objects is 255."""
    values = np.full((32, 48), 3, np.uint8)
    values[0] = 255
    mask = Image.fromarray(values, mode="P")
    mask.putpalette([7] * 768)
    mask.save(folder / "annotations" / "training" / "0.png")
    numbers = open_pixels(config(folder, classes=4), "train").read(0)[1]
    assert set(numbers[0]) == {IGNORE}
    assert set(numbers[1:].flat) == {3}


def test_tables_have_a_column_of_images_and_one_of_maps(folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset, Features
    from datasets import Image as Column

    rows = {
        name: [Image.fromarray(np.asarray(Image.open(path))) for path in sorted((folder / below / "training").iterdir())]
        for name, below in (("image", "images"), ("label", "annotations"))
    }
    (tmp_path / "table").mkdir()
    Dataset.from_dict(rows, features=Features({"image": Column(), "label": Column()})).to_parquet(
        tmp_path / "table" / "train.parquet"
    )
    table, files = open_pixels(config(tmp_path / "table"), "train"), open_pixels(config(folder), "train")
    for index in range(4):
        assert all(np.array_equal(one, other) for one, other in zip(table.read(index), files.read(index), strict=True))
    with pytest.raises(ValueError, match="data.maps seg: no such column; there are: image, label"):
        open_pixels(config(tmp_path / "table", maps="seg"), "train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": None}, "data.source is not set"),
        ({"source": "builtin:scene"}, "did you mean 'scenes'"),
        ({"maps": "nowhere"}, "data.maps nowhere is not a folder"),
        ({"crop_scale": (0.1, 1.0)}, "have no such option"),
        ({"classes": 0}, "data.classes 0"),
        ({"largest_class": 0.0}, "data.largest_class 0 is not"),
        ({"photometric": True, "channels": 1, "mean": (0.5,), "std": (0.5,)}, "use data.lighting"),
        ({"zero_is_ignored": True, "ignore": 1, "source": "flat"}, "have ignored labels only"),
    ],
)
def test_what_cannot_be_used_is_said(folder: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_pair(tmp_path / "flat", "0", np.ones((8, 8)))
    changes = changes | ({"source": str(tmp_path / "flat")} if changes.get("source") == "flat" else {})
    with pytest.raises(ValueError, match=said):
        open_pixels(replace(config(folder), **changes), "train")


def test_folders_without_a_pair_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "annotations" / "training").iterdir():
        path.rename(path.with_name(f"mask_{path.name}"))
    with pytest.raises(ValueError, match=r"\(4 images\) and .* \(4 maps\) have no file name in common"):
        open_pixels(config(folder), "train")
    with pytest.raises(ValueError, match="holds training, validation; images/ and one of"):
        open_pixels(config(folder / "images"), "train")


def test_depths_survive_their_numbers(tmp_path: Path) -> None:
    metres = np.linspace(0.5, 9.5, 48 * 32).reshape(32, 48).astype(np.float32)
    metres[0, :2] = (0, 11)
    data = DepthConfig(source=str(tmp_path), image_size=16, range=(0.4, 10.0), workers=0, holdout=0.0)
    for name, values in (("a", metres), ("b", (metres * 1000).round().astype(np.uint16))):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "depth").mkdir(exist_ok=True)
        Image.new("RGB", (48, 32)).save(tmp_path / "images" / f"{name}.png")
        if name == "a":
            np.save(tmp_path / "depth" / "a.npy", values)
        else:
            Image.fromarray(values).save(tmp_path / "depth" / "b.png")
    part = open_pixels(data, "train")
    for index in range(2):
        found = metres_of(torch.from_numpy(part.read(index)[1].astype(np.int64)), data.range).numpy()
        assert np.isnan(found[0, :2]).all()
        assert np.abs(found - metres)[~np.isnan(found)].max() < 6e-4


def test_the_motorcycle_has_measured_depths() -> None:
    """Depths of 2.1 to 5 m cover 93 % of the pixels; the halves share no column."""
    data = DepthConfig(source="builtin:motorcycle", image_size=16, range=(2.0, 5.2), workers=0)
    parts = [open_pixels(data, split) for split in ("train", "eval")]
    metres = [metres_of(torch.from_numpy(part.read(0)[1].astype(np.int64)), data.range) for part in parts]
    known = torch.cat([one[one.isfinite()] for one in metres])
    assert (known.min(), known.max()) == (pytest.approx(2.11, abs=0.03), pytest.approx(5.02, abs=0.03))
    assert [part.name(0) for part in parts] == ["motorcycle_left.png, columns 0 to 370", "motorcycle_left.png, columns 408 to 741"]
    with pytest.raises(ValueError, match="has depths and no masks"):
        open_pixels(MasksConfig(source="builtin:motorcycle"), "train")


def test_colours_are_distorted_as_the_keys_say() -> None:
    """Some samples stay unchanged; grey stays grey, for it has neither hue nor saturation."""
    x, keys = torch.rand(64, 3, 4, 4) * 255, torch.arange(64)
    y = distort(x, keys)
    same = (y - x).abs().flatten(1).amax(1) < 0.01
    assert 0 < same.sum() < 16  # of 64 samples, one in 16 is unchanged on average
    assert torch.equal(distort(x[5:6], keys[5:6]), y[5:6])
    grey = distort(x[:, :1].expand(-1, 3, -1, -1), keys)
    assert (grey - grey[:, :1]).abs().max() < 1e-3
    assert (y.min() >= 0) & (y.max() <= 255)
