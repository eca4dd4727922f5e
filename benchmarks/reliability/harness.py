"""The fork server: starts trainings in separate processes that need no imports, and waits for events in them.

The process that starts them imports all modules once and never computes, because a fork of a process with running threads may hang.
Every training is the real command in a forked process, with real files, signals and exit codes.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from mmm.config.cli import main
from tasks import pretrain

Sabotage = Callable[[int], None]  # changes a process before it trains; its argument is the rank
LIMIT = 1200.0  # seconds for one training; large because the machine may be shared
LANES = 2  # number of jobs that run at the same time
LAZY = (
    "accelerate",
    "av",
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "mmm.data.decode.video.pyav",
    "timm.optim",
)
PARENT_GONE = 1  # prctl's PR_SET_PDEATHSIG: the end of the harness ends its trainings


def warm() -> None:
    """Imports all modules that a training imports later."""
    torch.set_num_threads(1)
    for name in LAZY:
        importlib.import_module(name)


@dataclass
class Started:
    """A training in separate processes: the process ids, rank 0 first. Its output is in `log`."""

    pids: list[int]
    log: Path
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Returns whether all processes have ended."""
        for pid in self.pids:
            with suppress(ChildProcessError):
                if pid not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(found[1])
        return len(self.codes) == len(self.pids)

    def wait(self, seconds: float = LIMIT) -> list[int]:
        """Returns the exit codes; a negative code is a signal. Processes still alive after `seconds` are killed, and return -9."""
        end = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > end:
                self.kill(*(pid for pid in self.pids if pid not in self.codes))
            time.sleep(0.005)
        return [self.codes[pid] for pid in self.pids]

    def until(self, there: Callable[[], Any], pause: float = 0.002) -> bool:
        """Waits for an event in the training, and returns whether it happened before the training ended."""
        while not there():
            if self.poll():
                return bool(there())
            time.sleep(pause)
        return True

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to these processes, or to all of them."""
        for pid in pids or self.pids:
            if pid not in self.codes:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def said(self, characters: int = 600) -> str:
        """Returns the end of the output."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


def start(
    config: pretrain.Config, folder: Path, processes: int = 1, sabotage: Sabotage | None = None, flags: Sequence[str] = ()
) -> Started:
    """Starts or continues a training with the same command."""
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
            before = None if sabotage is None else partial(sabotage, rank)
            _child(lambda: main(pretrain.run, presets=config, doc="", argv=argv), log, before)
        pids.append(pid)
    return Started(pids, log)


def call(act: Callable[[], Any], log: Path) -> Started:
    """Runs any other function in a forked process."""
    pid = os.fork()
    if pid == 0:
        _child(act, log)
    return Started([pid], log)


def _child(act: Callable[[], Any], log: Path, before: Callable[[], Any] | None = None) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PARENT_GONE, signal.SIGKILL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if before is not None:
            before()
        act()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def side_by_side(work: Path, jobs: dict[str, Callable[[], dict[str, Any]]], lanes: int = LANES) -> dict[str, dict[str, Any]]:
    """Runs each job in a forked process, `lanes` at a time, and returns their results. A failed job returns its message as
    `wrong`."""
    waiting, running, found = dict(jobs), dict[str, Started](), dict[str, dict[str, Any]]()
    while waiting or running:
        while waiting and len(running) < lanes:
            name = next(iter(waiting))
            running[name] = call(_told(waiting.pop(name), work / f"{name}.found"), work / f"{name}.job")
        for name in [name for name, lane in running.items() if lane.poll()]:
            lane, path = running.pop(name), work / f"{name}.found"
            found[name] = json.loads(path.read_text()) if path.exists() else {"wrong": [f"{name}: {lane.said()}"]}
        time.sleep(0.02)
    return {name: found[name] for name in jobs}


def _told(job: Callable[[], dict[str, Any]], path: Path) -> Callable[[], None]:
    def act() -> None:
        found = json.dumps(job())
        path.write_text(found)

    return act
