"""Inputs that cannot be read: each is named once with its reason, and too many of them stop the run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmm.system.files import Journal

logger = logging.getLogger(__name__)


class Unreadable(Exception):  # noqa: N818 (it names the input, not the act)
    """One input that cannot be read; its text is a reason of one line that does not differ from run to run."""


class Problem(NamedTuple):
    """An unreadable input: its index in the opened data, its name (a path, or a row of a table), and why."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls
    name: str
    reason: str


class BadInputs:
    """Collects the problems of a run, whichever process met them.

    Args:
        path: `bad_inputs.jsonl`, one line an input; what it already holds (from before a resume) counts. None writes nothing.
        write: whether this process writes it; of several that share a run, one does.
        total: the number of samples in the data.
        max_bad: the largest share of `total` that may be unreadable.
    """

    def __init__(self, path: Path | None, total: int, max_bad: float, *, write: bool = True) -> None:
        self.path, self.total, self.max_bad, self.write = path, total, max_bad, write
        self.found: dict[str, Problem] = {}  # by name
        self.journal = None if path is None else Journal(path)
        if self.journal is not None:
            self.found = {problem.name: problem for problem in (Problem(**line) for line in self.journal.lines())}
            if write:
                self.journal.cut()

    def add(self, problems: Iterable[Problem]) -> None:
        """Records the problems that are new.

        Raises:
            ValueError: once more than the allowed share of the data is unreadable.
        """
        for problem in sorted(problems):  # so that the report is the same, whichever process met them
            if problem.name in self.found:
                continue
            self.found[problem.name] = problem
            logger.warning("cannot read %s: %s", problem.name, problem.reason)
            if self.journal is not None and self.write:
                self.journal.append(problem._asdict())
        if len(self.found) > self.max_bad * self.total:
            raise ValueError(self.report() + f", more than data.max_bad {self.max_bad} allows; repair them or raise it")

    def report(self) -> str:
        """One line for the run's end."""
        if not self.found:
            return "every input could be read"
        first = self.found[min(self.found)]
        where = "" if self.path is None else f", all in {self.path}"
        return f"{len(self.found)} of {self.total} inputs cannot be read ({first.name}: {first.reason}{where})"
