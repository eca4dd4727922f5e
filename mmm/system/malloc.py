"""The memory that a step or a picture frees is kept for the next one, and not given back to the system and asked for again."""

from __future__ import annotations

import ctypes
import logging
import platform

logger = logging.getLogger(__name__)

# of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 2**25  # bytes from which a block is the system's own, and given back; glibc takes no larger number


def keep_memory() -> bool:
    """Tells glibc's allocator to keep what is freed, and whether it did.

    By default it hands every large tensor's pages back when the tensor is freed, and the system clears new ones for the next: of a
    ViT-B step on a CPU 170,000 page faults, a tenth of the time; as much of what it takes to read a photograph of 1600 x 1200 at
    half its size (measured, docs/performance.md). The process holds no more at its peak; between steps it holds what the peak was.
    Blocks of 32 MiB and more are given back still: kept, one that a lying file asked for would stay for good, and the process could
    not fork any more (seen: 47 GB, never touched).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    done = bool(libc.mallopt(MMAP_THRESHOLD, LARGEST)) and bool(libc.mallopt(TRIM_THRESHOLD, -1))
    logger.debug("freed memory is kept: %s", done)
    return done
