"""Sources of images: folders, tables, the Hub's layout; splits, labels, files that are left out, and error messages."""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmm.data import Images, ImagesConfig, Unreadable, open_images, train_batches
from mmm.data.sources.huggingface import Hub

CONFIG = ImagesConfig(image_size=16, workers=0, holdout=0.25)


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves the cache of `datasets`, which keeps a copy of every table that it reads, out of the user's cache."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def picture(value: int, size: tuple[int, int] = (20, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def tree(root: Path, *paths: str) -> Path:
    """Writes files below a root: images whose red value is their number, and text files for other suffixes."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number) if path.endswith((".png", ".PNG")) else b"text")
    return root


def parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def cells(*values: int) -> list[object]:
    return [{"bytes": picture(value), "path": f"{value}.png"} for value in values]


def reds(images: Images) -> list[int]:
    return [int(images.read(i)[0, 0, 0]) for i in range(len(images))]


def opened(source: Path | str, part: str = "train", **options: object) -> Images:
    return open_images(replace(CONFIG, source=str(source), **{"holdout": 0.0, **options}), part)


def test_sub_folders_are_classes_and_deeper_ones_are_not(tmp_path: Path) -> None:
    images = opened(tree(tmp_path, "b/2.png", "a/x/y/1.PNG", "a/0.png", ".git/x.png", "__MACOSX/b/2.png"))
    assert images.classes == ("a", "b")
    assert [images.name(i) for i in range(3)] == ["a/0.png", "a/x/y/1.PNG", "b/2.png"]
    assert reds(images) == [2, 1, 0]
    assert images.labels().tolist() == [0, 0, 1]


def test_a_class_may_begin_with_two_underscores(tmp_path: Path) -> None:
    images = opened(tree(tmp_path, "__unknown__/0.png", "cat/1.png"))
    assert images.classes == ("__unknown__", "cat")
    assert images.labels().tolist() == [0, 1]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    images = opened(tree(tmp_path, "b.png", "a.png"))
    assert images.classes is None
    assert images.labels() is None
    assert reds(images) == [1, 0]
    assert next(train_batches(images, CONFIG, seed=0, batch_size=3, steps=1)).labels is None


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "a/0.png", "b/1.png", "a/notes.txt", "b/more.TXT", "a/LICENSE", "beside.png", "a/.hidden.png", ".git/x.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")  # opening it would block forever
    (tmp_path / "a" / "dangling.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "a" / "circle").symlink_to(tmp_path / "a")
    (tmp_path / "c").mkdir()
    with caplog.at_level(logging.WARNING, "mmm.data.sources.folder"):
        assert len(opened(tmp_path)) == 4  # includes the pipe and the broken link: reading them gives the reason
    assert "4 images found; left out: 2 x .txt, 1 x " in caplog.text
    assert "1 x no extension" in caplog.text
    assert "1 x images beside the class folders" in caplog.text
    assert "classes without images: c (each folder is a class)" in caplog.text


@pytest.mark.parametrize("second", ["val", "validation", "test"])
def test_folders_of_splits(tmp_path: Path, second: str) -> None:
    tree(tmp_path, "train/b/0.png", "train/a/1.png", f"{second}/b/2.png", "readme/notes.txt")
    train, evaluation = opened(tmp_path, holdout=0.5), opened(tmp_path, "eval", holdout=0.5)
    assert train.classes == evaluation.classes == ("a", "b")
    assert reds(train) == [1, 0]  # with an evaluation split, nothing is held out
    assert evaluation.labels().tolist() == [1]
    assert evaluation.where == second


def test_a_split_without_classes_has_no_labels(tmp_path: Path) -> None:
    tree(tmp_path, "train/b/0.png", "train/a/1.png", "test/2.png")
    assert opened(tmp_path).classes == ("a", "b")
    assert opened(tmp_path, "test").labels() is None
    assert reds(opened(tmp_path, "test")) == [2]


def test_classes_called_train_and_test_stay_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "bus/0.png", "train/1.png", "test/2.png")
    with caplog.at_level(logging.WARNING, "mmm.data.sources.folder"):
        assert opened(tmp_path).classes == ("bus", "test", "train")
    assert "are classes and not splits, because there is also the folder bus" in caplog.text


def test_a_single_train_folder_is_a_split(real_data: Path) -> None:
    images = opened(real_data / "images", image_size=64)
    assert len(images) == len(images.classes) == 65
    assert images.labels().tolist() == list(range(65))
    batch = next(train_batches(images, CONFIG, seed=0, batch_size=8, steps=1))
    assert batch.pixels.shape == (8, 3, 64, 64)
    assert not batch.problems


def test_held_out_samples_are_fixed_exact_and_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, *(f"{i:02d}.png" for i in range(40)))
    caplog.set_level("INFO")
    train, held, _ = (opened(tmp_path, part, holdout=0.25) for part in ("train", "eval", "eval"))
    assert caplog.messages == [
        f"data.source {tmp_path} has no split for evaluation: 10 of its 40 samples are held out for it (data.holdout 0.25)"
    ]
    assert (len(train), len(held)) == (30, 10)
    assert sorted(reds(train) + reds(held)) == list(range(40))
    assert reds(held) == reds(opened(tmp_path, "eval", holdout=0.25)) != list(range(30, 40))
    assert set(reds(opened(tmp_path, "eval", holdout=0.1))) < set(reds(held))
    assert train.fingerprint != held.fingerprint
    with pytest.raises(ValueError, match=r"no split for evaluation and data\.holdout is 0"):
        opened(tmp_path, "eval")


def test_cifar10(real_data: Path) -> None:
    config = replace(CONFIG, source=str(real_data / "cifar10"), image_size=32)
    images = open_images(config, "eval")
    assert images.where == "test"
    assert len(images) == 10_000
    assert images.labels().bincount().tolist() == [1000] * 10
    assert images.classes[:2] == ("airplane", "automobile")
    assert images.read(0).shape == (32, 32, 3)
    assert images.fingerprint == open_images(config, "test").fingerprint
    assert pickle.loads(pickle.dumps(images)).read(7).tolist() == images.read(7).tolist()  # as sent to a spawned worker


def test_pixels_kept_in_memory_are_the_same(real_data: Path, tmp_path: Path) -> None:
    tree(tmp_path, "a/0.png", "b/empty.png")
    (tmp_path / "b/empty.png").write_bytes(b"")
    for path in sorted((real_data / "images").rglob("*.JPEG"))[:5]:
        (tmp_path / "a" / path.name).symlink_to(path)
    plain, cached = opened(tmp_path, image_size=128), opened(tmp_path, image_size=128, cache=True)
    for left, right in zip(
        *(train_batches(images, CONFIG, seed=0, batch_size=7, steps=2) for images in (plain, cached)), strict=True
    ):
        assert torch.equal(left.pixels, right.pixels)
        assert left.problems == right.problems
        assert [problem.reason for problem in right.problems] == ["the file is empty"]


def test_parquet_splits_come_from_names(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", {"img": cells(1, 2), "label": [0, 4]})
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", {"img": cells(3), "label": [None]})
    parquet(tmp_path / "data" / "extra_unlabelled-00000-of-00001.parquet", {"img": cells(4)})
    parquet(tmp_path / "data" / "validation_small.parquet", {"img": cells(5), "label": [1]})
    images = opened(tmp_path)
    assert reds(images) == [1, 2, 3]
    assert images.labels().tolist() == [0, 4, -1]
    assert images.classes == ("0", "1", "2", "3", "4")
    assert images.name(1) == "train row 1 (2.png)"
    assert reds(opened(tmp_path, "eval")) == [5]
    assert opened(tmp_path, split_name := "extra_unlabelled").labels() is None
    assert reds(opened(tmp_path, "train", split=split_name)) == [4]
    assert reds(opened(tmp_path / "data" / "train-*.parquet")) == [1, 2, 3]
    assert reds(opened(tmp_path / "data" / "train-00001-of-00002.parquet")) == [3]


def test_columns_are_found_or_given(tmp_path: Path) -> None:
    columns = {"name": ["x", "y"], "first": [picture(1), picture(2)], "second": [picture(3), None], "kind": ["dog", "cat"]}
    source = parquet(tmp_path / "train.parquet", columns)
    with pytest.raises(ValueError, match=r"several columns of images \(first, second\); name one with data\.image_column"):
        opened(source)
    with pytest.raises(ValueError, match=r"data\.image_column frist: no such column; did you mean 'first'\?"):
        opened(source, image_column="frist")
    with pytest.raises(ValueError, match=r"data\.label_column kin: no such column; did you mean 'kind'\?"):
        opened(source, image_column="first", label_column="kin")
    images = opened(source, image_column="first", label_column="kind")
    assert images.classes == ("cat", "dog")
    assert images.labels().tolist() == [1, 0]
    assert opened(source, image_column="first").labels() is None
    with pytest.raises(Unreadable, match="the cell is empty"):
        opened(source, image_column="second").read(1)


def test_an_empty_cell_of_bytes_does_not_read_the_file_that_it_names(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    images = opened(parquet(tmp_path / "train.parquet", {"image": [{"bytes": b"", "path": "other.png"}]}))
    with pytest.raises(Unreadable, match="the file is empty"):
        images.read(0)


def test_a_header_that_names_images_is_no_sample(tmp_path: Path) -> None:
    for name in ("a.avif", "b.jp2"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    for header in ("image,label", "img_path,class"):
        (tmp_path / "list.csv").write_text(f"{header}\na.avif,dog\nb.jp2,cat\n")
        images = opened(tmp_path / "list.csv")
        assert images.classes == ("cat", "dog")
        assert len(images) == 2
    assert len(opened(tmp_path / "*.[aj]*")) == 2  # AVIF and JPEG 2000 are found, and not only read


def test_paths_in_a_table_stay_below_its_folder(tmp_path: Path) -> None:
    tree(tmp_path, "set/in.png", "out.png")
    images = opened(parquet(tmp_path / "set" / "train.parquet", {"image": ["in.png", "../out.png"]}), image_column="image")
    assert images.read(0).shape == (20, 20, 3)
    with pytest.raises(Unreadable, match="not below its folder"):
        images.read(1)


def test_the_hubs_form_with_subsets(tmp_path: Path) -> None:
    """A folder in the Hub's layout is read by the same calls as a name on the Hub; no network is needed."""
    parquet(tmp_path / "small" / "train-00000-of-00001.parquet", {"img": cells(1, 2), "label": [0, 1]})
    parquet(tmp_path / "small" / "test-00000-of-00001.parquet", {"img": cells(3), "label": [0]})
    configs = "".join(f"- config_name: {name}\n  data_dir: small\n" for name in ("small", "other"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    source = Hub(f"{tmp_path}:small", None, None)
    assert source.splits == ("train", "test")
    table = source.table("train")
    assert len(table.column) == 2
    assert table.labels.tolist() == [0, 1]
    assert isinstance(table.column[0], bytes)
    with pytest.raises(ValueError, match=r"data\.source .*: .*[Cc]onfig name is missing"):
        Hub(str(tmp_path), None, None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "data.source is not set; give a folder"),
        ("./nowhere", "data.source ./nowhere does not exist"),
        ("/nowhere/at/all", "data.source /nowhere/at/all does not exist"),
        ("~/nowhere.parquet", "data.source ~/nowhere.parquet does not exist"),
        ("{tmp}/*.parquet", "no file matches"),
        ("{tmp}/empty", "holds no images; it is empty"),
        ("{tmp}/text", "holds no images, only 2 x .txt, 1 x .zip"),
        (
            "{tmp}/text/c.zip",
            ".zip: this kind of file is not read; give images, lists (.txt, .csv, .tsv, .list), parquet files or tars",
        ),
        ("{tmp}/text/*", ".txt, .zip: this kind of file is not read"),
        ("{tmp}/pickled.npy", "pickled.npy cannot be read: "),
        ("{tmp}/flat.npy", "flat.npy has shape (5,)"),
        ("registered:nothing", "nothing is registered under this name"),
        ("{tmp}/broken.parquet", "cannot be read: "),
        ("builtin:nothing", "no such built-in data"),
        ("nobody/nothing", "data.source nobody/nothing is not a path here, and cannot be read from the hub: "),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path: Path, source: str | None, message: str) -> None:
    (tmp_path / "empty").mkdir()
    tree(tmp_path / "text", "a.txt", "b.txt", "c.zip")
    if source and "broken" in source:
        (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(5))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_images(replace(CONFIG, source=source and source.format(tmp=tmp_path)), "train")
    assert "\n" not in str(caught.value)


def test_a_split_that_does_not_exist(tmp_path: Path) -> None:
    source = tree(tmp_path, "train/a/0.png", "val/a/1.png")
    with pytest.raises(ValueError, match=r"data\.split trian: .* no such split; did you mean 'train'\? There are: train, val"):
        open_images(replace(CONFIG, source=str(source), split="trian"), "train")
    with pytest.raises(ValueError, match=r"data\.eval_split test: .* there are: train, val"):
        open_images(replace(CONFIG, source=str(source), eval_split="test"), "eval")
    with pytest.raises(ValueError, match=r"split test: .* there are: train, val"):
        opened(source, "test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 1}, r"data\.mean has 3 values for data\.channels 1"),
        ({"std": (0.5, 0.5)}, r"data\.std has 2 values for data\.channels 3"),
        ({"std": (0.5, 0.5, 0.0)}, r"data\.std \(0\.5, 0\.5, 0\.0\) is not a list, each a number above 0"),
        ({"crop_scale": (0.0, 1.0)}, r"data\.crop_scale \(0\.0, 1\.0\) is not 2 values \(a number above 0, at most 1"),
        ({"crop_ratio": (2.0, 1.0)}, r"data\.crop_ratio 2 1: give the smaller number first"),
        ({"holdout": 1.0}, r"data\.holdout 1 is not a number from 0 to below 1"),
        ({"image_size": (224, 0)}, r"data\.image_size \(224, 0\) is not a whole number of at least 1 or 2 values"),
    ],
)
def test_values_that_make_no_sense_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **values).input()


def test_grey_16_bit_and_many_channels_reach_the_batch(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (30, 40, 5), dtype=np.uint16)
    (tmp_path / "grey").mkdir()
    Image.fromarray(wide[:, :, 0]).save(tmp_path / "grey" / "a.png")
    (tmp_path / "wide").mkdir()
    np.save(tmp_path / "wide" / "a.npy", wide)
    for name, channels in (("grey", 1), ("wide", 5)):
        values = {"channels": channels, "mean": (0.5,) * channels, "std": (0.2,) * channels, "image_size": (16, 24)}
        batch = next(train_batches(opened(tmp_path / name, **values), CONFIG, seed=0, batch_size=2, steps=1))
        assert batch.pixels.shape == (2, channels, 16, 24)
        assert not batch.problems
