"""Workers that hang, crash or are killed: the run continues, and the sample that caused it counts as unreadable."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from video_files import write

from mmm.data import Batch, Clips, ClipsConfig, eval_batches, open_data, train_batches
from mmm.data.datasets import windows
from mmm.data.decode.video import BACKENDS, Video
from mmm.data.decode.video.reader import Source
from mmm.data.loading import scan, worker_pool
from tasks import prepare_video

CONFIG = ClipsConfig(image_size=16, frames=2, stride=1, workers=2, holdout=0.0, max_bad=1.0, deadline=0.7)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the backends below reach the workers by a fork")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    video = write(root / "0.mp4", count=6, size=(24, 32)).read_bytes()
    for i in range(1, 9):
        (root / f"{i}.mp4").write_bytes(video)
    return root


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "POLL_INTERVAL", 0.2)


def hang() -> None:
    """Sleeps in C while holding the GIL, like a decoder that never returns."""
    ctypes.PyDLL(None).sleep(1000)


def crash() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def fail() -> None:
    raise OSError("an ordinary error")


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Callable[[], None]]], None]:
    """Returns a function that replaces the decoder of some files."""
    plain = BACKENDS["av"]

    def set_up(traps: dict[str, Callable[[], None]]) -> None:
        def opener(source: Source) -> Video:
            assert isinstance(source, Path)
            traps.get(source.name, lambda: None)()
            return plain(source)

        monkeypatch.setitem(BACKENDS, "av", opener)

    return set_up


def opened(tree: Path, config: ClipsConfig = CONFIG) -> Clips:
    clips = open_data(replace(config, source=str(tree)), "train")
    assert isinstance(clips, Clips)
    return clips


def reasons(batches: list[Batch]) -> dict[str, str]:
    return {problem.name: problem.reason for batch in batches for problem in batch.problems}


def test_a_hanging_and_a_crashing_decoder_cost_their_samples_only(tree: Path, trap: Any) -> None:
    trap({"3.mp4": fail, "5.mp4": fail})
    expected = list(train_batches(opened(tree), replace(CONFIG, workers=0), seed=1, batch_size=3, steps=6))
    trap({"3.mp4": hang, "5.mp4": crash})
    start = time.monotonic()
    found = list(train_batches(opened(tree), CONFIG, seed=1, batch_size=3, steps=6))
    assert time.monotonic() - start < 15
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.index, other.index)
        assert [problem[:2] for problem in one.problems] == [problem[:2] for problem in other.problems]
    assert reasons(found) == {
        "3.mp4": "reading it took more than 0.7 s",
        "5.mp4": "reading it crashed the process (SIGSEGV)",
    }
    assert not multiprocessing.active_children()


def test_evaluation_goes_on_without_the_sample(tree: Path, trap: Any) -> None:
    trap({"4.mp4": hang})
    batches = list(eval_batches(opened(tree), CONFIG, batch_size=2))
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert list(reasons(batches)) == ["4.mp4"]


def test_a_worker_that_others_kill_costs_nothing(tree: Path) -> None:
    """A worker is killed as the kernel kills it when memory is short."""
    clips = opened(tree)
    expected = list(train_batches(clips, replace(CONFIG, workers=0), seed=1, batch_size=3, steps=6))
    found = []
    for step, batch in enumerate(train_batches(clips, CONFIG, seed=1, batch_size=3, steps=6)):
        found.append(batch)
        if step == 1:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(expected, found, strict=True))
    assert reasons(found) == {}


def test_a_worker_that_dies_before_it_is_known_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies once, between its start and the first check of the processes."""
    plain, looks = multiprocessing.active_children, []

    def look() -> list[Any]:
        looks.append(plain())
        if len(looks) == 2:  # the first call is before the start
            died = looks[1][0]
            os.kill(died.pid, signal.SIGKILL)
            died.join()
        return plain()

    monkeypatch.setattr(worker_pool.multiprocessing, "active_children", look)
    assert list(worker_pool.load(Slow(), numbers(4), 2)) == [[0], [1], [2], [3]]
    assert len(looks) == 4  # two more calls by the new worker pool


class Deadly(Dataset[Any]):
    def __getitems__(self, request: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Dataset[Any]):
    def __getitems__(self, request: Any) -> Any:
        time.sleep(0.5)
        return request


class Wrong(Dataset[Any]):
    def __getitems__(self, request: Any) -> Any:
        raise RuntimeError("a bug of ours")


def numbers(count: int) -> Callable[[], Iterator[list[int]]]:
    return lambda: ([i] for i in range(count))


def test_workers_that_always_die_end_the_run_with_a_clear_message() -> None:
    with pytest.raises(ValueError, match=r"killed 3 times \(SIGKILL.*lower data.workers"):
        list(worker_pool.load(Deadly(), numbers(4), 1))


def test_a_batch_that_takes_longer_than_a_glance_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks torch itself: its loader can be called again after a timeout, which raises this message."""
    assert list(worker_pool.load(Slow(), numbers(3), 1, timeout=None)) == [[0], [1], [2]]
    with pytest.raises(RuntimeError, match="timed out"):
        list(worker_pool.load(Slow(), numbers(3), 1, timeout=0.2))


@pytest.mark.parametrize("job", ["scan", "windows", "prepare_video"])
def test_an_input_may_take_as_long_as_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """The time after which a run ends is added to the deadline of an input."""
    monkeypatch.setitem(scan.map_inputs.__kwdefaults__, "timeout", 0.2)
    for module in (scan, windows, prepare_video):
        monkeypatch.setattr(module, "TIMEOUT", 0.2)
    plain = Clips.raw
    monkeypatch.setattr(Clips, "raw", lambda clips, index: (time.sleep(0.9), plain(clips, index))[1])
    write(tmp_path / "in.mp4", count=6, size=(24, 32))
    clips = opened(tmp_path / "in.mp4", replace(CONFIG, workers=1, deadline=30.0))
    if job == "scan":
        assert scan.scan(clips, workers=1)["unreadable"] == 0
    elif job == "windows":
        assert len(windows.open_windows(clips, 9.0)) == 1
    else:
        config = prepare_video.Config(source=str(tmp_path / "in.mp4"), out=str(tmp_path / "out"), workers=1, deadline=30.0)
        assert prepare_video.run(config)["splits"]["train"]["encoded"] == 1


def test_errors_of_our_own_are_not_taken_for_a_death() -> None:
    with pytest.raises(RuntimeError, match="a bug of ours"):
        list(worker_pool.load(Wrong(), numbers(3), 1))


def test_the_deaths_of_workers_are_nobody_elses_business(tree: Path) -> None:
    """torch would leave a signal handler that raises in the main thread."""
    before = signal.getsignal(signal.SIGCHLD)
    next(train_batches(opened(tree), CONFIG, seed=1, batch_size=3, steps=6))
    assert signal.getsignal(signal.SIGCHLD) == before
