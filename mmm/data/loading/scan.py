"""Processes every input of a data set once in worker processes, and reports facts about the inputs and which of them cannot be
read."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset
from tqdm import tqdm

from mmm.data.config import DataConfig
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_pool import TIMEOUT, cores, load

PREFETCH = 8  # inputs that each worker gets in advance: they take unequal times, and results are returned in order


class Inspectable(Protocol):
    """A data set that can be scanned: images or clips."""

    @property
    def config(self) -> DataConfig: ...

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str: ...

    def inspect(self, index: int, /) -> dict[str, Any]: ...


class Finding(NamedTuple):
    """The result for one input: facts, or the reason why it cannot be read."""

    name: str
    reason: str | None
    facts: dict[str, Any]


class _Inputs(Dataset[Any]):
    """Inputs for `load`, whose batches are lists of findings."""

    def __init__(self, name: Callable[[int], str], work: Callable[[int], dict[str, Any]]) -> None:
        self.name, self.work = name, work

    def __getitems__(self, request: list[int]) -> list[Finding] | ValueError:
        """Processes inputs in a worker. Returns an error that ends the work instead of raising it, because the parent would get a
        raised error as a traceback."""
        try:
            return [self._find(index) for index in request]
        except ValueError as error:
            return error

    def _find(self, index: int) -> Finding:
        try:
            return Finding(self.name(index), None, self.work(index))
        except Unreadable as error:
            return Finding(self.name(index), str(error), {})


def map_inputs(
    name: Callable[[int], str],
    work: Callable[[int], dict[str, Any]],
    count: int,
    *,
    workers: int | None,
    title: str,
    timeout: float | None = TIMEOUT,
) -> Iterator[Finding]:
    """Yields the findings for all inputs in order, behind a progress bar.

    Args:
        name: returns an input's name by its number.
        work: processes an input by its number and returns facts. May raise Unreadable, which becomes a finding, and ValueError,
            which is raised here.
        count: number of inputs.
        workers: number of worker processes. 0: this process, without deadlines. None: one for each core, or this process if one
            is enough.
        title: label of the bar.
        timeout: largest number of seconds between two findings, which must exceed the time for an input. None: no limit.

    Raises:
        RuntimeError: no finding arrives for `timeout` seconds.
    """
    bad = 0
    if workers is None:
        workers = min(cores(), count) if min(cores(), count) > 1 else 0
    with tqdm(total=count, desc=title, unit="", dynamic_ncols=True) as bar:
        requests = lambda: ([index] for index in range(count))  # noqa: E731
        for findings in load(_Inputs(name, work), requests, workers, prefetch=PREFETCH, timeout=timeout):
            for finding in findings:
                bad += finding.reason is not None
                bar.set_postfix(unreadable=bad, refresh=False)
                bar.update()
                yield finding


def scan(samples: Inspectable, *, workers: int) -> dict[str, Any]:
    """Inspects every input.

    Args:
        samples: a data set.
        workers: number of worker processes.

    Returns:
        `inputs` and `unreadable`: counts. `reasons`: counts by reason. `files`: each unreadable input with its reason. `facts` of
        the readable inputs: the count of each text or truth value, and the least, median (`middle`) and largest value of each
        number.
    """
    timeout = samples.config.deadline + TIMEOUT
    findings = list(map_inputs(samples.name, samples.inspect, len(samples), workers=workers, title="scan", timeout=timeout))
    bad = [finding for finding in findings if finding.reason is not None]
    return {
        "inputs": len(findings),
        "unreadable": len(bad),
        "reasons": dict(Counter(finding.reason for finding in bad).most_common()),
        "facts": _facts([finding.facts for finding in findings if finding.reason is None]),
        "files": [{"name": finding.name, "reason": finding.reason} for finding in bad],
    }


def _facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if isinstance(values[0], (str, bool)):
            facts[name] = {str(value): count for value, count in Counter(values).most_common()}
        else:
            facts[name] = {"least": min(values), "middle": statistics.median(values), "largest": max(values)}
    return facts
