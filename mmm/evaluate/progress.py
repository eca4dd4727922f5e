"""Progress of an evaluation: a bar on a terminal, otherwise a log line every ten seconds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TypeVar

from tqdm import tqdm

from mmm.train.progress import shows_bar

logger = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS = 10.0  # between two log lines


def progress(items: Iterable[T], total: int, what: str, count: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Yields the items, and shows the progress in the main process.

    Args:
        total: sum of the counts.
        what: name of the work, for instance "features of images".
        count: returns the share of an item in the total.
    """
    main = os.environ.get("RANK", "0") == "0"
    done, shown = 0, perf_counter()
    terminal = shows_bar()
    with tqdm(total=total, desc=what, leave=False, delay=1.0, disable=not (main and terminal), dynamic_ncols=True) as bar:
        for item in items:
            yield item
            done += count(item)
            bar.update(count(item))
            if not terminal and main and done < total and perf_counter() - shown >= SECONDS:
                shown = perf_counter()
                logger.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")
