"""Ends the whole run within a stated time if a process dies, stops or raises an error, with one message about the process.

    with RunFolder.open(...) as folder, Watchdog(training, config.train.timeout):
        ...

Each process sends a heartbeat twice a second, with its state and its step (`heartbeat.py`). A collective fails if another process
is gone; with gloo it fails at once. The process then waits for the failure report, and logs it instead of the traceback. A
process that raises an error reports it before it ends. Rank 0 watches the others, and each of the others watches rank 0, which
holds the store of the heartbeats.

    killed, or raised an error    the others end within 10 s
    stopped, or hanging           the others end within `train.timeout` + 5 s; a process that is continued later ends too

The exit code is 1; a process that raised an error keeps its own. Only the updates since the last checkpoint are lost, because a
checkpoint is complete or does not exist. If the main thread does not return from its collective (NCCL waits on the device without
an exception), a second thread ends first the data workers and then the process. On GPUs a lost process is detected when the flags
of `preemption.py` are exchanged, which also uses gloo, or after `train.timeout`. This has not been tested on GPUs. Failures outside
of the `with` block are not detected. A process that never releases Python's global lock cannot detect any failure itself.
"""

from __future__ import annotations

import atexit
import logging
import threading
from time import monotonic
from types import TracebackType

from mmm.train.distributed.preemption import Stopped, end_now
from mmm.train.state import Training
from mmm.train.watchdog.failure import SILENCE, FailureReport, State
from mmm.train.watchdog.heartbeat import INTERVAL, Heartbeats, first_line

logger = logging.getLogger(__name__)

PATIENCE = 7.0  # seconds that a process whose collective failed waits for the failure report
RETURN = 2.0  # seconds that the main thread has to return from its collective, after the failure is known
LEAVE = 5.0  # seconds that the main thread then has to end and to finish a checkpoint that is being written
EXIT_CODE = 1
COLLECTIVES = (
    "gloo",
    "nccl",
    "c10d",
    "connection closed",
    "connection reset",
    "processgroup",
)  # words in the errors of collectives


class RankLost(SystemExit):
    """Another process is gone, has failed, or does not answer; this has been logged.

    Attributes:
        message: message of the failure report.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message


class Watchdog:
    """Watches the other processes inside its `with` block, which all processes enter. A single process is not watched."""

    def __init__(self, training: Training, timeout: float) -> None:
        """Prepares to watch processes. A process without a heartbeat for `timeout` seconds counts as lost."""
        self.training, self.timeout = training, timeout
        self.rank = training.accelerator.process_index
        self.heartbeats: Heartbeats | None = None
        self.lost = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self.training.accelerator.num_processes > 1:
            heartbeats = Heartbeats(self.training, self.timeout)
            if heartbeats.watching:
                self.heartbeats = heartbeats
                atexit.register(self._end_if_lost)
                self._thread = threading.Thread(target=self._watch, args=(heartbeats,), daemon=True, name="mmm watchdog")
                self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Reports how this process ends. Raises RankLost if another process is the cause."""
        try:
            self._close(error)
        finally:
            if error is not None:
                self.training.writer.wait_alone()  # before the run's folder is unlocked, and another start may write there

    def _close(self, error: BaseException | None) -> None:
        heartbeats = self.heartbeats
        if heartbeats is None:
            return
        state = self._final_state(heartbeats, error)
        heartbeats.own = (state, first_line(error))
        if state == "lost_collective":
            heartbeats.wait_until(lambda: heartbeats.known_failure() is not None, PATIENCE)
            if found := heartbeats.known_failure():
                self._report(heartbeats, found)
                heartbeats.wait_until(heartbeats.all_notified, SILENCE)
                self.lost = True  # the second thread continues to watch
                raise RankLost(found.message) from error
        heartbeats.wait_until(lambda: heartbeats.reported == state and heartbeats.all_notified(), SILENCE)
        self._closed.set()
        if self._thread is not None:
            self._thread.join(SILENCE)
        heartbeats.close()

    def _final_state(self, heartbeats: Heartbeats, error: BaseException | None) -> State:
        """Returns the state in which this process ends: done, failed, or failed because of another process."""
        if error is None or isinstance(error, Stopped):
            return "done"
        of_a_collective = any(word in str(error).lower() for word in COLLECTIVES) or heartbeats.failure is not None
        return "lost_collective" if isinstance(error, RuntimeError) and of_a_collective else "failed"

    def _watch(self, heartbeats: Heartbeats) -> None:
        """Ends the process, in a second thread, if the main thread does not."""
        known = None
        while not self._closed.wait(INTERVAL):
            found = heartbeats.known_failure()
            if found is None or found.rank == self.rank:
                known = None
                continue
            known = known or monotonic()
            if monotonic() - known > (LEAVE if self.lost else RETURN):
                if not self.lost:
                    self._report(heartbeats, found)
                end_now(EXIT_CODE)

    def _end_if_lost(self) -> None:
        if self.lost:
            end_now(EXIT_CODE)  # the normal exit takes seconds, and may wait for the lost process again

    def _report(self, heartbeats: Heartbeats, found: FailureReport) -> None:
        """Logs the failure once, on the first remaining rank, or on every rank if rank 0, which has the heartbeats, is gone."""
        if heartbeats.failure is None or self.rank == (0 if found.rank != 0 else 1):
            logger.error("%s. The run ends here; --resume continues from its last checkpoint", found.message)
