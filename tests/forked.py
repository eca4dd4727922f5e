"""Processes that train together, forked from a script that has imported all it needs and computed nothing yet."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import accelerate
import accelerate.utils  # noqa: F401
import torch.distributed.optim  # noqa: F401

from mmm.train.distributed.preemption import EXIT_CODE, Stopped

TESTS = Path(__file__).parent
# for processes that run a test file as a script: the repository and the folders of tests, which share code
PYTHONPATH = os.pathsep.join(str(folder) for folder in (TESTS.parent, TESTS, *sorted(TESTS.glob("[a-z]*/"))))


def fork_ranks(count: int, work: Callable[[], object], log: Path) -> list[int]:
    """Starts `count` processes that do the work; returns their process IDs, rank 0 first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [_fork(rank, count, port, work, log) for rank in range(count)]


def _fork(rank: int, count: int, port: int, work: Callable[[], object], log: Path) -> int:
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    if count > 1:
        os.environ |= {name: str(value) for name, value in (meeting | {"RANK": rank, "LOCAL_RANK": rank}).items()}
    logging.basicConfig(format=f"said by rank {rank}: %(message)s", force=True)
    try:
        work()
    except Stopped:
        os._exit(EXIT_CODE)
    except Exception:
        traceback.print_exc()
        os._exit(1)  # skips Python's shutdown, which takes seconds in a forked process
    os._exit(0)


def ends(pids: Sequence[int], seconds: float) -> dict[int, int]:
    """Returns the exit codes of the processes that end within `seconds`; a negative code is a signal."""
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while True:
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(pids) or time.monotonic() >= end:
            return codes
        time.sleep(0.01)


def watch(
    script: list[str], *, seconds: float = 200, act: Callable[[subprocess.Popen[str]], None] | None = None
) -> tuple[int, str]:
    """Runs a command and ends all its processes with it; returns its exit code and output."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    both = subprocess.Popen(script, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = both.communicate(timeout=seconds)  # fails the test, instead of blocking, when a process waits for a dead one
    finally:
        with suppress(ProcessLookupError):
            os.killpg(both.pid, signal.SIGKILL)
    return both.returncode, output
