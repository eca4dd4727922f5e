"""Heartbeats: each process writes its state twice a second to a store on rank 0; see `watchdog.py`."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from time import monotonic, sleep

from torch import distributed

from mmm.system.redact import redact
from mmm.train.distributed.processes import on_main
from mmm.train.state import Training
from mmm.train.watchdog.failure import SILENCE, FailureReport, Heartbeat, State, find_lost_process, find_unresponsive_process

logger = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two heartbeats of a process


class Heartbeats:
    """Exchanges heartbeats in a separate thread, because the store may block forever.

    Attributes:
        own: state of this process and its cause.
        reported: the last state of this process in the store.
        failure: the report from rank 0. None: no process has failed.
        watching: whether there is a store.
    """

    def __init__(self, training: Training, timeout: float) -> None:
        """Starts on all processes. A process without a heartbeat for `timeout` seconds is lost, even if no collective failed."""
        self.training, self.timeout = training, timeout
        self.rank, self.count = training.accelerator.process_index, training.accelerator.num_processes
        self.own: tuple[State, str] = ("running", "")
        self.reported: State = "starting"
        self.failure: FailureReport | None = None
        self._last, self._heard_at = [Heartbeat()] * self.count, [monotonic()] * self.count
        self._lost_at: float | None = None  # when the first process lost a collective
        self._closed, self._wake = threading.Event(), threading.Event()
        self._store: distributed.TCPStore | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="mmm heartbeats")
        self.watching = self._start()

    def _start(self) -> bool:
        """Opens or joins the store, and returns whether that worked. It may fail behind a firewall; then processes are not
        watched."""
        try:
            port = on_main(self.training.accelerator, self._open_store)
            self._store = self._store or _connect(port)
        except (OSError, RuntimeError) as error:
            logger.warning("rank %d is not watched: %s", self.rank, first_line(error))
            return False
        self._thread.start()
        return True

    def _open_store(self) -> int:
        """Opens the store on rank 0 and returns its port."""
        try:
            self._store = _connect(0, host=True)
        except RuntimeError as error:
            raise OSError(first_line(error)) from error  # `on_main` raises it on all processes
        for rank in range(self.count):
            self._store.set(f"heartbeat {rank}", json.dumps(asdict(Heartbeat())))
        self._store.set("failure", "")
        return self._store.port

    def known_failure(self) -> FailureReport | None:
        """Returns the report of the failure, if this process has received one, or None."""
        return self.failure or (self._find_failure() if self.rank else None)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits until a condition on the heartbeats is true, at most for `seconds`; returns whether it is true."""
        end = monotonic() + seconds
        while not condition() and monotonic() < end:
            self._wake.set()
            sleep(0.05)
        return condition()

    def all_notified(self) -> bool:
        """True if no process needs the store of this process any more."""
        others = list(zip(self._last, self._heard_at, strict=True))[1:]
        active = ("running", "starting")
        return self.rank > 0 or all(last.state not in active or monotonic() - heard > SILENCE for last, heard in others)

    def close(self) -> None:
        """Ends the thread and waits for it. A thread that is inside torch's C++ when Python exits aborts the process (SIGABRT)."""
        self._closed.set()
        self._wake.set()
        self._thread.join(SILENCE)

    def _run(self) -> None:
        number, closed = 0, False
        while not closed:
            closed, number = self._closed.is_set(), number + 1
            state, cause = self.own
            if state == "running" and self.failure is not None:
                state = "notified"
            try:
                self._exchange(Heartbeat(number, self.training.step, state, cause))
            except RuntimeError:
                return  # the store is gone, because rank 0 has ended
            self.reported = state
            self._wake.wait(INTERVAL)
            self._wake.clear()

    def _exchange(self, own: Heartbeat) -> None:
        assert self._store is not None
        self._store.set(f"heartbeat {self.rank}", json.dumps(asdict(own)))
        ranks = range(1 if self.rank else self.count)  # rank 0 watches all, and the others watch rank 0
        *heartbeats, failure = self._store.multi_get([*(f"heartbeat {rank}" for rank in ranks), "failure"])
        for rank, text in zip(ranks, heartbeats, strict=True):
            heartbeat = Heartbeat(**json.loads(text))
            if heartbeat != self._last[rank]:
                self._last[rank], self._heard_at[rank] = heartbeat, monotonic()
        if self._lost_at is None and any(heartbeat.state == "lost_collective" for heartbeat in (*self._last, own)):
            self._lost_at = monotonic()
        if failure:
            self.failure = FailureReport(**json.loads(failure))
        elif self.rank == 0 and (found := self._find_failure()):
            self._store.set("failure", json.dumps(asdict(found)))
            self.failure = found

    def _find_failure(self) -> FailureReport | None:
        """Looks for a process that is lost or does not answer. All times are those of this process's clock."""
        now, heartbeats = monotonic(), list(self._last)
        heartbeats[self.rank] = Heartbeat(0, self.training.step, *self.own)
        silent = [0.0 if rank == self.rank else now - heard for rank, heard in enumerate(self._heard_at)]
        limit = self.timeout if self._lost_at is None and self.own[0] != "lost_collective" else SILENCE
        found = find_lost_process(heartbeats, silent, limit)
        if found is None and self.rank == 0 and self._lost_at is not None:
            found = find_unresponsive_process(heartbeats, now - self._lost_at, self.timeout)
        return found


def _connect(port: int, *, host: bool = False) -> distributed.TCPStore:
    address = os.environ.get("MASTER_ADDR", "localhost")
    return distributed.TCPStore(address, port, is_master=host, wait_for_workers=False, timeout=timedelta(seconds=30))


def first_line(error: BaseException | None) -> str:
    """Returns the type and the first line of an error, without secrets."""
    lines = str(error).strip().splitlines() or [""]
    return "" if error is None else redact(f"{type(error).__name__}: {lines[0]}")[:300]
