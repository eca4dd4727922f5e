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

from benchmarks.reliability.harness import Patch, ProcessGroup, run_jobs, start
from benchmarks.reliability.runs import SAVE_EVERY, STEPS, Variant, finish_and_compare, make_config, make_data, run_undisturbed
from mmm.objectives.masked import MaskedObjective

COUNT, QUICK = 2, 1  # trials of each kind of failure on each rank
PROCESSES = 2
KINDS = ("killed", "stopped", "raising", "nan")
TIMEOUT = 8.0  # value of train.timeout, in seconds
MAX_SECONDS = {"killed": 10.0, "raising": 10.0, "nan": 10.0, "stopped": TIMEOUT + 5.0}  # until all other processes have ended


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests each kind of failure on each rank."""
    make_data(work)
    config = make_config(work, workers=1, timeout=TIMEOUT, max_skipped=2, log_every=1)
    variant = Variant("pair", config, PROCESSES)
    expected = run_undisturbed(variant, work / "undisturbed")
    # each process fails one update after a save, so that a run of skipped updates reaches its limit before the next save
    trials = [
        (kind, rank, 1 + SAVE_EVERY * rng.randrange(1, STEPS // SAVE_EVERY - 1))
        for kind in KINDS
        for rank in range(PROCESSES)
        for _ in range(count)
    ]
    jobs = {
        f"{kind}_{rank}_{number}": partial(_fail, work / f"{kind}_{rank}_{number}", variant, expected, kind, rank, step)
        for number, (kind, rank, step) in enumerate(trials)
    }
    results, failures = run_jobs(work, jobs)
    longest = {
        kind: max((one["seconds"] for name, one in results.items() if name.startswith(kind) and "seconds" in one), default=None)
        for kind in KINDS
    }
    return {
        "trials": len(trials),
        "longest seconds until all others ended": longest,
        "runs": results,
        "failures": failures,
    }


def _fail(folder: Path, variant: Variant, expected: dict[str, Any], kind: str, rank: int, step: int) -> dict[str, Any]:
    """Tests one failure of one rank."""
    mark = folder.with_suffix(".failed")
    started = start(variant.config, folder, variant.processes, _fail_at(kind, rank, step, mark))
    started.wait_until(mark.exists)
    began, processes = time.monotonic(), _all_processes(started)
    others = ProcessGroup([pid for other, pid in enumerate(started.pids) if other != rank], started.log)
    codes = others.wait(MAX_SECONDS[kind] + 20)
    seconds = round(time.monotonic() - began, 2)
    output = started.output(10**6)
    failures = [f"{folder.name}: the others ended with {codes} after {seconds} s"] * (
        seconds > MAX_SECONDS[kind] or any(code in (0, -signal.SIGKILL) for code in codes)
    )
    ends_itself = kind in ("raising", "nan")
    if not ends_itself:
        started.kill(started.pids[rank])  # as a launcher does with a stopped process
    own = ProcessGroup([started.pids[rank]], started.log).wait(max(0.1, MAX_SECONDS[kind] - seconds))
    failures += [f"{folder.name}: the failed process ended with {own}"] * (ends_itself and own[0] in (0, -signal.SIGKILL))
    failures += [f"{folder.name}: {fact} is not named: {output[-600:]}" for fact in _unnamed(kind, rank, step, output)]
    failures += [f"{folder.name}: process {pid} still runs" for pid in _still_running(processes)]
    failures += finish_and_compare(variant, folder, expected)
    shutil.rmtree(folder, ignore_errors=True)
    return {"seconds": seconds, "codes": codes, "failures": failures}


def _unnamed(kind: str, rank: int, step: int, output: str) -> list[str]:
    """Returns which of the rank and the step the messages do not contain. NaN is reported with its samples, without a rank."""
    facts = [] if f"rank {rank}" in output or kind == "nan" else [f"rank {rank}"]
    near = [f"step {one}" for one in (step - 1, step, step + 1, step + 2)]
    return facts + ([] if any(one in output for one in near) else [f"step {step}"])


def _all_processes(started: ProcessGroup) -> list[psutil.Process]:
    """Returns all processes of a training, including data workers."""
    found = []
    for pid in started.pids:
        if psutil.pid_exists(pid):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    return found


def _still_running(processes: list[psutil.Process], seconds: float = 8.0) -> list[int]:
    """Returns the processes that run after a wait. Data workers check every five seconds whether their parent is alive."""
    _, alive = psutil.wait_procs(processes, seconds)
    return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _fail_at(kind: str, rank: int, step: int, mark: Path) -> Patch:
    """Returns a patch that makes a rank fail at a certain step, and creates the file `mark` at that time."""

    def patch(own: int) -> None:
        if own != rank:
            return
        original = MaskedObjective.loss

        def loss(objective: MaskedObjective, model: Any, batch: Any, now: int) -> Any:
            if now < step:
                return original(objective, model, batch, now)
            mark.touch()
            if kind == "nan":
                return original(objective, model, batch, now) * torch.nan
            if kind == "raising":
                raise RuntimeError(f"rank {rank} raises in step {step}")
            os.kill(os.getpid(), signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
            return original(objective, model, batch, now)

        MaskedObjective.loss = loss  # type: ignore[method-assign]

    return patch
