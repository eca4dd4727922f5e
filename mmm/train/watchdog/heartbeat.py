"""Heartbeats: each process reports its state twice a second to a store of rank 0; see `watchdog.py`."""

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
from mmm.train.watchdog.verdict import SILENCE, Beat, State, Verdict, about_answers, about_lives

logger = logging.getLogger(__name__)

BEAT = 0.5  # seconds between two words of a process


class Beats:
    """The thread that speaks to the store, which may keep it waiting for ever.

    Attributes:
        own: how this process is, and of what.
        said: how it is as the store has it.
        verdict: as rank 0 gave it.
    """

    def __init__(self, training: Training, timeout: float) -> None:
        """By all processes alike. `timeout`: seconds that a process may be silent where no collective failed."""
        self.training, self.timeout = training, timeout
        self.rank, self.count = training.accelerator.process_index, training.accelerator.num_processes
        self.own: tuple[State, str] = ("runs", "")
        self.said: State = "begins"
        self.verdict: Verdict | None = None
        self._beats, self._heard = [Beat()] * self.count, [monotonic()] * self.count
        self._cut: float | None = None  # when the first process lost a collective
        self._over, self._wake = threading.Event(), threading.Event()
        self._store: distributed.TCPStore | None = None
        self._thread = threading.Thread(target=self._talk, daemon=True, name="mmm beats")
        self.watching = self._meet()

    def _meet(self) -> bool:
        """Whether there is a store: firewalls may forbid one, and the run goes on without."""
        try:
            port = on_main(self.training.accelerator, self._host)
            self._store = self._store or _connect(port)
        except (OSError, RuntimeError) as error:
            logger.warning("rank %d is not watched: %s", self.rank, first_line(error))
            return False
        self._thread.start()
        return True

    def _host(self) -> int:
        """Opens the store on rank 0; gives its port."""
        try:
            self._store = _connect(0, host=True)
        except RuntimeError as error:
            raise OSError(first_line(error)) from error  # which all processes hear of
        for rank in range(self.count):
            self._store.set(f"beat {rank}", json.dumps(asdict(Beat())))
        self._store.set("verdict", "")
        return self._store.port

    def find(self) -> Verdict | None:
        """Which rank ended the run, as far as this process knows."""
        return self.verdict or (self._judge() if self.rank else None)

    def until(self, there: Callable[[], bool], seconds: float) -> bool:
        """Waits for something that beats bring."""
        end = monotonic() + seconds
        while not there() and monotonic() < end:
            self._wake.set()
            sleep(0.05)
        return there()

    def all_know(self) -> bool:
        """Whether nobody needs this process's store any more."""
        others = list(zip(self._beats, self._heard, strict=True))[1:]
        return self.rank > 0 or all(beat.state not in ("runs", "begins") or monotonic() - heard > SILENCE for beat, heard in others)

    def close(self) -> None:
        """Ends the thread, and waits for it: what Python ends with itself inside torch's C++ aborts the process (SIGABRT)."""
        self._over.set()
        self._wake.set()
        self._thread.join(SILENCE)

    def _talk(self) -> None:
        number, over = 0, False
        while not over:
            over, number = self._over.is_set(), number + 1
            state, cause = self.own
            if state == "runs" and self.verdict is not None:
                state = "told"
            try:
                self._exchange(Beat(number, self.training.step, state, cause))
            except RuntimeError:
                return  # the store is gone, and rank 0 with it
            self.said = state
            self._wake.wait(BEAT)
            self._wake.clear()

    def _exchange(self, own: Beat) -> None:
        assert self._store is not None
        self._store.set(f"beat {self.rank}", json.dumps(asdict(own)))
        ranks = range(1 if self.rank else self.count)  # rank 0 judges all, and the others rank 0
        *beats, verdict = self._store.multi_get([*(f"beat {rank}" for rank in ranks), "verdict"])
        for rank, said in zip(ranks, beats, strict=True):
            beat = Beat(**json.loads(said))
            if beat != self._beats[rank]:
                self._beats[rank], self._heard[rank] = beat, monotonic()
        if self._cut is None and any(beat.state == "cut" for beat in (*self._beats, own)):
            self._cut = monotonic()
        if verdict:
            self.verdict = Verdict(**json.loads(verdict))
        elif self.rank == 0 and (found := self._judge()):
            self._store.set("verdict", json.dumps(asdict(found)))
            self.verdict = found

    def _judge(self) -> Verdict | None:
        """By times of one's own clock only."""
        now, beats = monotonic(), list(self._beats)
        beats[self.rank] = Beat(0, self.training.step, *self.own)
        silent = [0.0 if rank == self.rank else now - heard for rank, heard in enumerate(self._heard)]
        limit = self.timeout if self._cut is None and self.own[0] != "cut" else SILENCE
        found = about_lives(beats, silent, limit)
        if found is None and self.rank == 0 and self._cut is not None:
            found = about_answers(beats, now - self._cut, self.timeout)
        return found


def _connect(port: int, *, host: bool = False) -> distributed.TCPStore:
    address = os.environ.get("MASTER_ADDR", "localhost")
    return distributed.TCPStore(address, port, is_master=host, wait_for_workers=False, timeout=timedelta(seconds=30))


def first_line(error: BaseException | None) -> str:
    """Returns the kind and the first line of an error, without secrets."""
    lines = str(error).strip().splitlines() or [""]
    return "" if error is None else redact(f"{type(error).__name__}: {lines[0]}")[:300]
