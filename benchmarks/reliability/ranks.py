"""R11: tests runs in which one process is killed, is stopped, raises an exception, or computes NaN, at a random step. The other
processes also end, and report its rank and the step; the same command continues to bit-identical results. No process remains.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.reliability.harness import Sabotage, Started, side_by_side, start
from benchmarks.reliability.runs import STEPS, Variant, config_of, finish, make_data, whole
from mmm.objectives.masked import MaskedObjective

COUNT, QUICK = 2, 1  # trials of each kind of failure on each rank
PROCESSES = 2
KINDS = ("killed", "stopped", "raising", "poisoned")
TIMEOUT = 8.0  # value of train.timeout, in seconds
ALLOWED = {"killed": 10.0, "raising": 10.0, "poisoned": 10.0, "stopped": TIMEOUT + 5.0}  # seconds until all others have ended


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests each kind of failure on each rank."""
    make_data(work)
    config = config_of(work, workers=1, timeout=TIMEOUT, max_skipped=2, log_every=1)
    variant = Variant("pair", config, PROCESSES)
    expected = whole(variant, work / "whole")
    tried = [
        (kind, rank, 1 + EVERY_SAVE * draw.randrange(1, STEPS // EVERY_SAVE - 1))
        for kind in KINDS
        for rank in range(PROCESSES)
        for _ in range(count)
    ]
    jobs = {
        f"{kind}_{rank}_{place}": partial(_fall, work / f"{kind}_{rank}_{place}", variant, expected, kind, rank, step)
        for place, (kind, rank, step) in enumerate(tried)
    }
    found = side_by_side(work, jobs)
    wrong = [line for one in found.values() for line in one.pop("wrong")]
    longest = {
        kind: max((one["seconds"] for name, one in found.items() if name.startswith(kind) and "seconds" in one), default=None)
        for kind in KINDS
    }
    return {"tried": len(tried), "longest seconds until all others are gone": longest, "runs": found, "wrong": wrong}


EVERY_SAVE = 4  # each failure happens one update after a save, so that no failure is skipped before the next save


def _fall(folder: Path, variant: Variant, expected: dict[str, Any], kind: str, rank: int, step: int) -> dict[str, Any]:
    at = folder.with_suffix(".at")
    started = start(variant.config, folder, variant.processes, _saboteur(kind, rank, step, at))
    started.until(at.exists)
    began, family = time.monotonic(), _family(started)
    others = Started([pid for place, pid in enumerate(started.pids) if place != rank], started.log)
    codes = others.wait(ALLOWED[kind] + 20)
    seconds = round(time.monotonic() - began, 2)
    gone = kind != "killed" and kind != "stopped"
    said = started.said(10**6)
    wrong = [f"{folder.name}: the others ended with {codes} after {seconds} s"] * (
        seconds > ALLOWED[kind] or any(code in (0, -signal.SIGKILL) for code in codes)
    )
    if not gone:
        started.kill(started.pids[rank])  # as a launcher does with a stopped process
    own = Started([started.pids[rank]], started.log).wait(max(0.1, ALLOWED[kind] - seconds))
    wrong += [f"{folder.name}: the one that fell ended with {own}"] * (gone and own[0] in (0, -signal.SIGKILL))
    wrong += [f"{folder.name}: {what} is not named: {said[-600:]}" for what in _unnamed(kind, rank, step, said)]
    wrong += [f"{folder.name}: process {pid} is left" for pid in _left(family)]
    wrong += finish(variant, folder, expected)
    shutil.rmtree(folder, ignore_errors=True)
    return {"seconds": seconds, "codes": codes, "wrong": wrong}


def _unnamed(kind: str, rank: int, step: int, said: str) -> list[str]:
    """Returns the facts that the messages do not contain: the rank (or the samples of a poisoned rank), and the step."""
    found = [] if f"rank {rank}" in said or kind == "poisoned" else [f"rank {rank}"]
    near = [f"step {one}" for one in (step - 1, step, step + 1, step + 2)]
    return found + ([] if any(one in said for one in near) else [f"step {step}"])


def _family(started: Started) -> list[psutil.Process]:
    """Returns all processes of a training, including data workers."""
    found = []
    for pid in started.pids:
        if psutil.pid_exists(pid):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    return found


def _left(family: list[psutil.Process], seconds: float = 8.0) -> list[int]:
    """Returns the processes that are still running. Data workers check every five seconds whether their parent is alive."""
    _, alive = psutil.wait_procs(family, seconds)
    return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _saboteur(kind: str, rank: int, step: int, mark: Path) -> Sabotage:
    """Returns a function that makes a process fail at a certain step."""

    def sabotage(here: int) -> None:
        if here != rank:
            return
        made = MaskedObjective.loss

        def loss(objective: MaskedObjective, model: Any, batch: Any, now: int) -> Any:
            if now < step:
                return made(objective, model, batch, now)
            mark.touch()
            if kind == "poisoned":
                return made(objective, model, batch, now) * torch.nan
            if kind == "raising":
                raise RuntimeError(f"rank {rank} raises in step {step}")
            os.kill(os.getpid(), signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
            return made(objective, model, batch, now)

        MaskedObjective.loss = loss  # type: ignore[method-assign]

    return sabotage
