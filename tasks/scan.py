"""Check a data set before training: read every input completely, in parallel, and report the unreadable ones.

mmm scan /data/kinetics
mmm scan train.csv --workers 16 --out scan.json
mmm scan /data/frames --medium videos       # each folder of images is a video

The exit code is 1 if an input cannot be read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mmm.core.checks import AboveZero, CheckedConfig, Count
from mmm.data import open_data
from mmm.data.datasets.detect import MediumName, describe_source
from mmm.data.loading.scan import scan
from mmm.data.sources.resolve import find_source
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "source"
PRINTED = 20  # number of unreadable inputs that are printed; the report contains all of them


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Check a data set."""

    source: str | None = None
    """The data to check, in the form of data.source of a recipe."""

    root: str | None = None
    """Folder from which relative paths in a list file start. None: the list's own folder."""

    list_columns: tuple[str, ...] = ()
    """Meaning of the columns of a list file, in the form of data.list_columns of a recipe."""

    medium: MediumName | None = None
    """Type of the inputs. None: determined from the files; folders of images are read as images."""

    column: str | None = None
    """Column of videos or images in a table. None: found by type."""

    workers: Count = 4
    """Worker processes."""

    deadline: AboveZero = 300.0
    """Largest number of seconds for reading an input. Slower inputs count as unreadable."""

    out: str = "scan.json"
    """File for the report."""


def run(config: Config) -> dict[str, Any]:
    """Checks all splits; see `check`.

    Raises:
        SystemExit: an input cannot be read; the code is 1.
    """
    report = check(config)
    if any(found["unreadable"] for found in report["splits"].values()):
        raise SystemExit(1)
    return report


def check(config: Config) -> dict[str, Any]:
    """Checks all splits, prints a summary, writes the report and returns it."""
    options = {"deadline": config.deadline, "holdout": 0.0, "list_columns": config.list_columns}
    data = describe_source(config.source, options, medium=config.medium, root=config.root, column=config.column)
    report: dict[str, Any] = {"source": config.source, "medium": data.medium.noun, "splits": {}}
    for split in find_source(data).splits:
        samples = open_data(data, split)
        logger.info("%s: %d %s", split, len(samples), data.medium.noun)
        report["splits"][split] = found = scan(samples, workers=config.workers)
        print(format_summary(split, found))
    write_json(config.out, report)
    print(f"report: {config.out}")
    return report


def format_summary(split: str, found: dict[str, Any]) -> str:
    """Returns a summary of one split."""
    lines = [f"{split}: {found['unreadable']} of {found['inputs']} cannot be read"]
    lines += [f"  {count} x {reason}" for reason, count in found["reasons"].items()]
    lines += [f"    {file['name']}: {file['reason']}" for file in found["files"][:PRINTED]]
    lines += [f"    and {len(found['files']) - PRINTED} more"] * (len(found["files"]) > PRINTED)
    for name, values in found["facts"].items():
        lines.append(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in list(values.items())[:8]))
    return "\n".join(lines)
