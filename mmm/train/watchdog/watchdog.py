"""A process that dies, stops or raises ends the whole run within a stated time, and one message says which, when and why.

    with RunFolder.open(...) as folder, Watchdog(training, config.train.timeout):
        ...

Each process says twice a second what it does and at which step (`beats.py`). When a collective fails, as gloo's do at once where
the other end is gone, what is known of the others is waited for and takes the place of the traceback; a process that raises says so
before it goes. Rank 0 judges the others; each of the others judges rank 0, with which the store of what was said goes.

    killed, or raising    the others end within 10 s
    stopped, or hanging   within `train.timeout` + 5 s; continued later, it ends too

With code 1 (the one that raised: its own). What is under way when a process is ended is lost, and no more: a checkpoint is there as
a whole or not at all. Where the main thread does not come back from its collective (NCCL's wait on the device, without an
exception), a second thread ends the process, its data workers first. On GPUs a death is noticed when the flags of `signals.py` are
exchanged, which gloo does there too, or after `train.timeout`; nobody has tried it there. Not noticed: code that holds Python's
lock for ever, by the process that does; and what happens before this is entered or after it is left.
"""

from __future__ import annotations

import atexit
import logging
import threading
from time import monotonic
from types import TracebackType

from mmm.train.distributed.preemption import Stopped, end_now
from mmm.train.state import Training
from mmm.train.watchdog.heartbeat import BEAT, Beats, first_line
from mmm.train.watchdog.verdict import SILENCE, State, Verdict

logger = logging.getLogger(__name__)

PATIENCE = 7.0  # seconds that a process whose collective failed waits for the verdict
OWN = 2.0  # seconds that a main thread has to come out of its collective, once the verdict is known
LEAVE = 5.0  # and to end, which finishes a checkpoint that is being written
EXIT_CODE = 1
COLLECTIVES = ("gloo", "nccl", "c10d", "connection closed", "connection reset", "processgroup")  # in what they say when they fail


class RankLost(SystemExit):
    """Another process is gone, has failed, or does not answer; it was said.

    Attributes:
        said: the message.
    """

    def __init__(self, said: str) -> None:
        super().__init__(EXIT_CODE)
        self.said = said


class Watchdog:
    """Watches the other processes while it is entered, by all of them alike; one process has nothing to watch."""

    def __init__(self, training: Training, timeout: float) -> None:
        """`timeout`: seconds that a process may be silent."""
        self.training, self.timeout = training, timeout
        self.rank = training.accelerator.process_index
        self.beats: Beats | None = None
        self.lost = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self.training.accelerator.num_processes > 1:
            beats = Beats(self.training, self.timeout)
            if beats.watching:
                self.beats = beats
                atexit.register(self._end_if_lost)
                self._thread = threading.Thread(target=self._guard, args=(beats,), daemon=True, name="mmm guard")
                self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Says how this process ends. Raises RankLost: another is the cause."""
        try:
            self._leave(error)
        finally:
            if error is not None:
                self.training.writer.wait_alone()  # after this the run's folder is let go, and another start may write there

    def _leave(self, error: BaseException | None) -> None:
        beats = self.beats
        if beats is None:
            return
        state = self._state(beats, error)
        beats.own = (state, first_line(error))
        if state == "cut" and beats.until(lambda: beats.find() is not None, PATIENCE) and (found := beats.find()):
            self._report(beats, found)
            beats.until(beats.all_know, SILENCE)
            self.lost = True  # the guard stays
            raise RankLost(found.said) from error
        beats.until(lambda: beats.said == state and beats.all_know(), SILENCE)
        self._over.set()
        if self._thread is not None:
            self._thread.join(SILENCE)
        beats.close()

    def _state(self, beats: Beats, error: BaseException | None) -> State:
        """How this process ends: well, by its own fault, or by another's."""
        if error is None or isinstance(error, Stopped):
            return "done"
        of_a_collective = any(word in str(error).lower() for word in COLLECTIVES)
        return "cut" if isinstance(error, RuntimeError) and (of_a_collective or beats.verdict is not None) else "failed"

    def _guard(self, beats: Beats) -> None:
        """The thread that ends the process where the main one does not."""
        known = None
        while not self._over.wait(BEAT):
            found = beats.find()
            if found is None or found.rank == self.rank:
                known = None
                continue
            known = known or monotonic()
            if monotonic() - known > (LEAVE if self.lost else OWN):
                if not self.lost:
                    self._report(beats, found)
                end_now(EXIT_CODE)

    def _end_if_lost(self) -> None:
        if self.lost:
            end_now(EXIT_CODE)  # Python takes a process apart in seconds, and what waits for a lost one may wait there again

    def _report(self, beats: Beats, found: Verdict) -> None:
        """One message: from the first rank that is well; from each where rank 0, which would know of the others, is gone."""
        if beats.verdict is None or self.rank == (0 if found.rank != 0 else 1):
            logger.error("%s. The run ends here; --resume goes on from its last checkpoint", found.said)
