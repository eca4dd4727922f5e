"""If a process is killed, stopped or raises an error, the others end in time and report its rank and step, and the run can resume.

Run as a script, this file tests several failures at once, each in separate processes.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import ends, fork_ranks, watch
from test_loop import CONFIG, Plain, lines, loss_of, train

from mmm.train.watchdog.failure import Heartbeat, find_lost_process, find_unresponsive_process
from mmm.train.watchdog.heartbeat import INTERVAL, Heartbeats

TIMEOUT = 4.0
SHORT = replace(CONFIG, timeout=TIMEOUT, save_every=4)
FEW = [("killed", 0, 2), ("stopped", 1, 2), ("raising", 1, 2)]
MANY = [(kind, rank, count) for kind in ("killed", "stopped", "raising") for rank, count in ((0, 2), (1, 2), (0, 4), (2, 4))]
STRICT = replace(SHORT, strict=True, micro_batch_size=1)  # a resume on more than two processes is exact only if strict

Way = tuple[str, int, int]  # the failure, the rank that fails, and the number of ranks


def name(way: Way) -> str:
    return "{}_{}_of_{}".format(*way)


def step_of(way: Way) -> int:
    return random.Random(name(way)).randrange(5, 11)


def test_who_is_to_blame() -> None:
    """A failed rank is named before a silent one, and a silent one before one that does not answer."""
    runs, failed = Heartbeat(9, 17, "running"), Heartbeat(9, 16, "failed", "ValueError: no")
    cut = Heartbeat(9, 18, "lost_collective", "RuntimeError: closed")
    assert find_lost_process([runs, runs], [0.1, 59.0], 60.0) is None
    gone = find_lost_process([runs, runs], [0.1, 61.0], 60.0)
    assert gone is not None
    assert (gone.rank, gone.message) == (1, "rank 1 is gone: no heartbeat for 61 s, last at step 17")
    missed = find_lost_process([cut, runs, runs], [0.1, 0.2, 3.4], 3.0)
    assert missed is not None
    assert missed.message == "rank 2 is gone: no heartbeat for 3 s, last at step 17; rank 0 missed it at step 18"
    first = find_lost_process([cut, runs, failed], [0.1, 9.0, 0.2], 3.0)
    assert first is not None
    assert (first.rank, first.message) == (2, "rank 2 ended with an error at step 16: ValueError: no")
    # a process that has not started, or has ended, is not reported as lost
    for ended in (Heartbeat(), Heartbeat(9, 17, "done"), cut, Heartbeat(9, 17, "notified")):
        assert find_lost_process([cut, ended], [0.0, 1000.0], 3.0) is None
    assert find_unresponsive_process([cut, runs], 1.0, 60.0) is None
    slow = find_unresponsive_process([cut, runs], 5.0, 60.0)
    assert slow is not None
    assert (slow.rank, slow.message) == (1, "rank 1 is running but has not responded for 60 s, at step 17")
    nobody = find_unresponsive_process([cut, cut], 5.0, 60.0)
    assert nobody is not None
    assert (nobody.rank, nobody.message) == (None, "the processes lost each other, rank 0 at step 18: RuntimeError: closed")


def test_nothing_of_it_outlives_the_training() -> None:
    """A heartbeat thread that still runs torch's C++ code when Python exits would abort the process."""
    alone = SimpleNamespace(accelerator=SimpleNamespace(process_index=0, num_processes=1), step=0)

    class Slow(Heartbeats):
        def _start(self) -> bool:
            self._thread.start()
            return True

        def _exchange(self, own: Heartbeat) -> None:
            time.sleep(0.2)

    heartbeats = Slow(alone, 1.0)  # type: ignore[arg-type]
    heartbeats.close()
    assert not any(thread.name == "mmm heartbeats" for thread in threading.enumerate())


def test_one_rank_goes(tmp_path: Path) -> None:
    try_and_check(tmp_path, "few", FEW)


@pytest.mark.slow
def test_each_rank_goes(tmp_path: Path) -> None:
    try_and_check(tmp_path, "many", MANY)


def try_and_check(folder: Path, which: str, ways: list[Way]) -> None:
    code, output = watch([sys.executable, __file__, str(folder), which])
    assert code == 0, output
    found = json.loads((folder / "found.json").read_text())
    for way in ways:
        check(way, found[name(way)], (folder / f"{name(way)}.log").read_text())
        whole = folder / f"whole_{way[2]}"
        assert lines(folder / name(way)) == lines(whole)
        for file in ("model", "optimizer", "ema"):
            a, b = (run / f"checkpoints/step_00000012/{file}.safetensors" for run in (folder / name(way), whole))
            assert a.read_bytes() == b.read_bytes()


def check(way: Way, found: dict[str, Any], said: str) -> None:
    kind, rank, count = way
    assert found["codes"] == [1] * (count - 1), (way, found, said)  # the others ended by themselves
    assert found["seconds"] < (TIMEOUT + 5 if kind == "stopped" else 10), (way, found, said)
    assert found["own"] == (-signal.SIGKILL if kind == "killed" else 1), (way, found, said)
    about = [line for line in said.splitlines() if line.startswith("said by") and f": rank {rank} " in line]
    about = [line for line in about if not line.startswith(f"said by rank {rank}:")]
    assert len(about) == 1 or (rank == 0 and len(about) == count - 1), said
    step = step_of(way)
    if kind == "raising":
        assert f"rank {rank} ended with an error at step {step}: RuntimeError: on fire, says ***. The run" in about[0]
    else:
        assert f"rank {rank} is gone: no heartbeat for " in about[0]
        # the other rank waited for it in that step, or had not reached that step at the timeout
        assert re.search(rf"missed it at step {step}\.|last at step ({step - 1}|{step})\.", about[0]), about[0]
    assert not any("Traceback" in line for line in said.splitlines()) or kind == "raising", said


# --- the script -------------------------------------------------------------------------------------------------------------


def harmful(way: Way, mark: Path, model: Any, batch: Any, now: int) -> Any:
    """Returns the loss. At one step of one rank, it first kills or stops its own process, or raises an error."""
    kind, rank, _ = way
    time.sleep(0.05)
    if now == step_of(way) and int(os.environ["RANK"]) == rank:
        time.sleep(0 if kind == "raising" else 3 * INTERVAL)  # until the others have received a heartbeat of this step
        mark.touch()
        if kind == "raising":
            raise RuntimeError("on fire, says hf_0123456789abcdef\nand more")
        os.kill(os.getpid(), signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
    return loss_of(model, batch, now)


def train_on(folder: Path, count: int, **choices: Any) -> None:
    torch.set_num_threads(1)
    train(folder, SHORT if count == 2 else STRICT, net=Plain, **choices)


def try_all(folder: Path, ways: list[Way]) -> dict[str, Any]:
    """Causes the failure of each run, waits for its end, and resumes it."""
    begun = {}
    for way in ways:
        work = partial(train_on, folder / name(way), way[2], loss=partial(harmful, way, folder / f"{name(way)}.at"))
        begun[way] = fork_ranks(way[2], work, folder / f"{name(way)}.log")
    found = see(folder, begun)
    rest = []
    for count in {way[2] for way in ways}:
        rest += fork_ranks(count, partial(train_on, folder / f"whole_{count}", count), folder / "rest.log")
    for way in ways:
        rest += fork_ranks(way[2], partial(train_on, folder / name(way), way[2], resume=True), folder / "rest.log")
    codes = ends(rest, 90)
    assert [codes.get(pid) for pid in rest] == [0] * len(rest), (folder / "rest.log").read_text()
    return found


def see(folder: Path, begun: dict[Way, list[int]]) -> dict[str, Any]:
    """Returns exit codes, and the seconds until the other processes ended. A process that still runs after a minute has none."""
    codes: dict[int, int] = {}
    seconds: dict[int, float] = {}
    end = time.monotonic() + 60
    while time.monotonic() < end and len(codes) < sum(map(len, begun.values())):
        for way, pids in begun.items():
            mark = folder / f"{name(way)}.at"
            fresh = ends([pid for pid in pids if pid not in codes], 0)
            codes |= fresh
            seconds |= {pid: time.time() - mark.stat().st_mtime for pid in fresh if mark.exists()}
            own = pids[way[1]]
            if way[0] == "stopped" and own not in codes and all(pid in codes for pid in pids if pid != own):
                os.kill(own, signal.SIGCONT)
        time.sleep(0.02)
    found = {}
    for way, pids in begun.items():
        others = [pid for pid in pids if pid != pids[way[1]]]
        longest = max((seconds.get(pid, 60.0) for pid in others), default=60.0)
        found[name(way)] = {"codes": [codes.get(pid) for pid in others], "own": codes.get(pids[way[1]]), "seconds": longest}
    return found


if __name__ == "__main__":
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps(try_all(Path(sys.argv[1]), FEW if sys.argv[2] == "few" else MANY)))
