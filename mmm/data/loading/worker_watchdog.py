"""What a worker process tells its parent while it reads a sample that may hang it or crash it: see
`mmm.data.loading.worker_pool`."""

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

NOTHING = -1  # in hand


class _Desk:
    """What a worker shows its parent, and what the parent has told it.

    Args:
        show: its process, and the sample that it has in hand, int64 (2,), in shared memory.
        lost: samples that killed a worker, and why.
    """

    def __init__(self, show: NDArray[np.int64], lost: dict[int, str]) -> None:
        self.show, self.lost = show, lost


_desk: _Desk | None = None  # of this process, where it is a worker


@contextmanager
def in_hand(index: int, seconds: float) -> Iterator[None]:
    """While a sample is read, which may kill the worker: by the alarm after so many seconds, or by a crash.

    Raises:
        Unreadable: where it has killed one before.
    """
    if _desk is None:
        yield
        return
    if index in _desk.lost:
        raise Unreadable(_desk.lost[index].format(seconds=f"{seconds:g}"))
    _desk.show[1] = index
    _alarm(seconds)
    try:
        yield
    finally:
        _alarm(0)
        _desk.show[1] = NOTHING


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


class Start:
    """What a worker does first: one thread; freed memory is kept for the next picture; the parent handles signals to stop."""

    def __init__(self, shows: torch.Tensor, lost: dict[int, str]) -> None:
        self.shows, self.lost = shows, lost

    def __call__(self, worker: int) -> None:
        global _desk
        torch.set_num_threads(1)
        keep_memory()
        for number in {signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)}:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        show = self.shows[worker].numpy()
        show[0] = multiprocessing.current_process().pid
        _desk = _Desk(show, self.lost)
