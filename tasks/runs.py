"""List runs in one table: task, parts, steps, state and results.

mmm runs
mmm runs /data/experiments --sort psnr
mmm runs --out runs.json
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmm.core.checks import CheckedConfig, suggest
from mmm.evaluate.compare_runs import columns, figures
from mmm.evaluate.run_results import Record
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "folder"

SIDE = ("steps", "samples", "seconds")  # figures that are shown in a separate column, or not at all


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """List runs."""

    folder: str = "runs"
    """Folder that contains runs, at any depth."""

    sort: str | None = None
    """Result to sort by, the largest first, for instance psnr. None: the newest first."""

    out: str | None = None
    """File for the table, as JSON. None: no file."""


def run(config: Config) -> dict[str, Any]:
    """Prints the table and returns its rows.

    Raises:
        ValueError: the folder does not exist or contains no run, or no run has the result to sort by.
    """
    root = Path(config.folder)
    if not root.is_dir():
        raise ValueError(f"folder {root} does not exist")
    records = list(read_all(root))
    if not records:
        raise ValueError(f"folder {root} holds no run")
    rows = [describe(record) for record in records]
    if config.sort is None:
        rows.sort(key=lambda row: row["changed"], reverse=True)
    else:
        known = sorted({name for row in rows for name in row["figures"]})
        if config.sort not in known:
            raise ValueError(f"sort {config.sort}: no run has this figure{suggest(config.sort, known)}")
        rows.sort(key=lambda row: row["figures"].get(config.sort, float("-inf")), reverse=True)
    print(format_rows(rows, records))
    if config.out is not None:
        write_json(config.out, rows)
        print(f"table: {config.out}")
    return {"runs": rows}


def read_all(root: Path) -> Iterator[Record]:
    """Reads all runs below a folder. A run that cannot be read is named in a warning."""
    for path, folders, files in os.walk(root):
        folders.sort()
        if "config.yaml" in files:
            folders.clear()  # a run folder contains no other run
            try:
                yield Record.read(path)
            except ValueError as error:
                logger.warning("left out: %s", error)


def describe(record: Record) -> dict[str, Any]:
    """Returns the row of a run, with plain values."""
    times = [file.stat().st_mtime for file in record.path.iterdir() if file.is_file()]
    return {
        "run": str(record.path),
        "parts": record.parts,
        "source": record.config.get("data.source"),
        "step": record.steps,
        "planned": record.planned,
        "state": record.state,
        "changed": datetime.fromtimestamp(max(times)).isoformat(timespec="minutes"),
        "figures": {name: value for name, value in figures(record).items() if value is not None and name not in SIDE},
    }


def format_rows(rows: Sequence[dict[str, Any]], records: Sequence[Record]) -> str:
    """Returns the table as text. Parts that all runs share are listed once, below it."""
    shown = {name: column for name, column in columns(records).items() if name not in SIDE}
    shown = {name: column for name, column in shown.items() if any(name in row["figures"] for row in rows)}
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["parts"]))
    shared = [kind for kind in kinds if len({row["parts"].get(kind) for row in rows}) == 1]
    table = [["run", "changed", "state", "updates", "parts", *(column.title for column in shown.values())]]
    for row in rows:
        parts = " ".join(name for kind, name in row["parts"].items() if kind not in shared)
        planned = "?" if row["planned"] is None else f"{row['planned']:,}"
        cells = [column.form.format(row["figures"][name]) if name in row["figures"] else "-" for name, column in shown.items()]
        table.append([row["run"], row["changed"], row["state"], f"{row['step']:,}/{planned}", parts, *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    if shared and len(rows) > 1:
        lines.append(f"all: {' '.join(rows[0]['parts'].get(kind, '-') for kind in shared)}")
    return "\n".join(lines)
