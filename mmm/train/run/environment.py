"""The environment of a run: versions, commit, machine and command."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mmm
from mmm.system.redact import redact_command

if TYPE_CHECKING:
    from accelerate import Accelerator

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "pillow", "safetensors")


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Returns an entry of environment.json."""
    from mmm.train.distributed.setup import precision_of

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_command(sys.argv),
        **fingerprint(accelerator),
        "system": platform.platform(),
        "precision": precision_of(accelerator),
    }


def fingerprint(accelerator: Accelerator) -> dict[str, Any]:
    """Returns properties of the environment outside the config that may change the bits of a resumed run."""
    return {
        "mmm": mmm.__version__,
        "commit": _commit(Path(mmm.__file__).parent),
        "python": platform.python_version(),
        **{f"versions.{name}": _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache  # the commit at the start of this process
def _commit(folder: Path) -> str | None:
    """Returns the commit of the source, with "+changes" if it was edited; None if it is not under git."""
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # fails inside a repository that does not track it
        return _git(folder, "rev-parse", "HEAD") + ("+changes" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
