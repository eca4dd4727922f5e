"""Sources at addresses that fsspec opens: the samples equal those from disk, files are read in place, and each error is one
line."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from tar_files import photographs, shards
from video_files import write

from mmm.data import ClipsConfig, Images, ImagesConfig, Unreadable, open_data, open_images, train_batches
from mmm.data.sources import addresses
from mmm.data.sources.webdataset import source as tars

CONFIG = ImagesConfig(image_size=16, workers=0, holdout=0.0)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return photographs(6)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yields an empty file system, with caches in a temporary folder and without long waits."""
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(addresses, "PAUSES", (0, 0, 0.01))
    tars._announce.cache_clear()
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


def upload(memory: Any, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            memory.pipe_file(f"/bucket/{path.relative_to(folder).as_posix()}", path.read_bytes())


def opened(source: str | Path, split: str = "train", **options: Any) -> Images:
    return open_images(replace(CONFIG, source=str(source), **options), split)


def same_batches(one: Images, two: Images, workers: int = 0) -> bool:
    batches = [train_batches(part, replace(CONFIG, workers=workers), seed=1, batch_size=4, steps=3) for part in (one, two)]
    return all(torch.equal(a.pixels, b.pixels) and torch.equal(a.keys, b.keys) for a, b in zip(*batches, strict=True))


def test_tars_are_read_in_place(memory: Any, local: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    shards(local, {"train-0.tar": 3, "train-1.tar": 2, "validation-0.tar": 1}, pictures)
    upload(memory, local)
    caplog.set_level(logging.INFO)
    disk = opened(local)
    for name in ("memory://bucket", "memory://bucket/{train-0,train-1,validation-0}.tar", "memory://bucket/*.tar"):
        part = opened(name)
        assert part.fingerprint == disk.fingerprint
        assert torch.equal(part.labels(), disk.labels())
        assert len(opened(name, "eval")) == 1
        assert same_batches(part, disk)
    assert same_batches(pickle.loads(pickle.dumps(part)), disk, workers=2)
    assert "size and checksum are compared when a process first reads a file" in caplog.text


def test_a_tar_that_changes_is_noticed(memory: Any, local: Path, pictures: list[bytes]) -> None:
    shards(local, {"train-0.tar": 3}, pictures)
    upload(memory, local)
    part = opened("memory://bucket/train-0.tar")
    shards(local, {"train-0.tar": 2}, pictures)
    upload(memory, local)
    part.table.column.files.local.checked.clear()  # simulates the start of another process
    with pytest.raises(Unreadable, match="changed after it was indexed"):
        part.raw(0)
    assert len(opened("memory://bucket/train-0.tar")) == 2


def test_folders_have_the_classes_and_splits_of_the_disk(memory: Any, local: Path, pictures: list[bytes]) -> None:
    for number, content in enumerate(pictures):
        path = local / ("train", "val")[number % 2] / ("cat", "dog")[number // 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (local / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    upload(memory, local)
    for split in ("train", "eval"):
        part, disk = opened("memory://bucket", split), opened(local, split)
        assert (part.classes, part.fingerprint) == (disk.classes, disk.fingerprint)
        assert torch.equal(part.labels(), disk.labels())
        assert [part.name(row) for row in range(len(part))] == [disk.name(row) for row in range(len(disk))]
        assert same_batches(part, disk)
    assert same_batches(opened("memory://bucket"), opened(local), workers=2)


def test_a_file_that_is_gone_is_counted(memory: Any, local: Path, pictures: list[bytes]) -> None:
    for number, content in enumerate(pictures[:3]):
        (local / f"{number}.jpg").write_bytes(content)
    upload(memory, local)
    part = opened("memory://bucket")
    memory.rm("/bucket/1.jpg")
    (batch,) = train_batches(part, CONFIG, seed=0, batch_size=6, steps=1)
    assert {(problem.name, problem.reason) for problem in batch.problems} == {("1.jpg", "FileNotFoundError: /bucket/1.jpg")}


def test_parquet_files(memory: Any, local: Path, pictures: list[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {"image": [{"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(pictures)], "label": list(range(6))}
    rows["image"][5] = {"bytes": None, "path": "/etc/passwd"}
    pyarrow.parquet.write_table(pyarrow.table(rows), local / "train-00000-of-00001.parquet")
    upload(memory, local)
    for name in ("memory://bucket", "memory://bucket/train-00000-of-00001.parquet"):
        part = opened(name)
        assert part.labels().tolist() == list(range(6))
        assert [part.raw(row) for row in range(5)] == pictures[:5]
        with pytest.raises(Unreadable, match="names the file /etc/passwd; a table at an address must hold the bytes"):
            part.raw(5)


def test_videos(memory: Any, local: Path) -> None:
    for number in range(2):
        write(local / f"{number}.mp4", count=8, size=(32, 32))
    upload(memory, local)
    config = ClipsConfig(image_size=16, frames=2, stride=1, workers=0, holdout=0.0)
    one, two = (open_data(replace(config, source=source), "train") for source in (str(local), "memory://bucket"))
    assert torch.equal(one.eval_views(torch.arange(2))[0], two.eval_views(torch.arange(2))[0])


class Buffered(AbstractBufferedFile):
    """A file that fetches ranges and reads ahead by default, like files of the Hub."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched.append((start, end))
        return self.fs.contents[self.path][start:end]


class WithoutRanges(AbstractFileSystem):
    """A file system that can only open files, like that of the Hub."""

    protocol, contents, fetched = "adl", dict[str, bytes](), list[tuple[int, int]]()

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return [{"name": name, "size": len(content), "type": "file"} for name, content in self.contents.items()]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Buffered:
        return Buffered(self, path, mode, **options)


def test_no_more_is_fetched_than_is_read(local: Path, pictures: list[bytes]) -> None:
    fsspec.register_implementation("adl", WithoutRanges, clobber=True)
    shards(local, {"train-0.tar": 6}, pictures)
    WithoutRanges.contents["bucket/train-0.tar"] = (local / "train-0.tar").read_bytes()
    part, disk = opened("adl://bucket/train-0.tar"), opened(local)
    WithoutRanges.fetched.clear()
    assert [part.raw(row) for row in range(6)] == [disk.raw(row) for row in range(6)]
    assert [end - start for start, end in WithoutRanges.fetched] == [len(picture) for picture in pictures]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://bucket/gone", r"data\.source memory://bucket/gone cannot be listed: FileNotFoundError"),
        ("memory://bucket/*.tar", r"there is no file at this address"),
        ("memory://bucket", r"only tars, parquet files and folders of images can be read from an address"),
        ("oci://bucket/a.tar", r"data\.source oci://bucket/a\.tar: ImportError: .*[Ii]nstall"),
        ("github://someone:something@/a.tar", r"addresses must begin with http, https, abfs, .* s3, "),
        ("memory://a::file:///etc/passwd", r"addresses must begin with http, https"),
        ("simplecache::s3://bucket/a.tar", r"addresses must begin with http, https"),
    ],
)
def test_what_cannot_be_read_is_one_line(memory: Any, source: str, message: str) -> None:
    memory.pipe_file("/bucket/text.txt", b"text")
    with pytest.raises(ValueError, match=message) as caught:
        opened(source)
    assert "\n" not in str(caught.value)
