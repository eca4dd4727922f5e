"""Check a data set before training: read every input to its end, in parallel, and report what cannot be read.

mmm scan /data/kinetics
mmm scan train.csv --workers 16 --out scan.json
mmm scan /data/imagenet --medium images
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmm.data import ClipsConfig, DataConfig, ImagesConfig, open_data
from mmm.data.loading.scan import scan
from mmm.data.sources.resolve import find_source

logger = logging.getLogger(__name__)

POSITIONAL = "source"
SHOWN = 20  # unreadable inputs that are printed; the report has all


@dataclass(frozen=True, kw_only=True)
class Config:
    """Check a data set."""

    source: str | None = None
    """What to check: as data.source of a recipe."""

    medium: Literal["videos", "images"] = "videos"
    """What it holds."""

    column: str | None = None
    """The table's column of videos or images; none finds it."""

    workers: int = 4
    """Processes."""

    deadline: float = 300.0
    """Seconds after which an input that is still being read is given up."""

    out: str = "scan.json"
    """The report."""


def run(config: Config) -> dict[str, Any]:
    """Checks all splits, prints a summary and writes the report."""
    data = data_config(config)
    report: dict[str, Any] = {"source": config.source, "splits": {}}
    for split in find_source(data).splits:
        samples = open_data(data, split)
        logger.info("%s: %d %s", split, len(samples), config.medium)
        report["splits"][split] = found = scan(samples, workers=config.workers)
        print(describe(split, found))
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    Path(config.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {config.out}")
    return report


def data_config(config: Config) -> DataConfig:
    """The data that is meant, every input of it."""
    if config.medium == "images":
        return ImagesConfig(source=config.source, image_column=config.column, deadline=config.deadline, holdout=0.0)
    return ClipsConfig(source=config.source, video_column=config.column, deadline=config.deadline, holdout=0.0)


def describe(split: str, found: dict[str, Any]) -> str:
    """A summary for a person."""
    lines = [f"{split}: {found['unreadable']} of {found['inputs']} cannot be read"]
    lines += [f"  {count} x {reason}" for reason, count in found["reasons"].items()]
    lines += [f"    {file['name']}: {file['reason']}" for file in found["files"][:SHOWN]]
    lines += [f"    and {len(found['files']) - SHOWN} more"] * (len(found["files"]) > SHOWN)
    for name, values in found["facts"].items():
        lines.append(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in list(values.items())[:8]))
    return "\n".join(lines)
