"""Write the report of one or several runs: one HTML page with curves, evaluations, pictures and differences, for any browser.

mmm report runs/pretrain-1
mmm report runs/a runs/b --out comparison.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmm.evaluate.builtin  # noqa: F401 - registers the evaluations, which contain the titles of results
from mmm.core.checks import CheckedConfig
from mmm.evaluate.report.page import write_report
from mmm.evaluate.run_results import Record

POSITIONAL = "runs"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Write a report."""

    runs: tuple[str, ...] = ()
    """Folders of runs."""

    out: str | None = None
    """HTML file to write. None: report.html in the run folder, or in the working directory for several runs."""


def run(config: Config) -> dict[str, Any]:
    """Writes the page.

    Raises:
        ValueError: no run is given, or a folder is not a run.
    """
    if not config.runs:
        raise ValueError("runs is empty; give one or more folders of runs")
    records = [Record.read(path) for path in config.runs]
    default = records[0].path / "report.html" if len(records) == 1 else Path("report.html")
    path = default if config.out is None else Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = write_report(records, path)
    print(f"report: {path}")
    return found
