"""Worker processes that may hang or die without the run: the sample that they held counts as unreadable, and the rest goes on.

A decoder can hang inside C, holding Python's lock, deaf to threads, exceptions and SIGTERM (reported of decord, for hours), or
crash the process. So each worker says, in shared memory, which sample it has in hand, and sets the kernel's alarm before it
reads one (mmm/data/loading/worker_watchdog.py): SIGALRM's default action ends the process, whatever it is doing. The parent sees
the death within
a second, starts the workers anew at the first batch that it has not got, and tells them which sample is lost: reading it raises
`Unreadable`, so what follows is the same as for any damaged file, on any number of workers. Requests are pure functions of the
step, so nothing else is lost. (torch's own loader ends the run instead, with an exception in the middle of a training step.)

Without workers nothing watches the decoder, and on Windows, which has no alarm, there is no deadline.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mmm.data.loading.worker_watchdog import NOTHING, Start

TIMEOUT = 600  # seconds without a batch from the workers after which the run ends instead of waiting for ever
GLANCE = 1.0  # seconds after which the parent looks whether its workers live
FAREWELL = 20.0  # seconds that a worker may take to end after its connections did: it gives its memory back first
DEATHS = 3  # times that workers may be killed by others, with no batch in between, before the run ends
CRASHES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")


def load(views: Dataset[Any], requests: Callable[[], Iterable[Any]], workers: int, *, prefetch: int = 2) -> Iterator[Any]:
    """What `views` makes of each request (`__getitems__`), in order.

    Args:
        views: makes a batch; a ValueError that it returns instead is raised here.
        requests: starts the same sequence anew each time.
        workers: processes; 0 works in this one.
        prefetch: requests that a worker has before it.

    Raises:
        ValueError: where workers are killed again and again, or that was returned.
        RuntimeError: where no batch comes for ten minutes.
    """
    lost: dict[int, str] = {}
    done = deaths = 0
    while True:
        crew = _Crew(views, _Requests(requests, done), workers, prefetch, lost)
        for batch in crew:
            if isinstance(batch, ValueError):
                raise batch
            yield batch
            done, deaths = done + 1, 0
        if not crew.fallen:
            return
        found = crew.blame()
        lost |= found
        deaths += not found
        if deaths >= DEATHS:
            raise ValueError(f"worker processes were killed {deaths} times ({crew.fallen}), by lack of memory? Lower data.workers")


class _Crew:
    """One start of the workers."""

    def __init__(self, views: Dataset[Any], requests: _Requests, workers: int, prefetch: int, lost: dict[int, str]) -> None:
        self.shows = torch.full((max(1, workers), 2), NOTHING).share_memory_()
        self.processes: list[Any] = []
        self.fallen = ""  # how workers ended that should not have
        parallel: dict[str, Any] = {}
        if workers > 0:
            # fork: no import anew in a worker, and what is cached in memory is shared
            start = "fork" if sys.platform == "linux" else None
            parallel = {"timeout": GLANCE, "multiprocessing_context": start, "prefetch_factor": prefetch}
        self.loader: DataLoader[Any] = DataLoader(
            views,
            batch_sampler=requests,
            collate_fn=_same,
            num_workers=workers,
            worker_init_fn=Start(self.shows, dict(lost)),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else torch's loader draws from the global one, and changes what follows
            **parallel,
        )

    def __iter__(self) -> Iterator[Any]:
        """Batches, until the requests end or a worker falls."""
        try:
            yield from self._batches(self._start())
        finally:
            self._end()

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        waiting = time.monotonic()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:  # the latter two where a worker dies as it hands a batch over
                slept = isinstance(error, RuntimeError) and "timed out" in str(error)
                self.fallen = self._fallen(0 if slept else GLANCE if isinstance(error, RuntimeError) else FAREWELL)
                if self.fallen:
                    return
                if not slept or time.monotonic() - waiting > TIMEOUT:
                    raise
                continue  # GLANCE is over, and all are well
            yield batch
            waiting = time.monotonic()

    def _fallen(self, seconds: float) -> str:
        """How workers ended that should not have; waits so long for one that is about to."""
        end = time.monotonic() + seconds
        early = ["killed before its first batch"] * (self.loader.num_workers - len(self.processes))
        while not (found := early + [_ending(process.exitcode) for process in self.processes if process.exitcode]):
            if time.monotonic() >= end:
                break
            time.sleep(0.01)
        return ", ".join(found)

    def _start(self) -> Iterator[Any]:
        """Starts the processes. torch's handler of their deaths, which would raise anywhere in this thread, is taken out again.
        One that is dead already is not among the `active_children`."""
        others = set(multiprocessing.active_children())
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        handler = signal.getsignal(signal.SIGCHLD) if main else None
        batches = iter(self.loader)
        if main:
            signal.signal(signal.SIGCHLD, handler)
        self.processes = [child for child in multiprocessing.active_children() if child not in others]
        return batches

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def blame(self) -> dict[int, str]:
        """The samples that workers had in hand when they died of them, and why; a worker that was killed by others blames none."""
        hands = dict(self.shows.tolist())
        found = {}
        for process in self.processes:
            how = _ending(process.exitcode) if process.exitcode else ""
            index = hands.get(process.pid, NOTHING)
            if index != NOTHING and how == "SIGALRM":
                found[index] = "reading it took more than {seconds} s"
            elif index != NOTHING and how in CRASHES:
                found[index] = f"reading it crashed the process ({how})"
        return found


def _ending(code: int) -> str:
    """How a process ended: the name of a signal, or its exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


class _Requests(Iterable[Any]):
    """Starts anew each time that it is iterated, as torch wants of a batch sampler, after the first `done`."""

    def __init__(self, start: Callable[[], Iterable[Any]], done: int) -> None:
        self.start, self.done = start, done

    def __iter__(self) -> Iterator[Any]:
        return islice(self.start(), self.done, None)


def _same(batch: Any) -> Any:
    return batch
