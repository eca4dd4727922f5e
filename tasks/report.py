"""Write a report on runs: one HTML file with their options, curves, figures, pictures, clips and differences.

mmm report runs/pretrain-1
mmm report runs/a runs/b --out comparison.html

The file needs no other file and no network. The curves are read off with the pointer or the arrow keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.run_report import write_report
from mmm.evaluate.run_table import RunSummary

POSITIONAL = "runs"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a report on runs."""

    runs: tuple[str, ...] = ()
    """Run folders."""

    out: str | None = None
    """HTML file. None: report.html in the run folder, or in the working directory for several runs."""


def run(config: Config) -> dict[str, Any]:
    """Writes the report.

    Raises:
        ValueError: no run is named, or a folder is no run.
    """
    if not config.runs:
        raise ValueError("no run is named; give run folders: mmm report runs/pretrain-1")
    runs = [RunSummary.read(path) for path in config.runs]
    default = Path(config.runs[0]) / "report.html" if len(runs) == 1 else Path("report.html")
    title = "Run " + runs[0].record.path.resolve().name if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    path = write_report(runs, default if config.out is None else Path(config.out), title=title)
    print(f"report: {path}")
    return {"report": str(path)}
