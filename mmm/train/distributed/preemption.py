"""Signals that stop a run. They are acknowledged at once, shared with all processes, and obeyed between two updates.

Python runs the handler of a signal between two bytecode instructions, and a backward pass on a CPU is a single instruction that may
take minutes. Therefore the C handler of Python writes the number of the signal into a pipe, and a thread reads it. The thread
acknowledges the first request at once, and ends the process at the second.

The processes exchange their flags once per update, only between hosts: one number in a separate gloo group, sent during the next
update and read after it. No host waits for a device, and hosts may run ahead of their devices. All processes detect a signal at
the same update, at most one update after one of them received it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import distributed

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # from launchers and schedulers; from the keyboard; Slurm's warning before it kills
EXIT_CODE = 143  # code of a process that SIGTERM ended in a shell: schedulers treat it as a stop and not as a failure
RANKS = 1 << 20  # larger than any number of processes
AGAIN = 2.0  # seconds after which a signal is a second request: launchers forward signals that processes already have received


class Stopped(SystemExit):
    """The run received a signal to stop, and has saved a checkpoint."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopSignals:
    """Records signals inside its `with` block, and restores the earlier handlers afterwards.

    SIGUSR1 is a warning. If it had no handler, it is ignored after the block, because it would end the process during the
    evaluations after a training. The first SIGTERM or SIGINT is acknowledged with the time at which the run will stop. A second one
    ends the process without another checkpoint, and the last checkpoint remains complete. If handlers cannot be set (outside of the
    main thread, and SIGUSR1 on Windows), signals keep their effect.

    Attributes:
        launched: whether `accelerate launch` started this process.
        received: number of the first signal, or 0.
        began: start of the current update (`time.monotonic`), None between updates. The loop sets it, to estimate the time left.
        seconds: duration of the last update, None before the first. The loop sets it.
    """

    def __init__(self, *, answers: bool = True) -> None:
        """`answers`: whether this process logs the time at which the run will stop. Only one process does."""
        self.received, self.answers = 0, answers
        self.launched = "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if self.launched else None
        self._before: dict[int, Any] = {}
        self._wakeup = -1  # the previous wake-up descriptor
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._asked: float | None = None  # time of the first request to stop
        self.began: float | None = None
        self.seconds: float | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._pipe = reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._thread = threading.Thread(target=self._listen, args=(reader,), daemon=True, name="mmm signals")
            self._thread.start()
            self._wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pipe is None or self._thread is None or threading.current_thread() is not threading.main_thread():
            return  # no handlers were set, or another thread, which cannot set any, closes an abandoned loop
        for number, handler in self._before.items():
            warns = handler in (None, signal.SIG_DFL) and number == getattr(signal, "SIGUSR1", None)
            signal.signal(number, signal.SIG_IGN if warns else signal.SIG_DFL if handler is None else handler)
        reader, writer = self._pipe
        current = signal.set_wakeup_fd(-1)
        with suppress(OSError):  # the descriptor may belong to an abandoned earlier loop, which has closed it
            signal.set_wakeup_fd(self._wakeup if current == writer else current)
        os.write(writer, bytes([0]))  # ends the thread; closing the pipe would not, because data workers have copies
        self._thread.join()
        os.close(writer)
        os.close(reader)

    def look(self) -> int:
        """Returns the number of the first signal, 0 if there was none.

        A launcher that has ended counts as SIGTERM: `accelerate launch` (1.15) ends at a SIGTERM without passing it on to the
        single process that it started, which would continue training. torchrun passes it on.
        """
        if not self.received and self._launcher not in (None, os.getppid()):
            self.received = signal.SIGTERM
        return self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def _listen(self, reader: int) -> None:
        """Acknowledges requests to stop, in a thread, until it reads a 0."""
        while True:
            for number in os.read(reader, 64):
                if number == 0:
                    return
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._answer(signal.Signals(number))

    def _answer(self, number: signal.Signals) -> None:
        now, began, seconds = monotonic(), self.began, self.seconds
        if self._asked is None:
            self._asked = now
            update = "the next update" if began is None else "this update"
            left = None if began is None or seconds is None else max(1.0, seconds - (now - began))
            estimate = "" if left is None else f", about {left:.0f} s"
            if self.answers:
                logger.warning("%s: stopping after %s%s; send it again to stop now", number.name, update, estimate)
        elif now - self._asked > AGAIN:
            logger.warning("%s received again: stopping now; --resume continues from the last checkpoint", number.name)
            end_now(EXIT_CODE)


def end_now(code: int) -> NoReturn:
    """Ends this process and its data workers at once, from any thread."""
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class StopAgreement:
    """Makes the same decision to stop on all processes if one of them received a signal.

    Attributes:
        every_update: whether `stops` must be called after each update, because there are other processes, or a launcher that may
            end. Otherwise it is called only after a signal.
    """

    def __init__(self, accelerator: Accelerator, signals: StopSignals, timeout: float) -> None:
        self.signals, self.rank = signals, accelerator.process_index
        self.group: Any = (
            distributed.new_group(timeout=timedelta(seconds=timeout), backend="gloo") if accelerator.num_processes > 1 else None
        )
        self.every_update = self.group is not None or signals.launched
        self._sent: tuple[Any, torch.Tensor] | None = None  # flag of the previous update

    def stops(self, step: int, *, last: bool = False) -> bool:
        """Returns whether to stop. All processes must call it after the same updates.

        Args:
            step: number of updates so far, for the message.
            last: whether this is the last call. The answer then includes signals of this update.
        """
        found = self._own() if self.group is None else self._receive()
        if self.group is not None and not found:
            self._send()
            found = self._receive() if last else 0
        if found and self.rank == 0:
            number, rank = divmod(found, RANKS)
            logger.warning("%s received by rank %d: stopping after step %d", signal.Signals(number).name, rank, step)
        return found > 0

    def _own(self) -> int:
        number = self.signals.look()
        return number * RANKS + self.rank if number else 0

    def _send(self) -> None:
        flag = torch.tensor(self._own())
        self._sent = (distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.group, async_op=True), flag)

    def _receive(self) -> int:
        if self._sent is None:
            return 0
        work, flag = self._sent
        work.wait()
        self._sent = None
        return int(flag)
