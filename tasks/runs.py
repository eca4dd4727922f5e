"""List run folders in a table: recipe, parts, steps, state and figures.

mmm runs
mmm runs runs/pretrain-1 experiments --out runs.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.run_table import RunSummary, find_runs, format_runs

POSITIONAL = "paths"


@dataclass(frozen=True, kw_only=True)
class Config:
    """List run folders."""

    paths: tuple[str, ...] = ("runs",)
    """Run folders, and folders that contain them at any depth."""

    out: str | None = None
    """JSON file for the table. None: it is printed only."""


def run(config: Config) -> dict[str, Any]:
    """Prints the table; a folder that cannot be read has the reason in its row.

    Raises:
        ValueError: a path is no folder, or there is no run.
    """
    rows = []
    for path in find_runs(config.paths):
        try:
            rows.append(RunSummary.read(path).row())
        except ValueError as error:
            rows.append({"run": str(path), "problem": str(error)})
    if not rows:
        raise ValueError(f"there is no run in {', '.join(config.paths)}; a run folder has a config.yaml")
    print(format_runs(rows))
    if config.out is not None:
        Path(config.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return {"runs": rows}
