"""Asynchronous saving: an update only waits until the state is copied to the host's memory; threads write the files.

Threads do not communicate with other processes. Each other process writes a file when its part is complete, and the thread of the
first process waits for these files. The main threads exchange the outcome when the next checkpoint is due or the run ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from mmm.train.checkpoint import writer as checkpoint
from mmm.train.checkpoint.shards import rows_of
from mmm.train.distributed.fsdp import is_sharded, local
from mmm.train.distributed.processes import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

Result = TypeVar("Result")
Tensors = Mapping[str, Mapping[str, Tensor]]  # by file, then by name

# seconds that the first process waits for the files of the others: if they are known to be written, or if the run failed
PATIENCE, SHORT = 30.0, 5.0


@dataclass
class Pending:
    """A checkpoint that is being written.

    Attributes:
        step: step of the checkpoint.
        written: the task that writes the part of this process. None: there is no such part.
        whole: in the first process, the task that renames the checkpoint when it is complete.
        remote_error: the error of another process.
        until: time at which all parts must be written.
    """

    step: int
    written: Future[checkpoint.Files] | None = None
    whole: Future[None] | None = None
    remote_error: BaseException | None = None
    until: float | None = None

    def check(self) -> None:
        """True if parts of other processes may still be written.

        Raises:
            OSError: the time is over, or another process failed.
        """
        if self.remote_error is not None:
            raise self.remote_error
        if self.until is None and not threading.main_thread().is_alive():
            self.until = time.monotonic() + SHORT
        if self.until is not None and time.monotonic() > self.until:
            raise OSError("parts of it do not appear; the run's folder must be on a file system that all processes share")


class AsyncWriter:
    """Writes a run's checkpoints, one at a time. `start` and `wait` are called by all processes."""

    def __init__(self, accelerator: Accelerator, sharded: bool) -> None:
        self.accelerator = accelerator
        self.part: int = accelerator.process_index if sharded else 0
        self.parts: int = accelerator.num_processes if sharded else 1
        self.writes = sharded or accelerator.is_main_process
        self.pending: Pending | None = None

    def start(
        self, folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int | None, keep_every: int | None
    ) -> None:
        """Copies the state and begins to write it. `wait` must be called before the next `start`.

        Raises:
            OSError: the folder cannot be made. Raised on all processes.
        """
        aside = on_main(self.accelerator, lambda: checkpoint.begin(folder, step))
        if aside is None:
            return
        self.pending = pending = Pending(step)
        if self.writes:
            copies = {file: self._copy(values) for file, values in tensors.items()}
            if self.accelerator.device.type != "cpu":
                torch.accelerator.synchronize()
            pending.written = _in_thread(lambda: checkpoint.write_part(aside, copies, self.part, self.parts))
        if self.accelerator.is_main_process:
            state = {**state, "shards": self._shards(tensors)} if self.parts > 1 else state

            def finish() -> None:
                with checkpoint.or_nothing(aside):
                    checkpoint.commit(aside, step, self._collect(pending, aside), state)
                checkpoint.prune(folder, keep, step, keep_every)

            pending.whole = _in_thread(finish)

    def wait(self) -> None:
        """Waits for a checkpoint that is being written.

        Raises:
            OSError: it was not written, and its files are deleted. Raised on all processes.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        failed = None if pending.written is None else pending.written.exception()  # waits
        if self.parts > 1:
            from accelerate.utils import gather_object

            failed = next((error for error in gather_object([failed]) if error is not None), None)
            pending.remote_error, pending.until = failed, time.monotonic() + PATIENCE
            if failed is not None and not isinstance(failed, OSError):
                raise failed
        whole = pending.whole
        on_main(self.accelerator, lambda: None if whole is None else whole.result())

    def wait_alone(self) -> None:
        """Waits for the files of this process only, after an error: other processes may not write theirs."""
        pending = self.pending
        for future in () if pending is None else (pending.written, pending.whole):
            if future is not None:
                with suppress(TimeoutError):
                    future.exception(None if self.parts == 1 else SHORT)

    def _collect(self, pending: Pending, aside: Path) -> checkpoint.Files:
        """Returns the files that all processes wrote."""
        assert pending.written is not None
        files = dict(pending.written.result())
        for part in range(1, self.parts):
            while (found := checkpoint.found_part(aside, part)) is None:
                pending.check()
                time.sleep(0.01)
            files |= found
        return files

    def _copy(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies this process's part of the tensors to the host. The first process has the tensors that are not sharded."""
        own = {name: local(value) for name, value in values.items() if self.part == 0 or is_sharded(value)}
        return {name: to_host(value) for name, value in own.items() if value.numel() or self.parts == 1}

    def _shards(self, tensors: Tensors) -> dict[str, dict[str, list[int]]]:
        """Returns the number of rows of each sharded tensor in each process."""

        def counts(rows: int) -> list[int]:
            return [last - first for first, last in (rows_of(rows, part, self.parts) for part in range(self.parts))]

        return {
            file: {name: counts(value.shape[0]) for name, value in values.items() if is_sharded(value)}
            for file, values in tensors.items()
        }


def to_host(value: Tensor) -> Tensor:
    """Copies a tensor to the host's memory, asynchronously from a GPU."""
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return copy.copy_(value.detach(), non_blocking=True)


def _in_thread(work: Callable[[], Result]) -> Future[Result]:
    """Runs a function in a thread. The process waits for it before it exits."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="saving").start()
    return future
