"""Encode a set of videos once for training, so that they are small and clips can be read fast (8 times as fast as from 720p).

    mmm prepare_video /data/kinetics --out /data/kinetics_256 --workers 32
    mmm prepare_video train.csv --out /data/ssv2_256 --short_side 240

The structure of folders is kept. For a list file, a new list is written next to the videos. For a table, a folder is made for each
class. Videos that are already encoded are skipped, so that the same command continues after an interruption. Videos that cannot be
decoded are left out and reported. If a video cannot be encoded or written, the task ends.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.core.checks import AboveZero, Count
from mmm.data import Clips, ClipsConfig, open_data
from mmm.data.decode.video import require
from mmm.data.decode.video.encode import EncodeConfig, reencode
from mmm.data.loading.scan import Finding, map_inputs
from mmm.data.loading.worker_pool import TIMEOUT
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.base import Source
from mmm.data.sources.file_list import ListFile, RangeColumn
from mmm.data.sources.folder import FileColumn
from mmm.data.sources.resolve import find_source
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "source"
REPORT = "prepare_video.json"


@dataclass(frozen=True, kw_only=True)
class Config(EncodeConfig):
    """Encode a set of videos for training."""

    source: str | None = None
    """The videos, in the form of data.source of a recipe."""

    root: str | None = None
    """Folder from which relative paths in a list file start. None: the list's own folder."""

    list_columns: tuple[str, ...] = ()
    """Meaning of the columns of a list file, in the form of data.list_columns of a recipe."""

    out: str | None = None
    """Folder for the encoded videos and the report."""

    video_column: str | None = None
    """Column of videos in a table. None: found by type."""

    label_column: str | None = None
    """Column of labels in a table. None: found by name or type."""

    workers: Count = 4
    """Worker processes, with one thread each."""

    deadline: AboveZero = 3600.0
    """Largest number of seconds for encoding a video. Slower videos are left out."""


def run(config: Config) -> dict[str, Any]:
    """Encodes all splits and writes the report."""
    if config.out is None:
        raise ValueError("out is not set; give the folder for the encoded videos")
    require("av")
    names = {name: getattr(config, name) for name in ("source", "root", "list_columns", "video_column", "label_column")}
    data = ClipsConfig(**names, holdout=0.0)
    source, out = find_source(data), Path(config.out)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(EncodeConfig)}
    report: dict[str, Any] = {"source": config.source, "settings": settings, "splits": {}}
    _check_settings(out, settings)
    for split in source.splits:
        clips = open_data(data, split)
        assert isinstance(clips, Clips)
        if isinstance(clips.table.column, RangeColumn):
            raise ValueError(
                f"source {config.source} lists parts of videos, and this task encodes whole videos; give a list of their paths"
            )
        targets = target_paths(clips, source, split, out)
        options: dict[str, Any] = {"workers": config.workers, "title": split, "timeout": config.deadline + TIMEOUT}
        findings = list(map_inputs(clips.name, _work(clips, targets, config), len(clips), **options))
        report["splits"][split] = found = summarise(findings)
        if isinstance(source, ListFile):
            _write_list(out / f"{split}.csv", clips, targets, findings)
        write_json(out / REPORT, report)
        print(format_summary(split, found))
    print(f"report: {out / REPORT}")
    return report


def target_paths(clips: Clips, source: Source, split: str, out: Path) -> list[Path]:
    """Returns the path of each encoded video. Rows of the same file have the same path.

    Raises:
        ValueError: two files would have the same path.
    """
    has_paths = isinstance(clips.table.column, FileColumn)  # the path of a file begins with the folder of its split
    top = out if has_paths or source.splits == ("train",) else out / split
    names = [_relative(clips, index) for index in range(len(clips))]
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    pairs = list(zip(names, stems, strict=True))
    taken = Counter(stem for _, stem in set(pairs))  # a.avi beside a.mp4 becomes a.avi.mp4
    targets = [top / f"{name if taken[stem] > 1 else stem}.mp4" for name, stem in pairs]
    origins: dict[Path, str] = {}
    for index, target in enumerate(targets):
        if (first := origins.setdefault(target, clips.name(index))) != clips.name(index):
            raise ValueError(f"{first} and {clips.name(index)} would both be encoded to {target}; rename one of them")
    return targets


def _relative(clips: Clips, index: int) -> str:
    """Returns the path of a video below the folder of the source, with its old extension. For a row of a table, it consists of the
    name of the class and the number of the row."""
    labels = clips.table.labels
    if isinstance(clips.table.column, FileColumn):
        parts = ("_up" if part == ".." else part for part in Path(clips.name(index)).parts)
        return "/".join(part for part in parts if part not in ("/", "."))
    row = int(clips.rows[index])
    folder = "" if labels is None or clips.classes is None else clips.classes[int(labels[row])].replace("/", "_") + "/"
    return f"{folder}{row:08d}.bin"


def _work(clips: Clips, targets: list[Path], config: Config) -> Callable[[int], dict[str, Any]]:
    """Returns the function that encodes a video in a worker."""

    def work(index: int) -> dict[str, Any]:
        source, target = clips.raw(index), targets[index]
        if target.exists() and (isinstance(source, bytes) or target.stat().st_mtime >= source.stat().st_mtime):
            return {"skipped": True, "bytes_after": target.stat().st_size}
        target.parent.mkdir(parents=True, exist_ok=True)
        with watched(index, config.deadline):
            return reencode(source, target, config)

    return work


def summarise(findings: list[Finding]) -> dict[str, Any]:
    """Returns counts, sizes in bytes, and the videos that could not be encoded."""
    done = [finding.facts for finding in findings if finding.reason is None]
    return {
        "videos": len(findings),
        "encoded": sum("skipped" not in facts for facts in done),
        "done_before": sum("skipped" in facts for facts in done),
        "bytes_before": sum(facts.get("bytes_before", 0) for facts in done),
        "bytes_after": sum(facts["bytes_after"] for facts in done if "skipped" not in facts),
        "left_out": [{"name": finding.name, "reason": finding.reason} for finding in findings if finding.reason is not None],
    }


def format_summary(split: str, found: dict[str, Any]) -> str:
    """Returns a summary of one split."""
    sizes = f"{found['bytes_before'] / 2**20:.1f} MiB became {found['bytes_after'] / 2**20:.1f}"
    lines = [f"{split}: {found['encoded']} of {found['videos']} videos encoded ({sizes}), {found['done_before']} done before"]
    return "\n".join(lines + [f"  left out: {file['name']}: {file['reason']}" for file in found["left_out"]])


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if the folder contains videos that were encoded with other settings."""
    if (out / REPORT).exists():
        other = json.loads((out / REPORT).read_text(encoding="utf-8"))["settings"]
        differing = [name for name in settings if other.get(name) != settings[name]]
        if differing:
            name = differing[0]
            raise ValueError(f"out {out} was encoded with {name} {other.get(name)}, not {settings[name]}; give another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / REPORT, {"settings": settings})


def _write_list(path: Path, clips: Clips, targets: list[Path], findings: list[Finding]) -> None:
    """Writes a list of the encoded videos with their labels."""
    labels = clips.labels()
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for index, (target, finding) in enumerate(zip(targets, findings, strict=True)):
            if finding.reason is None:
                word = [] if labels is None or clips.classes is None else [clips.classes[int(labels[index])]]
                writer.writerow([target.relative_to(path.parent).as_posix(), *word])
