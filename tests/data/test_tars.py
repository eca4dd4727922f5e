"""Tars on the local disk: their samples, the same batches as from other sources, and what is refused or counted."""

from __future__ import annotations

import gzip
import logging
import os
import pickle
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tar_files import add, photographs, shards, write_tar

from mmm.data import Images, ImagesConfig, Unreadable, open_images, train_batches
from mmm.data.sources.webdataset import index_cache as module
from mmm.data.sources.webdataset.headers import Walk
from mmm.data.sources.webdataset.resolve import expand

CONFIG = ImagesConfig(image_size=16, workers=0, holdout=0.25)
COUNTS = {"train-000000.tar": 3, "train-000001.tar": 4, "val-000000.tar": 2}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return photographs(9)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(source: object, split: str = "train", **changes: object) -> Images:
    return open_images(replace(CONFIG, source=str(source), **changes), split)  # type: ignore


def cells(part: Images) -> list[bytes]:
    return [part.raw(number) for number in range(len(part))]


def names(part: Images) -> list[str]:
    return [part.name(number) for number in range(len(part))]


def test_samples_labels_and_splits(tmp_path: Path, pictures: list[bytes]) -> None:
    root = shards(tmp_path / "set", COUNTS, pictures)
    train, held = opened(root), opened(root, "eval")
    assert cells(train) == pictures[:7]
    assert cells(held) == pictures[7:]
    assert names(train)[2:4] == ["train-000000.tar/0002.jpg", "train-000001.tar/0003.jpg"]
    assert train.labels().tolist() == [number % 3 for number in range(7)]
    assert held.labels().tolist() == [1, 2]
    assert train.classes == held.classes == ("0", "1", "2")


@pytest.mark.parametrize("source", ["set", "set/train-*.tar", "set/train-{000000..000001}.tar", "set/train-{000000,000001}.tar"])
def test_a_folder_a_glob_and_braces_name_the_same(tmp_path: Path, pictures: list[bytes], source: str) -> None:
    shards(tmp_path / "set", COUNTS, pictures)
    part = opened(tmp_path / source, holdout=0.0)
    assert cells(part) == pictures[:7]
    assert part.fingerprint == opened(tmp_path / "set" / "train-00000*.tar", holdout=0.0).fingerprint


def test_they_are_batches_like_any_other_and_workers_change_nothing(tmp_path: Path, pictures: list[bytes]) -> None:
    """Tars give the same batches as a folder of the same files, for any number of workers and any first step."""
    root = shards(tmp_path / "set", COUNTS, pictures)
    (tmp_path / "files" / "train").mkdir(parents=True)
    for number, picture in enumerate(pictures[:7]):
        (tmp_path / "files" / "train" / f"{number}.jpg").write_bytes(picture)
    config = replace(CONFIG, holdout=0.0)
    plain = train_batches(opened(tmp_path / "files", holdout=0.0), config, seed=1, batch_size=4, steps=5)
    expected = [(batch.keys, batch.pixels) for batch in plain]
    part = opened(root)
    for workers, start in ((0, 0), (2, 0), (2, 3)):
        found = train_batches(part, replace(config, workers=workers), seed=1, batch_size=4, steps=5, start_step=start)
        for batch, (keys, pixels) in zip(found, expected[start:], strict=True):
            assert torch.equal(batch.keys, keys)
            assert torch.equal(batch.pixels, pixels)
            assert not batch.problems


def test_an_index_is_made_once_and_anew_for_what_changed(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shards(tmp_path / "set", COUNTS, pictures)
    walked: list[int] = []
    make = module.make_index
    # on one core there are no worker processes, whose calls could not be recorded here
    monkeypatch.setattr("mmm.data.loading.worker_pool.os.sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(module, "make_index", lambda read, total, choice: walked.append(total) or make(read, total, choice))
    first = opened(root)
    assert len(walked) == 3
    assert opened(root).fingerprint == first.fingerprint
    assert len(walked) == 3
    write_tar(root / "train-000001.tar", {"new.jpg": pictures[8]})
    assert cells(opened(root)) == [*pictures[:3], pictures[8]]
    assert len(walked) == 4
    next((tmp_path / "cache" / "mmm" / "tars").glob("*.parquet")).write_bytes(b"torn")
    assert len(opened(root)) == 4
    assert len(walked) == 5
    with pytest.raises(Unreadable, match="changed after it was indexed"):  # another process changes the file during a run
        first.raw(3)


def test_an_index_may_take_any_time(tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    make = module.make_index
    monkeypatch.setitem(module.map_inputs.__kwdefaults__, "timeout", 0.2)
    monkeypatch.setattr("mmm.data.loading.worker_pool.POLL_INTERVAL", 0.2)
    monkeypatch.setattr("mmm.data.loading.worker_pool.os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(module, "make_index", lambda *arguments: (time.sleep(0.9), make(*arguments))[1])
    assert len(opened(shards(tmp_path / "set", COUNTS, pictures))) == 7


def test_a_tar_that_is_changed_while_it_is_read_is_noticed(tmp_path: Path, pictures: list[bytes]) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": pictures[0], "b.jpg": pictures[1]})
    part = opened(path, holdout=0.0)
    again = pickle.loads(pickle.dumps(part.table.column))  # as sent to a worker that is not forked
    assert again[1] == pictures[1]
    os.truncate(path, 1024)
    with pytest.raises(Unreadable, match="changed after"):
        part.raw(1)


def test_labels_from_json_names_and_their_absence(tmp_path: Path, pictures: list[bytes]) -> None:
    members = [(f"{n}.jpg", pictures[n]) for n in range(4)]
    notes = [("0.json", b'{"kind": "cat", "n": 2}'), ("1.json", b'{"kind": "ant", "n": 0}'), ("2.json", b"[" * 100000)]
    path = write_tar(tmp_path / "a.tar", [*members, *notes])
    assert opened(path, holdout=0.0).labels() is None
    named = opened(path, holdout=0.0, label_column="kind")
    assert (named.labels().tolist(), named.classes) == ([1, 0, -1, -1], ("ant", "cat"))
    counted = opened(path, holdout=0.0, label_column="n")
    assert (counted.labels().tolist(), counted.classes) == ([2, 0, -1, -1], ("0", "1", "2"))
    with pytest.raises(ValueError, match=r"data\.label_column other: no sample"):
        opened(path, label_column="other")
    write_tar(path, [*members, ("0.cls", b"-1")])
    with pytest.raises(ValueError, match="-1 is not a label"):
        opened(path)


def test_several_pictures_of_a_sample_need_a_name(tmp_path: Path, pictures: list[bytes]) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": pictures[0], "a.seg.png": b"other", "b.jpg": pictures[1]})
    with pytest.raises(ValueError, match=r"several images of the sample a \(jpg, seg\.png\); name one with data\.image_column"):
        opened(path)
    assert cells(opened(path, image_column="jpg", holdout=0.0)) == pictures[:2]


def test_a_hostile_tar_gives_its_honest_samples_and_opens_nothing(
    tmp_path: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(pictures[8])
    path = tmp_path / "set" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        add(tar, "../secret.jpg", pictures[1])
        add(tar, str(secret), pictures[1])
        add(tar, "link.jpg", kind=tarfile.SYMTYPE, link=str(secret))
        add(tar, "hard.jpg", kind=tarfile.LNKTYPE, link="../secret.jpg")
        add(tar, "null.jpg", kind=tarfile.CHRTYPE)
        add(tar, "pipe.jpg", kind=tarfile.FIFOTYPE)
        add(tar, "folder.jpg/", kind=tarfile.DIRTYPE)
        add(tar, "odd.jpg", pictures[1], kind=b"Z")
        add(tar, "sparse.jpg", pictures[1], kind=tarfile.GNUTYPE_SPARSE)
        for name in ("0.pkl", "0.pickle", "0.pyd", "0.pth", "._0.jpg", "none"):
            add(tar, name, b"cos\nsystem\n(S'touch canary'\ntR.")
        add(tar, "0.jpg", pictures[0])
        add(tar, "0.jpg", pictures[1])
        add(tar, "1.cls", b"0")
    with caplog.at_level(logging.WARNING):
        part = opened(path, holdout=0.0)
        assert cells(part) == pictures[:1]
    (text,) = [record.getMessage() for record in caplog.records]
    for count in (
        *("2 x names that lead out", "1 x links", "1 x hard links", "1 x devices", "1 x pipes", "1 x members of an unknown kind"),
        *("1 x sparse files", "1 x .pkl", "1 x .pickle", "1 x .pyd", "1 x .pth", "2 x hidden files"),
        *("1 x members with the name of an earlier one", "1 x samples without"),
    ):
        assert count in text, (count, text)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.tar"]


def test_of_a_cut_tar_the_whole_samples_are_used(tmp_path: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", pictures[n]) for n in range(3)])
    with tarfile.open(path) as tar:
        last = tar.getmembers()[2].offset_data
    for size, reason in (
        (last + 100, "ends in the middle of 2.jpg"),
        (last - 300, "middle of a header"),
        (last - 512, "no end mark"),
    ):
        os.truncate(path, size)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert cells(opened(path, holdout=0.0)) == pictures[:2]
        assert reason in caplog.text
        assert "the 2 images before are used" in caplog.text
    content = bytearray(path.read_bytes())
    content[3] ^= 1  # in the first header
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a tar"):
        opened(path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_the_standard_library_finds_them(tmp_path: Path, format: int) -> None:
    long = "d" * 80 + "/" + "e" * 90 + ".jpg"
    names = ["a.jpg", "dir/b.jpg", long] + ["x" * 300 + ".jpg", "ünï/ß.jpg"] * (format != tarfile.USTAR_FORMAT)
    path = write_tar(tmp_path / "a.tar", [(name, bytes(place * 400)) for place, name in enumerate(names)], format)
    content = path.read_bytes()
    walk = Walk(lambda offset, size: content[offset : offset + size], len(content))
    with tarfile.open(path) as tar:
        assert [tuple(one) for one in walk] == [(one.name.encode(), one.offset_data, one.size) for one in tar]
    assert walk.damage is None


@pytest.mark.parametrize(
    ("pax", "reason"),
    [
        ({"size": "-5"}, "an invalid number"),
        ({"size": "9" * 30}, "an invalid number"),
        ({"size": str(1 << 60)}, "ends in the middle of"),
        ({"comment": "x" * (2 << 20)}, "a name of"),
    ],
)
def test_headers_that_ask_for_too_much_end_the_walk(pax: dict[str, str], reason: str) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.size = 10
    member.pax_headers = pax
    content = member.tobuf(tarfile.PAX_FORMAT) + bytes(4096)
    walk = Walk(lambda offset, size: content[offset : offset + size], len(content))
    assert list(walk) == []
    assert reason in str(walk.damage)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.tar.gz", "is compressed.*unpack it once with gunzip"),
        ("set-{0..3}.tar", "set-1.tar is not a file here, nor are 2 others"),
        ("gone.tar", "gone.tar is not a file here"),
        ("fifo.tar", "fifo.tar is not a file here"),
        ("set-{3..0}.tar", "stands for 0 names"),
        ("set-{0..99999999}.tar", "give at most"),
        ("words.tar", "hold no images, only 1 x .pkl"),
    ],
)
def test_what_is_no_tar_is_one_line(tmp_path: Path, pictures: list[bytes], source: str, message: str) -> None:
    write_tar(tmp_path / "set-0.tar", {"0.jpg": pictures[0]})
    write_tar(tmp_path / "words.tar", {"0.pkl": b"cos"})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "set-0.tar").read_bytes()))
    os.mkfifo(tmp_path / "fifo.tar")
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / source)


@pytest.mark.parametrize("source", ["pipe:cat a.tar", "file:///etc/passwd", "file:a.tar", "ftp://host/a.tar"])
def test_only_known_protocols_are_opened_beside_paths(source: str) -> None:
    with pytest.raises(ValueError, match="addresses must begin with http, https, abfs, .*; give a path without"):
        opened(source)


def test_a_tar_beside_pictures_is_no_source(tmp_path: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "set" / "all.tar", {"0.jpg": pictures[0]})
    (tmp_path / "set" / "1.jpg").write_bytes(pictures[1])
    assert names(opened(tmp_path / "set", holdout=0.0)) == ["1.jpg"]
    assert "left out: 1 x .tar" in caplog.text


def test_braces() -> None:
    assert expand("a") == ["a"]
    assert expand("{08..10}{x,y}") == ["08x", "08y", "09x", "09y", "10x", "10y"]
    assert expand("{8..10}") == ["8", "9", "10"]


def test_real_photographs_and_films(tmp_path: Path, real_data: Path) -> None:
    from mmm.data import ClipsConfig, open_data

    files = sorted((real_data / "images").rglob("*.JPEG"))[:6]
    path = write_tar(tmp_path / "a.tar", {file.name: file.read_bytes() for file in files})
    part = opened(path, holdout=0.0)
    views, failed = part.eval_views(torch.arange(6))
    assert not failed
    assert torch.equal(views, opened_files(tmp_path, files).eval_views(torch.arange(6))[0])
    clip = real_data / "clips" / "test.mp4"
    videos = write_tar(tmp_path / "b.tar", {"a.mp4": clip.read_bytes(), "b.mp4": b"nothing"})
    config = ClipsConfig(source=str(videos), image_size=16, frames=2, holdout=0.0, workers=0)
    clips, failed = open_data(config, "train").eval_views(torch.arange(2))
    assert clips.shape == (2, 3, 2, 16, 16)
    assert list(failed) == [1]


def opened_files(root: Path, files: list[Path]) -> Images:
    for file in files:
        (root / "copies").mkdir(exist_ok=True)
        (root / "copies" / file.name).write_bytes(file.read_bytes())
    return opened(root / "copies", holdout=0.0)
