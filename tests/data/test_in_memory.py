"""Python objects, and files that are named one by one, give the same samples, labels and splits as other sources."""

from __future__ import annotations

import io
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from video_files import write

from mmm.data import ClipsConfig, Images, ImagesConfig, open_data, open_images, register_source, train_batches

CONFIG = ImagesConfig(image_size=16, workers=0, holdout=0.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)  # (N, H, W, C)
LABELS = [0, 2, 1, 0, 2, 2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "files").mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "files" / f"{number}.png")
    return sorted((tmp_path / "files").iterdir())


class Pairs(Dataset[Any]):
    """A data set like torchvision's: images with labels, and a list of labels. Sample 1 cannot be read."""

    targets = LABELS
    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == 1:
            raise KeyError("gone\nfor good")
        return Image.fromarray(PIXELS[index]), LABELS[index]


def opened(data: object, split: str = "train", **options: Any) -> Images:
    register_source("mine", data)
    return open_images(replace(CONFIG, source="registered:mine", **options), split)


def pixels(images: Images) -> list[Any]:
    return [images.read(row).tolist() for row in range(len(images))]


def hugging_face(rows: range = range(6)) -> Any:
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    columns = {"picture": [Image.fromarray(PIXELS[row]) for row in rows], "label": [LABELS[row] for row in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


FLOATS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
FORMS: dict[str, Any] = {
    "array": PIXELS,
    "array of floats, channels first": FLOATS.numpy(),
    "tensor": FLOATS,
    "list of arrays": list(PIXELS),
    "list of images": [Image.fromarray(image) for image in PIXELS],
    "list of pairs": [(Image.fromarray(image), label) for image, label in zip(PIXELS, LABELS, strict=True)],
    "list of mappings": [{"img": image, "label": label} for image, label in zip(PIXELS, LABELS, strict=True)],
    "list of names": [(image, "abc"[label]) for image, label in zip(PIXELS, LABELS, strict=True)],
    "torch": TensorDataset(FLOATS, torch.tensor(LABELS)),
    "subset": torch.utils.data.Subset(TensorDataset(FLOATS, torch.tensor(LABELS)), range(6)),
    "function": lambda: PIXELS,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_samples(form: str) -> None:
    images = opened(FORMS[form])
    assert pixels(images) == PIXELS.tolist()
    with_labels = form.split(" of ")[-1] in ("pairs", "mappings", "names", "torch", "subset")
    assert (None if images.labels() is None else images.labels().tolist()) == (LABELS if with_labels else None)
    assert images.classes == (("a", "b", "c") if form == "list of names" else ("0", "1", "2") if with_labels else None)
    assert images.name(4) == "train row 4"
    assert images.fingerprint == opened(FORMS[form]).fingerprint
    assert images.fingerprint != opened(PIXELS[::-1].copy()).fingerprint
    (batch,) = train_batches(images, replace(CONFIG, workers=2), seed=0, batch_size=8, steps=1)
    (again,) = train_batches(images, CONFIG, seed=0, batch_size=8, steps=1)
    assert torch.equal(batch.pixels, again.pixels)


def test_hugging_face_data_sets_from_memory_and_from_disk(tmp_path: Path) -> None:
    import datasets

    whole = hugging_face()
    images = opened(whole.shuffle(seed=1).select([4, 0, 3]))
    order = [list(PIXELS.tolist()).index(image) for image in pixels(images)]
    assert len(set(order)) == 3
    assert images.labels().tolist() == [LABELS[row] for row in order]
    assert images.classes == ("a", "b", "c")
    both = datasets.DatasetDict({"train": whole, "test": hugging_face(range(2))})
    assert len(opened(both, "eval")) == 2
    both.save_to_disk(tmp_path / "both")
    whole.save_to_disk(tmp_path / "one")
    for name in ("both", "one"):
        saved = open_images(replace(CONFIG, source=str(tmp_path / name)), "train")
        assert pixels(pickle.loads(pickle.dumps(saved))) == PIXELS.tolist()
        assert saved.labels().tolist() == LABELS
    assert len(open_images(replace(CONFIG, source=str(tmp_path / "both")), "eval")) == 2


def test_what_a_data_set_cannot_read_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    images = opened({"train": Pairs(), "validation": PIXELS[:2]})
    assert images.labels().tolist() == LABELS
    assert images.classes == Pairs.classes
    (batch,) = train_batches(images, CONFIG, seed=0, batch_size=6, steps=1)
    assert [(problem.index, problem.reason) for problem in batch.problems] == [(1, r"KeyError: 'gone\nfor good'")]
    assert len(opened({"train": Pairs(), "validation": PIXELS[:2]}, "eval")) == 2
    cut_off = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(cut_off, "PNG")
    (batch,) = train_batches(
        opened([Image.open(io.BytesIO(cut_off.getvalue()[:200])), PIXELS[1]]), CONFIG, seed=0, batch_size=2, steps=1
    )
    assert [problem.index for problem in batch.problems] == [0]
    with caplog.at_level(logging.INFO):
        opened(FORMS["torch"])
    assert "each sample is read to get its label" in caplog.text


def test_files_that_are_named_one_by_one(files: list[Path], tmp_path: Path) -> None:
    for data in (files, [str(file) for file in files]):
        assert pixels(opened(data)) == PIXELS.tolist()
        assert opened(data).name(2) == str(files[2])
    labelled = opened(list(zip(files, LABELS, strict=True)))
    assert (labelled.name(2), labelled.labels().tolist()) == (str(files[2]), LABELS)
    for one in (files[3], str(files[3]), Image.open(files[3]), PIXELS[3]):
        assert pixels(opened(one)) == [PIXELS[3].tolist()]
    assert pixels(open_images(replace(CONFIG, source=str(files[3])), "train")) == [PIXELS[3].tolist()]
    assert pixels(open_images(replace(CONFIG, source=f"{tmp_path}/files/*.png"), "train")) == PIXELS.tolist()
    (tmp_path / "list.csv").write_text("".join(f"files/{file.name},{label}\n" for file, label in zip(files, LABELS, strict=True)))
    listed = open_images(replace(CONFIG, source=str(tmp_path / "list.csv")), "train")
    assert (pixels(listed), listed.labels().tolist()) == (PIXELS.tolist(), LABELS)


def test_npy_files_hold_stacks_or_single_images(tmp_path: Path) -> None:
    for number, values in enumerate((PIXELS, PIXELS.transpose(0, 3, 1, 2), FLOATS.numpy())):
        np.save(tmp_path / f"{number}.npy", values)
        images = open_images(replace(CONFIG, source=str(tmp_path / f"{number}.npy")), "train")
        assert pixels(images) == PIXELS.tolist()
        sent = pickle.dumps(images)
        assert len(sent) < 5000  # the name of the file, not its contents
        assert pixels(pickle.loads(sent)) == PIXELS.tolist()
    np.save(tmp_path / "one.npy", PIXELS[0].transpose(2, 0, 1))
    assert pixels(open_images(replace(CONFIG, source=str(tmp_path / "one.npy")), "train")) == [PIXELS[0].tolist()]
    np.save(tmp_path / "grey.npy", PIXELS[..., 0])
    grey = open_images(replace(CONFIG, source=str(tmp_path / "grey.npy"), channels=1, mean=(0.5,), std=(0.5,)), "train")
    assert pixels(grey) == PIXELS[..., :1].tolist()


def test_videos_are_files(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.mp4", count=8, size=(32, 32))
    config = ClipsConfig(image_size=16, frames=2, stride=1, workers=0, holdout=0.0, source="registered:mine")
    paths = [tmp_path / "0.mp4", tmp_path / "1.mp4"]
    wanted, _ = open_data(replace(config, source=str(tmp_path)), "train").eval_views(torch.arange(2))
    for data in (paths, [(path.read_bytes(), 0) for path in paths]):
        register_source("mine", data)
        assert torch.equal(open_data(config, "train").eval_views(torch.arange(2))[0], wanted)
    assert len(open_data(replace(config, source=str(paths[1])), "train")) == 1
    register_source("mine", [(PIXELS, 0)])
    assert open_data(config, "train").eval_views(torch.arange(1))[1] == {0: "is a ndarray; a path or encoded bytes are expected"}
    register_source("mine", PIXELS)
    with pytest.raises(ValueError, match="an array holds images; give files of videos"):
        open_data(config, "train")


def test_what_has_no_index_is_refused() -> None:
    with pytest.raises(ValueError, match="generator has no length or no index"):
        opened(image for image in PIXELS)
    with pytest.raises(ValueError, match="a label holds float; whole numbers or names are expected"):
        opened([(PIXELS[0], 0.5)])


class Described(Dataset[Any]):
    """Six images with labels, and attributes as users give them."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return PIXELS[index], torch.tensor(LABELS[index])


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    "value",
    [
        *(["x", "y", "z"], True, 3, "column", lambda: LABELS, dict(enumerate(LABELS)), set(range(6)), b"abcdef", "abcdef"),
        *(torch.tensor(3), torch.zeros(6, 3), np.array(3)),
    ],
)
def test_an_attribute_that_is_no_label_of_each_sample_is_not_used(name: str, value: Any) -> None:
    assert opened(Described(**{name: value})).labels().tolist() == LABELS


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_an_attribute_with_a_label_of_each_sample_is_used(kind: Any) -> None:
    other = [1, 1, 0, 2, 0, 1]
    assert opened(Described(targets=["x", "y", "z"], labels=kind(other))).labels().tolist() == other


@pytest.mark.parametrize("classes", [3, "abc", [0, 1, 2], {"a": 0}, lambda: ["a", "b", "c"]])
def test_classes_that_are_no_names_are_refused(classes: Any) -> None:
    with pytest.raises(ValueError, match=r"registered:mine: `classes` is .*; give a list of names, one of each class"):
        opened(Described(classes=classes)).labels()


def test_a_label_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="a label holds Tensor; whole numbers or names are expected"):
        opened([(image, torch.zeros(3)) for image in PIXELS])
