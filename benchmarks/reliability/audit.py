"""Detects forbidden actions of a process with Python's audit hook and with the kernel's inotify events for canary files.

The hook records opened files, started programs, connections, compiled and executed code, and classes that a pickle names, but not
the files that a C library opens. The kernel reports those if they are canary files: files that no action has a reason to open.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORBIDDEN = (
    *(
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "os.startfile",
        "pty.spawn",
        "subprocess.Popen",
    ),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"),
    *("pickle.find_class", "ftplib.connect", "smtplib.connect", "webbrowser.open"),
)
WRITING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.rmtree")
SYSTEM_PATHS = (
    "/proc",
    "/sys",
    "/dev",
    "/usr/lib",
    "/usr/share",
    "/lib",
    "/etc/mime.types",
    "/etc/ssl",
    "/etc/localtime",
    "/etc/ld.so.cache",
)
HOSTILE_MODULE = "hostile_"  # prefix of the names of the modules in hostile inputs
IN_OPEN = 0x20  # event of inotify: a file was opened


class Audit:
    """Records forbidden actions inside its `with` block. A hook cannot be removed, so there is one per process."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.root: Path | None = None
        self.readable: tuple[str, ...] = ()
        self.writable: tuple[str, ...] = ()

    @classmethod
    def installed(cls) -> Audit:
        """Returns the hook of this process."""
        if not _INSTALLED:
            _INSTALLED.append(cls())
            sys.addaudithook(_INSTALLED[0]._on_event)
        return _INSTALLED[0]

    @contextmanager
    def record(self, root: Path, *caches: Path) -> Iterator[list[str]]:
        """Yields the list of forbidden actions recorded so far.

        Args:
            root: folder whose files may be read and written; outside it only Python's own files may be read.
            caches: other folders whose files may be read and written.
        """
        repository = Path(__file__).resolve().parents[2]
        packages = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
        self.readable = (*map(str, caches), str(repository), sys.prefix, sys.base_prefix, *packages, *SYSTEM_PATHS)
        self.recorded, self.root, self.writable = [], root, (str(root), *map(str, caches), "/dev", "/proc")
        try:
            yield self.recorded
        finally:
            self.root = None

    def _on_event(self, event: str, values: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        root, self.root = self.root, None  # the hook's own actions are not recorded
        try:
            if description := self._describe_if_forbidden(event, values, str(root)):
                self.recorded.append(description[:300])
        finally:
            self.root = root

    def _describe_if_forbidden(self, event: str, values: tuple[Any, ...], root: str) -> str:
        """Returns a description of an event if it is forbidden, else an empty string."""
        if event in FORBIDDEN:
            return f"{event} {values!r}"
        first = values[0] if values else None
        if event == "open":
            return self._describe_open_if_forbidden(first, values, root)
        if event in WRITING and isinstance(first, (str, bytes, os.PathLike)):
            return "" if _below(first, self.writable) else f"{event} {first!r}"
        if event == "import" and str(first).startswith(HOSTILE_MODULE):
            return f"import {first}"
        if event == "exec" and str(getattr(first, "co_filename", "")).startswith(root):
            return f"exec of {first.co_filename}"
        if event == "compile" and len(values) > 1 and str(values[1]).startswith(root):
            return f"compile of {values[1]}"
        if event == "ctypes.dlopen" and str(first).startswith(root):
            return f"dlopen of {first}"
        return ""

    def _describe_open_if_forbidden(self, path: Any, values: tuple[Any, ...], root: str) -> str:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return ""  # an already open descriptor
        mode, flags = values[1], values[2]
        writing = any(letter in str(mode or "") for letter in "wax+") or bool(
            int(flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        allowed = self.writable if writing else (root, *self.readable)
        return "" if _below(path, allowed) else f"open {path!r} {mode!r}"


_INSTALLED: list[Audit] = []


def _below(path: Any, folders: tuple[str, ...]) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in map(os.path.realpath, folders))


class CanaryWatch:
    """Reports whether a file in a folder of canary files was opened."""

    def __init__(self, folder: Path) -> None:
        self._kernel = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._kernel.inotify_init1(os.O_NONBLOCK)
        if self._descriptor < 0 or self._kernel.inotify_add_watch(self._descriptor, os.fsencode(folder), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def opened(self) -> bool:
        """Returns whether a file was opened since the last call."""
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Ends the watch."""
        os.close(self._descriptor)
