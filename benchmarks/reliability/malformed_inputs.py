"""R7: tests every kind of malformed input among good ones, in trainings on 1, 2 and 4 processes. Each bad file is named exactly
once, with its reason, no good file is named, and the report does not depend on the number of processes.

The kinds are those of tests/malformed.py, whose tests also compare the pixels.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data.malformed import KINDS, compare_report, write_good_file, write_kinds
from benchmarks.reliability.harness import run_jobs, start, start_function
from benchmarks.reliability.runs import make_config

COUNT, QUICK = 25, 2  # files of each kind
GOOD = 4  # good files for each bad one, because eleven bad ones in a row by chance would end a run
ORIGINALS = 64  # number of different good files; the others are copies of them
BATCH = 16


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` files of each kind of image and of video."""
    jobs = {medium: partial(_train, work / medium, medium, count) for medium in ("image", "video")}
    results, failures = run_jobs(work, jobs)
    return {"media": results, "failures": failures}


def _train(work: Path, medium: str, count: int) -> dict[str, Any]:
    """Compares the reports of trainings on 1, 2 and 4 processes with the list of bad files."""
    work.mkdir()
    source, reasons = work / f"{medium}s", work / "reasons.json"
    if any(start_function(partial(_write_files, source, reasons, medium, count), work / "files.log").wait(3000)):
        raise RuntimeError((work / "files.log").read_text()[-2000:])
    expected: dict[str, str] = json.loads(reasons.read_text())
    files = sum(1 for _ in source.rglob("*"))
    config = make_config(work, medium, 1, steps=-(-files // BATCH) + 1, batch_size=BATCH, micro_batch_size=4, save_every=10_000)
    data = replace(config.data, source=str(source), max_bad=1.0, holdout=0.0, eval_split="train", deadline=20.0)
    config = replace(config, data=data)
    reports, failures = dict[int, list[tuple[str, str]]](), list[str]()
    for processes in (1, 2, 4):
        folder = work / f"on_{processes}"
        started = start(config, folder, processes)
        if any(codes := started.wait(3000)):
            failures.append(f"{medium} on {processes}: ended with {codes}: {started.output()}")
            continue
        lines = [json.loads(line) for line in (folder / "bad_inputs.jsonl").read_text().splitlines()]
        reports[processes] = sorted((line["name"], line["reason"]) for line in lines)
        failures += [f"{medium} on {processes}: {line}" for line in compare_report(reports[processes], expected)]
    failures += [f"{medium}: the reports differ"] * (len({json.dumps(report) for report in reports.values()}) > 1)
    return {
        "files": files,
        "bad": len(expected),
        "reported": {str(processes): len(report) for processes, report in reports.items()},
        "failures": failures,
    }


def _write_files(source: Path, reasons: Path, medium: str, count: int) -> None:
    """Writes the bad and the good files, and the reasons of the bad ones."""
    source.mkdir()
    expected, _ = write_kinds(source, KINDS[medium], count)
    reasons.write_text(json.dumps(expected))
    files = GOOD * len(expected)
    originals = [write_good_file(source, medium, number) for number in range(min(files, ORIGINALS))]
    for number in range(len(originals), files):
        original = originals[number % ORIGINALS]
        shutil.copyfile(original, original.with_stem(f"good_{number}"))
