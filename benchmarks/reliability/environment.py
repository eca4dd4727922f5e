"""Description of the software and the machine of a test, stored with its results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from benchmarks.measure import commit, processor

PACKAGES = ("torch", "accelerate", "timm", "datasets", "av", "pillow", "safetensors")


def describe_environment() -> dict[str, Any]:
    """Returns commit, versions and type of machine, but no host name."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
        },
    }
