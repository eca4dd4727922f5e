"""Worker processes that may hang or crash without ending the run: the input that they were reading counts as unreadable.

A decoder can crash the process. It can also hang in C code while it holds Python's global lock, so that threads, exceptions and
SIGTERM have no effect (reported for decord). Each worker therefore writes into shared memory which input it reads, and sets an
alarm before it reads one (worker_watchdog.py). The default action of SIGALRM ends the process in any state. The parent process
notices the end within a second, restarts the workers at the first batch that it has not received, and tells them which input is
lost. Reading this input raises `Unreadable`, so the result is the same as for a damaged file, with any number of workers. Requests
are pure functions of the step, so nothing else is lost. (torch's own loader raises an exception in the middle of a training step.)

Without workers there is no deadline. Windows has no SIGALRM, so there is no deadline on Windows either.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mmm.data.loading.worker_watchdog import IDLE, InitWorker

logger = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds without a batch after which the run ends, although all workers are alive
POLL_INTERVAL = 1.0  # seconds between two checks of whether the workers are alive
SHUTDOWN_TIMEOUT = 20.0  # seconds for a worker to end after its connections are closed: it frees its memory first
MAX_DEATHS = 3  # number of times that workers may be killed from outside, without a batch in between, before the run ends
CRASHES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache  # warns once per process
def _warn_of_many(workers: int) -> None:
    logger.warning("data.workers %d are more than the %d cores that this process may use; fewer are as fast", workers, cores())


def load(
    views: Dataset[Any],
    requests: Callable[[], Iterable[Any]],
    workers: int,
    *,
    prefetch: int = 2,
    timeout: float | None = TIMEOUT,
) -> Iterator[Any]:
    """Yields the batches that `views` makes of the requests (`__getitems__`), in order.

    Args:
        views: makes the batches. If it returns a ValueError instead of a batch, the error is raised here.
        requests: returns the same sequence of requests at each call.
        workers: number of processes. 0: the batches are made in this process.
        prefetch: number of requests that each worker gets in advance.
        timeout: largest number of seconds between two batches. None: as long as all workers are alive.

    Raises:
        ValueError: workers are killed repeatedly, or `views` returns a ValueError.
        RuntimeError: no batch arrives for `timeout` seconds.
    """
    if workers > cores():
        _warn_of_many(workers)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # torch's own warning about too many workers
    lost: dict[int, str] = {}
    done = deaths = 0
    while True:
        pool = WorkerPool(views, _Requests(requests, done), workers, prefetch, lost, timeout)
        for batch in pool:
            if isinstance(batch, ValueError):
                raise batch
            yield batch
            done, deaths = done + 1, 0
        if not pool.failure:
            return
        found = pool.find_culprits()
        lost |= found
        deaths += not found
        if deaths >= MAX_DEATHS:
            raise ValueError(f"worker processes were killed {deaths} times ({pool.failure}); if memory ran out, lower data.workers")


class WorkerPool:
    """The worker processes, from their start to their end.

    Attributes:
        failure: description of how workers failed, or "".
    """

    def __init__(
        self,
        views: Dataset[Any],
        requests: _Requests,
        workers: int,
        prefetch: int,
        lost: dict[int, str],
        timeout: float | None,
    ) -> None:
        self.reports = torch.full((max(1, workers), 2), IDLE).share_memory_()
        self.processes: list[Any] = []
        self.failure = ""
        self.timeout = timeout
        parallel: dict[str, Any] = {}
        if workers > 0:
            # with fork, a worker need not import modules again, and shares data that is cached in memory
            start = "fork" if sys.platform == "linux" else None
            parallel = {"timeout": POLL_INTERVAL, "multiprocessing_context": start, "prefetch_factor": prefetch}
        self.loader: DataLoader[Any] = DataLoader(
            views,
            batch_sampler=requests,
            collate_fn=_identity,
            num_workers=workers,
            worker_init_fn=InitWorker(self.reports, dict(lost)),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise torch's loader advances the global generator
            **parallel,
        )

    def __iter__(self) -> Iterator[Any]:
        """Yields batches until the requests end or a worker fails."""
        try:
            yield from self._batches(self._start())
        finally:
            self._end()

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        last = time.monotonic()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:  # the last two if a worker dies while it sends a batch
                timed_out = isinstance(error, RuntimeError) and "timed out" in str(error)
                seconds = 0 if timed_out else POLL_INTERVAL if isinstance(error, RuntimeError) else SHUTDOWN_TIMEOUT
                self.failure = self._find_failure(seconds)
                if self.failure:
                    return
                if not timed_out or (self.timeout is not None and time.monotonic() - last > self.timeout):
                    raise
                continue  # all workers are alive
            yield batch
            last = time.monotonic()

    def _find_failure(self, seconds: float) -> str:
        """Describes how workers failed; waits up to this many seconds for one that is about to end."""
        end = time.monotonic() + seconds
        early = ["killed before its first batch"] * (self.loader.num_workers - len(self.processes))
        while not (found := early + [_ending(process.exitcode) for process in self.processes if process.exitcode]):
            if time.monotonic() >= end:
                break
            time.sleep(0.01)
        return ", ".join(found)

    def _start(self) -> Iterator[Any]:
        """Starts the processes.

        Removes torch's SIGCHLD handler, which would raise an exception anywhere in this thread. A process that is already dead
        is not among the `active_children`.
        """
        others = set(multiprocessing.active_children())
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        handler = signal.getsignal(signal.SIGCHLD) if main else None
        batches = iter(self.loader)
        if main:
            signal.signal(signal.SIGCHLD, handler)
        self.processes = [child for child in multiprocessing.active_children() if child not in others]
        return batches

    def _end(self) -> None:
        """Ends the processes, and removes the shared memory of those that were killed before they could give it away."""
        for process in self.processes:
            process.kill()
            process.join()
            for segment in Path("/dev/shm").glob(f"torch_{process.pid}_*"):
                segment.unlink(missing_ok=True)

    def find_culprits(self) -> dict[int, str]:
        """Returns the inputs that ended a worker, with the reasons. A worker that was killed from outside has none."""
        reading = dict(self.reports.tolist())
        found = {}
        for process in self.processes:
            ending = _ending(process.exitcode) if process.exitcode else ""
            index = reading.get(process.pid, IDLE)
            if index != IDLE and ending == "SIGALRM":
                found[index] = "reading it took more than {seconds} s"
            elif index != IDLE and ending in CRASHES:
                found[index] = f"reading it crashed the process ({ending})"
        return found


def _ending(code: int) -> str:
    """Returns the name of the signal that ended a process, or its exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


class _Requests(Iterable[Any]):
    """The requests after the first `done`. Each iteration starts from the beginning, as torch requires of a batch sampler."""

    def __init__(self, start: Callable[[], Iterable[Any]], done: int) -> None:
        self.start, self.done = start, done

    def __iter__(self) -> Iterator[Any]:
        return islice(self.start(), self.done, None)


def _identity(batch: Any) -> Any:
    return batch
