"""Starts trainings in forked processes, and waits for events in them.

The parent process imports all modules once, so that its children start quickly. It never computes, because a fork of a process with
running threads may hang. Every training is the real command in a forked process, with real files, signals and exit codes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from mmm.config.cli import main
from tasks import pretrain

Patch = Callable[[int], None]  # changes functions in a process before it trains; its argument is the rank
TIMEOUT = 1200.0  # seconds for one training; large because the machine may be shared
PARALLEL_JOBS = 2  # number of jobs that run at the same time
MODULES = (
    "accelerate",
    "av",
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "mmm.data.decode.video.pyav",
    "timm.optim",
)
PR_SET_PDEATHSIG = 1  # option of prctl: the kernel kills a child when its parent ends


def import_modules() -> None:
    """Imports the modules that a training imports only when it needs them."""
    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)


@dataclass
class ProcessGroup:
    """The processes of a training.

    Attributes:
        pids: process ids, rank 0 first.
        log: file with the output of all processes.
        codes: exit codes of the processes that have ended, by process id.
    """

    pids: list[int]
    log: Path
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Returns whether all processes have ended."""
        for pid in self.pids:
            with suppress(ChildProcessError):
                if pid not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
        return len(self.codes) == len(self.pids)

    def wait(self, seconds: float = TIMEOUT) -> list[int]:
        """Returns the exit codes; a negative code is a signal. Processes still alive after `seconds` are killed, and return -9."""
        end = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > end:
                self.kill(*(pid for pid in self.pids if pid not in self.codes))
            time.sleep(0.005)
        return [self.codes[pid] for pid in self.pids]

    def wait_until(self, condition: Callable[[], Any], interval: float = 0.002) -> bool:
        """Waits for a condition, and returns whether it became true before the processes ended."""
        while not condition():
            if self.poll():
                return bool(condition())
            time.sleep(interval)
        return True

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to these processes, or to all of them."""
        for pid in pids or self.pids:
            if pid not in self.codes:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def output(self, characters: int = 600) -> str:
        """Returns the end of the output."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


def start(
    config: pretrain.Config, folder: Path, processes: int = 1, patch: Patch | None = None, flags: Sequence[str] = ()
) -> ProcessGroup:
    """Starts a training, or continues it with the same command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, pids = folder.with_name(f"{folder.name}.log"), []
    argv = ["--folder", str(folder), "--resume", "auto", *flags]
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in group.items()} if processes > 1 else {}
            before = None if patch is None else partial(patch, rank)
            _run_child(lambda: main(pretrain.run, presets=config, doc="", argv=argv), log, before)
        pids.append(pid)
    return ProcessGroup(pids, log)


def start_function(function: Callable[[], Any], log: Path) -> ProcessGroup:
    """Starts a function in a forked process."""
    pid = os.fork()
    if pid == 0:
        _run_child(function, log)
    return ProcessGroup([pid], log)


def _run_child(function: Callable[[], Any], log: Path, before: Callable[[], Any] | None = None) -> NoReturn:
    """Runs a function in this process, with its output in `log`, and exits."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if before is not None:
            before()
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_jobs(
    work: Path, jobs: Mapping[str, Callable[[], dict[str, Any]]], parallel: int = PARALLEL_JOBS
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Runs each job in a forked process, `parallel` at a time. Returns the results by name, and the `failures` of all jobs.

    The result of a job that raises an exception is empty, and its output is a failure.
    """
    waiting, running, results = dict(jobs), dict[str, ProcessGroup](), dict[str, dict[str, Any]]()
    while waiting or running:
        while waiting and len(running) < parallel:
            name = next(iter(waiting))
            running[name] = start_function(partial(_write_result, waiting.pop(name), work / f"{name}.result"), work / f"{name}.job")
        for name in [name for name, job in running.items() if job.poll()]:
            job, path = running.pop(name), work / f"{name}.result"
            results[name] = json.loads(path.read_text()) if path.exists() else {"failures": [f"{name}: {job.output()}"]}
        time.sleep(0.02)
    failures = [line for name in jobs for line in results[name].pop("failures", [])]
    return {name: results[name] for name in jobs}, failures


def _write_result(job: Callable[[], dict[str, Any]], path: Path) -> None:
    result = json.dumps(job())
    path.write_text(result)
