"""Unreadable inputs: each is reported once with its reason, and a run with too many of them stops."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from mmm.system.files import Journal

logger = logging.getLogger(__name__)


class Unreadable(Exception):  # noqa: N818 (named for the input)
    """An input cannot be read. The message is one line, and the same in every run."""


class Problem(NamedTuple):
    """An unreadable input: its index in the data set, its name (a path, or a row of a table), and the reason."""

    index: int  # type: ignore[assignment]  # tuple.index is not used
    name: str
    reason: str


class BadInputs:
    """Collects the unreadable inputs of a run from all its processes.

    Args:
        path: `bad_inputs.jsonl`, one line for each input, including those from before a resume. None: no file.
        total: number of samples in the data.
        max_bad: largest share of `total` that may be unreadable.
        write: whether this process writes the file; only one process of a run does.

    Attributes:
        found: the problems that have been shared between all processes, by name.
        pending: the problems of this process that have not been shared yet. Loops and evaluations append to it.
    """

    def __init__(self, path: Path | None, total: int, max_bad: float, *, write: bool = True) -> None:
        self.path, self.total, self.max_bad, self.write = path, total, max_bad, write
        self.found: dict[str, Problem] = {}
        self.pending: list[Problem] = []
        self.journal = None if path is None else Journal(path)
        if self.journal is not None:
            self.found = {problem.name: problem for problem in (Problem(**line) for line in self.journal.lines())}
            if write:
                self.journal.cut()

    def note(self, problems: Iterable[Problem]) -> None:
        """Collects the problems of a training batch.

        Raises:
            ValueError: this process has found more problems than `max_bad` allows.
        """
        new = list(problems)
        self.pending += new
        if new and self._exceeds(self.found.keys() | {problem.name for problem in self.pending}):
            self.add(self.pending)  # before the run ends, so that the file names them all
            self.check()

    def share(self) -> None:
        """Exchanges the pending problems between all processes and records them. All processes must call it together."""
        from accelerate.utils import gather_object

        self.add(gather_object(self.pending))
        self.pending.clear()

    def add(self, problems: Iterable[Problem]) -> None:
        """Records the problems that are new."""
        for problem in sorted(problems):  # so that the report does not depend on the process that read them
            if problem.name in self.found:
                continue
            self.found[problem.name] = problem
            logger.warning("cannot read %s: %s", problem.name, problem.reason)
            if self.journal is not None and self.write:
                self.journal.append(problem._asdict())

    def check(self) -> None:
        """Raises ValueError if more than the allowed share of the data is unreadable."""
        if self._exceeds(self.found.keys()):
            # a resume counts the listed inputs again, without reading them
            repair = "repair them" if self.path is None else f"repair them and delete {self.path}"
            cure = f"{repair} (mmm scan names all), or raise data.max_bad"
            raise ValueError(f"{self.report()}, more than data.max_bad {self.max_bad} allows; {cure}")

    def finish(self) -> None:
        """Shares and checks the problems at the end of a run, and logs their summary; all processes call it together."""
        self.share()
        self.check()
        logger.info("%s", self.report())

    def report(self) -> str:
        """Summarizes the problems in one line, for the end of a run."""
        if not self.found:
            return "every input could be read"
        first = self.found[min(self.found)]
        where = "" if self.path is None else f", all in {self.path}"
        return f"{len(self.found)} of {self.total} inputs cannot be read ({first.name}: {first.reason}{where})"

    def _exceeds(self, names: Collection[str]) -> bool:
        return len(names) > self.max_bad * self.total
