"""Where this user's programs keep what they can make again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder of mmm in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmm"
