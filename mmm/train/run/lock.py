"""The lock of a run folder: a second training in the same folder would mix its checkpoints with those of the first."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock


class RunLock:
    """Locks a folder until `release` or the end of this process.

    The file `lock` names the process that holds it: host, process id and start time (process ids are reused). A lock whose process
    has ended is replaced. The state of a process on another host is unknown; in this case the user must decide.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            ValueError: another running process holds the lock.
        """
        self.path = folder / "lock"
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time()}
        # checking and taking are one atomic step: of several starts that find the same stale lock, only one gets it
        with FileLock(folder / ".lock"):
            self._refuse_if_held(folder)
            self.path.write_text(json.dumps(self.owner))

    def release(self) -> None:
        """Unlocks the folder, if this process still holds the lock."""
        if self._read() == self.owner:
            self.path.unlink()

    def _refuse_if_held(self, folder: Path) -> None:
        if owner := find_holder(folder):
            raise ValueError(
                f"run folder {folder} is in use by {owner}; give another --folder, or delete {self.path} if that process is dead"
            )

    def _read(self) -> dict[str, Any] | None:
        return _read(self.path)


def find_holder(folder: Path) -> str | None:
    """Returns the process that holds the lock of a folder, for a message, or None.

    A process on another host counts as alive, because its state is unknown.
    """
    owner = _read(folder / "lock")
    if owner is None or (owner["host"] == socket.gethostname() and not _alive(owner["pid"], owner["began"])):
        return None
    return f"process {owner['pid']} on {owner['host']}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):  # a partly written lock has no holder
        return None
    return owner if isinstance(owner, dict) and owner.keys() == {"host", "pid", "began"} else None


def _alive(pid: int, began: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - began) < 2  # seconds; the reported time changes if the clock is set
    except psutil.Error:
        return False
