"""Every kind of malformed input is decoded correctly or refused with its reason, and reported once by any number of processes."""

from __future__ import annotations

import ctypes
import gc
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from malformed import IMAGES, TOLERANCE, Case, Kind, Pixels, photograph, png
from malformed import encoded as as_file
from malformed_videos import VIDEOS
from PIL import Image

from mmm.data import BadInputs, Batch, Images, ImagesConfig, eval_batches, open_data, train_batches
from mmm.data.datasets import images
from mmm.data.decode.image import decode_image
from mmm.data.decode.video.info import inspect
from mmm.data.decode.video.reader import read_clip
from mmm.data.errors import Unreadable
from mmm.data.loading import worker_pool
from mmm.data.loading.scan import scan
from mmm.data.sources.folder import printable

CONFIG = ImagesConfig(image_size=8, workers=0, holdout=0.0, max_bad=1.0)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is changed here reaches the workers by a fork")
BOMBS = [(kinds, name) for kinds in (IMAGES, VIDEOS) for name in kinds if name.startswith("bomb")]


def check(case: Case, path: Path, read: Callable[[Path], Pixels]) -> None:
    """Compares what `read` returns or raises for a file with what the case expects."""
    case.write(path)
    if case.reason is not None:
        with pytest.raises(Unreadable, match=case.reason) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert str(path.parent) not in str(caught.value)
        assert "0x7" not in str(caught.value)
        return
    pixels = read(path)
    assert case.pixels is not None
    assert pixels.shape == case.pixels.shape
    assert np.abs(pixels.astype(float) - case.pixels).mean() <= TOLERANCE


@pytest.mark.parametrize("name", IMAGES)
def test_an_image(name: str, tmp_path: Path) -> None:
    if name == "jpeg_ycck":
        pytest.importorskip("simplejpeg")
    for seed in (0, 1):
        case = IMAGES[name](seed)
        check(case, tmp_path / case.name, lambda path: decode_image(path, 3))


def read_all(path: Path) -> Pixels:
    inspect(path)
    return read_clip(path)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video(name: str, tmp_path: Path) -> None:
    case = VIDEOS[name](0)
    check(case, tmp_path / case.name, read_all)


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Returns the CPU seconds and MiB of memory that a call takes in a separate process."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            work()
        except Unreadable:
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(start, f"{time.process_time() - before} {(after - memory) / 1024}".encode())
        os._exit(0)
    os.close(start)
    os.waitpid(child, 0)
    with os.fdopen(end) as file:
        seconds, memory = map(float, file.read().split())
    return seconds, memory


@LINUX
@pytest.mark.parametrize(("kinds", "name"), BOMBS, ids=[name for _, name in BOMBS])
def test_a_bomb_costs_neither_time_nor_memory(kinds: dict[str, Kind], name: str, tmp_path: Path) -> None:
    case = kinds[name](0)
    case.write(tmp_path / case.name)
    read: Callable[..., Any] = read_clip if kinds is VIDEOS else decode_image
    rest = () if kinds is VIDEOS else (3,)
    good = kinds["png_called_jpg" if kinds is IMAGES else "one_frame"](0)
    good.write(tmp_path / "good")
    read(tmp_path / "good", *rest)  # excludes one-time work of the libraries from the measurement
    seconds, memory = cost(lambda: read(tmp_path / case.name, *rest))
    assert seconds < 0.05
    assert memory < 50


def tree(folder: Path, kinds: list[str], good: int) -> dict[str, str]:
    """Writes good images and one image of each kind; returns the names of the unreadable ones and patterns of the reasons."""
    folder.mkdir()
    bad = {}
    for number in range(good):
        (folder / f"good {number}.png").write_bytes(as_file(photograph(number, 12, 12), "PNG"))
    for number, name in enumerate(kinds):
        case = IMAGES[name](number)
        case.write(folder / case.name)
        if case.reason is not None:
            bad[printable(case.name)] = case.reason
    return bad


KINDS = [name for name in IMAGES if name not in ("jpeg_ycck", "bomb_png")]


def one_epoch(samples: Images, path: Path, world: int, batch: int = 12) -> bytes:
    """Returns the report of one epoch on `world` processes, gathered every two steps."""
    steps = -(-len(samples) // batch)
    bad = BadInputs(path, len(samples), 1.0)
    loaders = [
        train_batches(samples, samples.config, seed=3, batch_size=batch // world, steps=steps, world=world, rank=rank)
        for rank in range(world)
    ]
    found = []
    for step, batches in enumerate(zip(*loaders, strict=True)):
        found += [problem for part in batches for problem in part.problems]
        if step % 2 or step == steps - 1:
            bad.add(found)
            found = []
    return path.read_bytes()


def test_the_report_names_each_bad_file_once_on_any_number_of_processes(tmp_path: Path) -> None:
    expected = tree(tmp_path / "tree", KINDS, 80)
    samples = open_data(replace(CONFIG, source=str(tmp_path / "tree")), "train")
    assert isinstance(samples, Images)
    reports = [one_epoch(samples, tmp_path / f"{world}.jsonl", world) for world in (1, 2, 4)]
    assert reports[0] == reports[1] == reports[2]
    found = [(problem.name, problem.reason) for problem in BadInputs(tmp_path / "1.jsonl", 1, 1.0).found.values()]
    assert len(found) == len(reports[0].splitlines()) == len(expected)
    assert dict(found).keys() == expected.keys()
    assert all(re.search(expected[name], reason) for name, reason in found)
    scanned = {file["name"]: file["reason"] for file in scan(samples, workers=0)["files"]}
    assert scanned == dict(found)
    scored = list(eval_batches(samples, samples.config, batch_size=16))
    assert {problem.name: problem.reason for batch in scored for problem in batch.problems} == dict(found)
    kept = torch.cat([batch.index for batch in scored]).tolist()
    assert sorted(kept + [problem.index for batch in scored for problem in batch.problems]) == list(range(len(samples)))


def small_tree(folder: Path, count: int = 9) -> Images:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(as_file(photograph(number, 12, 12), "PNG"))
    samples = open_data(replace(CONFIG, source=str(folder)), "train")
    assert isinstance(samples, Images)
    return samples


def problems(batches: list[Batch]) -> dict[str, str]:
    return {problem.name: problem.reason for batch in batches for problem in batch.problems}


def test_files_that_go_or_change_after_they_were_listed(tmp_path: Path) -> None:
    samples = small_tree(tmp_path / "tree")
    (tmp_path / "tree" / "3.png").unlink()
    (tmp_path / "tree" / "5.png").unlink()
    (tmp_path / "tree" / "5.png").mkdir()
    shutil.copy(tmp_path / "tree" / "1.png", tmp_path / "tree" / "7.png")
    assert problems(list(eval_batches(samples, CONFIG, batch_size=4))) == {"3.png": "there is no such file", "5.png": "is a folder"}
    np.testing.assert_array_equal(samples.read(7), photograph(1, 12, 12))


def test_a_file_that_may_not_be_read() -> None:
    super_user = hasattr(os, "geteuid") and os.geteuid() == 0  # permissions do not stop the superuser
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "secret.png"
        path.write_bytes(as_file(photograph(0), "PNG"))
        path.chmod(0)
        try:
            if super_user:
                os.seteuid(65534)
            with pytest.raises(Unreadable, match="^permission denied$"):
                decode_image(path, 3)
        finally:
            if super_user:
                os.seteuid(0)


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tree(tmp_path / "tree")
    (tmp_path / "tree" / "closed").mkdir()
    plain = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="closed cannot be listed: Permission denied"):
        open_data(replace(CONFIG, source=str(tmp_path / "tree")), "train")


def spin() -> None:
    """Sleeps in C while holding the GIL, like a decoder that never returns."""
    ctypes.PyDLL(None).sleep(1000)


@LINUX
def test_an_image_decoder_that_hangs_costs_its_sample_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = small_tree(tmp_path / "tree")
    config = replace(samples.config, workers=2, deadline=0.6)
    samples.config = config
    monkeypatch.setattr(worker_pool, "POLL_INTERVAL", 0.2)
    plain = images.decode_image

    def trap(act: Callable[[], None]) -> Callable[..., Pixels]:
        def decode(source: Any, *rest: Any) -> Pixels:
            if Path(source).name == "4.png":
                act()
            return plain(source, *rest)

        return decode

    def refuse() -> None:
        raise Unreadable("an ordinary reason")

    monkeypatch.setattr(images, "decode_image", trap(refuse))
    expected = list(train_batches(samples, replace(config, workers=0), seed=1, batch_size=3, steps=6))
    monkeypatch.setattr(images, "decode_image", trap(spin))
    start = time.monotonic()
    found = list(train_batches(samples, config, seed=1, batch_size=3, steps=6))
    assert time.monotonic() - start < 15
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(expected, found, strict=True))
    assert problems(found) == {"4.png": "reading it took more than 0.6 s"}
    assert not multiprocessing.active_children()


@LINUX
def test_workers_that_are_killed_again_and_again_change_nothing_and_leave_nothing(tmp_path: Path) -> None:
    samples = small_tree(tmp_path / "tree")
    config = replace(samples.config, workers=2)
    expected = list(train_batches(samples, CONFIG, seed=1, batch_size=3, steps=12))
    handles = set(os.listdir("/proc/self/fd"))
    shared = set(os.listdir("/dev/shm"))
    found, pids = [], set[int]()
    for step, batch in enumerate(train_batches(samples, config, seed=1, batch_size=3, steps=12)):
        found.append(batch)
        pids |= {child.pid or 0 for child in multiprocessing.active_children()}
        if step % 4 == 1:
            victim = multiprocessing.active_children()[step // 4 % 2].pid or 0
            os.kill(victim, signal.SIGKILL)
            Path(f"/dev/shm/torch_{victim}_1_1").touch()  # as if it was killed after it created shared memory
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(expected, found, strict=True))
    assert problems(found) == {}
    del found, batch
    assert not multiprocessing.active_children()
    gc.collect()  # torch's loader is in a reference cycle
    assert len(os.listdir("/proc/self/fd")) <= len(handles) + 2
    ours = {str(pid) for pid in (os.getpid(), *pids)}  # other tests run at the same time
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if ours & set(name.split("_"))}


def test_pngs_by_hand_are_as_pillow_has_them() -> None:
    """Checks `png` itself: an intact file must decode to its pixels."""
    pixels = photograph(0)
    data = png(*pixels.shape[:2], b"".join(b"\0" + row.tobytes() for row in pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
