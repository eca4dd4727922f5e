"""Reads every input of a data set once and reports what cannot be read and what the rest is."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset
from tqdm import tqdm

from mmm.data.errors import Unreadable
from mmm.data.loading.worker_pool import load

PREFETCH = 8  # inputs that a worker has before it: they take unequal times, and are handed out in turn


class Inspected(Protocol):
    """What can be scanned: images and clips."""

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str: ...

    def inspect(self, index: int, /) -> dict[str, Any]: ...


class Finding(NamedTuple):
    """What was found of one input: facts, or why it cannot be read."""

    name: str
    reason: str | None
    facts: dict[str, Any]


class EachOnce(Dataset[Any]):
    """Does something with each input in the workers, whatever it is; what cannot be read is a finding like any other.

    Args:
        name: an input's name by its number.
        work: what is done, with a number, and what comes of it.
    """

    def __init__(self, name: Callable[[int], str], work: Callable[[int], dict[str, Any]]) -> None:
        self.name, self.work = name, work

    def __getitems__(self, request: list[int]) -> list[Finding]:
        return [self._one(index) for index in request]

    def _one(self, index: int) -> Finding:
        try:
            return Finding(self.name(index), None, self.work(index))
        except Unreadable as error:
            return Finding(self.name(index), str(error), {})


def each_once(views: EachOnce, count: int, *, workers: int, title: str) -> Iterator[Finding]:
    """The findings of all inputs in order, behind a progress bar.

    Args:
        views: what is done with an input.
        count: of inputs.
        workers: processes; 0 works in this one, without deadlines.
        title: of the bar.
    """
    bad = 0
    with tqdm(total=count, desc=title, unit="", dynamic_ncols=True) as bar:
        for findings in load(views, lambda: ([index] for index in range(count)), workers, prefetch=PREFETCH):
            for finding in findings:
                bad += finding.reason is not None
                bar.set_postfix(unreadable=bad, refresh=False)
                bar.update()
                yield finding


def scan(samples: Inspected, *, workers: int) -> dict[str, Any]:
    """Inspects every input.

    Args:
        samples: a part of a data set.
        workers: processes.

    Returns:
        how many inputs there are, those that cannot be read with their reasons, and of the others the counts of each text or
        truth among their facts, and the least, middle and largest of each number.
    """
    findings = list(each_once(EachOnce(samples.name, samples.inspect), len(samples), workers=workers, title="scan"))
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
