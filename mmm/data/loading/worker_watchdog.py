"""Code of the watchdog that runs in the worker: it reports which input is read, and limits the time of a read. See
`worker_pool`."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from mmm.data.errors import Unreadable
from mmm.system.malloc import keep_memory

IDLE = -1  # no input is being read


class _State:
    """The state of a worker process.

    Args:
        report: process id of the worker and the input that it reads, int64 (2,), in memory shared with the parent process.
        lost: inputs that ended a worker before, with the reasons.
    """

    def __init__(self, report: NDArray[np.int64], lost: dict[int, str]) -> None:
        self.report, self.lost = report, lost


_state: _State | None = None  # None in processes that are not workers


@contextmanager
def watched(index: int, seconds: float) -> Iterator[None]:
    """Limits the time of reading an input: after this many seconds the process is killed, and the parent learns which input it
    read.

    Raises:
        Unreadable: the input has ended a worker before.
    """
    if _state is None:
        yield
        return
    if index in _state.lost:
        raise Unreadable(_state.lost[index].format(seconds=f"{seconds:g}"))
    _state.report[1] = index
    _set_alarm(seconds)
    try:
        yield
    finally:
        _set_alarm(0)
        _state.report[1] = IDLE


def _set_alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


class InitWorker:
    """Prepares a worker process: it uses one thread, keeps freed memory for the next image, and leaves stop signals to the
    parent.

    Args:
        reports: one row for each worker; see `_State`.
        lost: see `_State`.
    """

    def __init__(self, reports: torch.Tensor, lost: dict[int, str]) -> None:
        self.reports, self.lost = reports, lost

    def __call__(self, worker: int) -> None:
        global _state
        torch.set_num_threads(1)
        keep_memory()
        for number in {signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)}:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        report = self.reports[worker].numpy()
        report[0] = multiprocessing.current_process().pid
        _state = _State(report, self.lost)
