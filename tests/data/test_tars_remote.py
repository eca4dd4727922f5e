"""Tars at an address, from a server in a thread: the batches equal those from disk, even when connections fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from tar_files import TarServer, photographs, serving, shards, write_tar

from mmm.data import Images, ImagesConfig, Unreadable, open_images, train_batches
from mmm.data.sources import addresses
from mmm.data.sources.webdataset import index_cache as tar_cache
from mmm.data.sources.webdataset import source as tars
from mmm.data.sources.webdataset.index_cache import FAR, LONG, SHORT, ReadAhead

CONFIG = ImagesConfig(image_size=16, workers=0, holdout=0.0)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return photographs(9)


@pytest.fixture(autouse=True)
def _own_cache_and_short_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(addresses, "PAUSES", (0, 0, 0.01, 0.01))
    monkeypatch.setattr(tar_cache, "WORKERS", 1)  # indexes tars in this process
    tars._announce.cache_clear()


@pytest.fixture
def server(tmp_path: Path, pictures: list[bytes]) -> Iterator[TarServer]:
    shards(tmp_path / "set", {"train-0.tar": 3, "train-1.tar": 4, "validation-0.tar": 2}, pictures)
    with serving(tmp_path / "set") as server:
        yield server


def opened(source: str | Path, split: str = "train") -> Images:
    return open_images(replace(CONFIG, source=str(source)), split)


def keys_and_pixels(part: Images, *, workers: int = 0, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    config = replace(CONFIG, workers=workers)
    found = []
    for batch in train_batches(part, config, seed=1, batch_size=4, steps=4, start_step=start):
        assert not batch.problems
        found.append((batch.keys, batch.pixels))
    return found


def same(one: list[tuple[torch.Tensor, torch.Tensor]], two: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, chain(*one), chain(*two)))


def test_batches_labels_splits_and_resumes_are_those_of_the_disk(
    server: TarServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = opened(tmp_path / "set")
    with caplog.at_level(logging.INFO):
        part = opened(f"{server.address}/train-{{0..1}}.tar")
        held = opened(f"{server.address}/{{train-0,validation-0}}.tar", "eval")
    assert part.fingerprint == disk.fingerprint
    assert torch.equal(part.labels(), disk.labels())
    assert [held.raw(n) for n in range(2)] == [opened(tmp_path / "set", "eval").raw(n) for n in range(2)]
    expected = keys_and_pixels(disk)
    assert same(keys_and_pixels(part), expected)
    assert same(keys_and_pixels(part, workers=2, start=1), expected[1:])
    said = [record.getMessage() for record in caplog.records if "over the network" in record.getMessage()]
    assert len(said) == 2  # one for each of the two sources that were named
    assert "order, crops, masks, resume and process counts are exact only as long as these files do not change" in said[0]


def test_an_index_is_fetched_once_and_a_batch_is_a_request_a_sample(server: TarServer) -> None:
    opened(f"{server.address}/train-0.tar")
    walk = len(server.ranges)
    server.ranges.clear()
    part = opened(f"{server.address}/train-0.tar")
    assert [asked for _, asked in server.ranges] == ["bytes=0-0"]  # checks whether the file has changed
    server.ranges.clear()
    part.train_views(torch.tensor([2, 0]), torch.tensor([1, 2]))
    assert len(server.ranges) == 2
    assert walk <= 3  # a small tar takes few requests


def test_broken_connections_are_tried_again(server: TarServer, tmp_path: Path) -> None:
    part = opened(f"{server.address}/train-{{0..1}}.tar")
    expected = keys_and_pixels(opened(tmp_path / "set"))
    server.drop, server.busy = 2, 1
    assert same(keys_and_pixels(part), expected)
    assert (server.drop, server.busy) == (0, 0)


def test_what_does_not_come_is_counted_and_replaced(server: TarServer) -> None:
    part = opened(f"{server.address}/train-{{0..1}}.tar")
    lost = server.root / "train-0.tar"
    lost.rename(server.root / "away")
    (batch,) = train_batches(part, CONFIG, seed=1, batch_size=7, steps=1)
    assert {problem.name for problem in batch.problems} == {f"train-0.tar/000{n}.jpg" for n in range(3)}
    assert {problem.reason for problem in batch.problems} == {"HTTP 404 Not Found"}
    assert min(batch.index.tolist()) >= 3
    server.busy = 100
    with pytest.raises(Unreadable, match="did not arrive in 4 tries; the last error was OSError: HTTP 503"):
        part.raw(4)


def test_a_tar_that_changes_is_noticed_and_indexed_anew(server: TarServer, pictures: list[bytes]) -> None:
    part = opened(f"{server.address}/train-0.tar")
    write_tar(server.root / "train-0.tar", {"a.jpg": pictures[5]})
    with pytest.raises(Unreadable, match="changed after it was indexed"):
        part.raw(0)
    assert opened(f"{server.address}/train-0.tar").raw(0) == pictures[5]


def test_addresses_may_lead_on_but_not_to_files(server: TarServer) -> None:
    server.moved["/a.tar"] = "/train-0.tar"
    server.moved["/b.tar"] = "file:///etc/passwd"
    server.moved["/c.tar"] = "/c.tar"
    assert opened(f"{server.address}/a.tar").raw(1) == opened(server.root / "train-0.tar").raw(1)
    with pytest.raises(ValueError, match="redirects to the protocol file"):
        opened(f"{server.address}/b.tar")
    with pytest.raises(ValueError, match="more than 5 times"):
        opened(f"{server.address}/c.tar")


def test_a_server_without_ranges_and_an_address_without_a_tar_are_one_line(server: TarServer) -> None:
    with pytest.raises(ValueError, match=r"gone\.tar: HTTP 404"):
        opened(f"{server.address}/gone.tar")
    with pytest.raises(ValueError, match=r"which end in \.tar"):
        opened(f"{server.address}/")
    server.plain = True
    with pytest.raises(ValueError, match="does not answer byte ranges; download the tars"):
        opened(f"{server.address}/train-0.tar")


def test_an_index_is_read_in_few_and_short_requests() -> None:
    asked = list[tuple[int, int]]()
    read = ReadAhead(lambda offset, size: asked.append((offset, size)) or bytes(size))
    for place in range(0, LONG, 1000):  # small members
        assert len(read(place, 512)) == 512
    assert asked == [(0, LONG), (LONG - LONG % 1000, LONG)]
    asked.clear()
    read(60_000_000, 512)
    read(60_000_000 + SHORT + FAR + 1, 512)
    read(60_000_000 + SHORT + FAR + 1 + 512, 512)
    assert asked == [(60_000_000, SHORT), (60_000_000 + SHORT + FAR + 1, SHORT)]
