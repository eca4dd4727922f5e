"""Signals that ask a run to stop: noted when they come, agreed upon by all processes, acted on between two updates.

The handler sets a flag and no more: a collective, a write or a log line inside one could meet itself. Once an update the
processes exchange their flags, on the hosts alone: one number in a group of its own (gloo), sent while the next update is
computed and read after it. So no host waits for a device, hosts may run ahead of their devices, and all processes learn of a
signal at the same update, whichever of them received it, at most one update later.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # of launchers and schedulers; of the keyboard; Slurm's warning before it kills
EXIT_CODE = 143  # what a shell reports of a process that SIGTERM ended: schedulers take it for a stop and not for a failure
RANKS = 1 << 20  # more than there will be


class Stopped(SystemExit):
    """The run was asked to stop, and has saved its step."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopSignals:
    """Notes the signals while it is entered; then the handlers from before are back. But SIGUSR1, which would end the process in
    the evaluations that follow a training, is ignored from then on where nobody handled it: it is a warning, and weights are safe.

    A second signal changes nothing: what is being saved is saved. Where handlers cannot be set (not the main thread, or Windows'
    lack of SIGUSR1), those signals keep what they do.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the first
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched else None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            warns = handler in (None, signal.SIG_DFL) and number == getattr(signal, "SIGUSR1", None)
            signal.signal(number, signal.SIG_IGN if warns else signal.SIG_DFL if handler is None else handler)

    def look(self) -> int:
        """The number of the first signal, 0 where none came.

        A launcher that is gone counts as SIGTERM: `accelerate launch` dies of it and does not hand it on to the one process that
        it started (1.15), which would train on with nobody to stop it. torchrun does.
        """
        if not self.received and self._launcher not in (None, os.getppid()):
            self.received = signal.SIGTERM
        return self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number


class Agreement:
    """Whether any process was asked to stop, the same answer on all of them."""

    def __init__(self, accelerator: Accelerator, signals: StopSignals, timeout: float) -> None:
        self.signals, self.rank = signals, accelerator.process_index
        self.group: Any = (
            distributed.new_group(timeout=timedelta(seconds=timeout), backend="gloo") if accelerator.num_processes > 1 else None
        )
        self._sent: tuple[Any, torch.Tensor] | None = None  # of the update before

    def asked(self, step: int, *, last: bool = False) -> bool:
        """Once an update, by all processes.

        Args:
            step: updates made so far, for the message.
            last: nothing follows: answers for this update, and leaves nothing under way.
        """
        found = self._own() if self.group is None else self._receive()
        if self.group is not None and not found:
            self._send()
            found = self._receive() if last else 0
        if found and self.rank == 0:
            number, rank = divmod(found, RANKS)
            logger.warning("%s came to rank %d: stopping after step %d", signal.Signals(number).name, rank, step)
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
