"""R7: tests every kind of malformed input among good ones, in trainings on 1, 2 and 4 processes. Each bad file is named exactly
once, with its reason, no good file is named, and the report does not depend on the number of processes.

The kinds are those of tests/malformed.py, whose tests also compare the pixels.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.circumstances import REPOSITORY
from benchmarks.reliability.harness import call, side_by_side, start
from benchmarks.reliability.runs import config_of, picture
from mmm.data.sources.folder import printable

COUNT, QUICK = 25, 2  # files of each kind
GOOD = 4  # good files for each bad one, because eleven bad ones in a row by chance would end a run
ORIGINALS = 64  # number of different good files; the others are copies of them
BATCH = 16


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` files of each kind of image and of video."""
    jobs = {medium: partial(_medium, work / medium, medium, count) for medium in ("image", "video")}
    found = side_by_side(work, jobs)
    return {"media": found, "wrong": [line for one in found.values() for line in one.pop("wrong")]}


def _medium(work: Path, medium: str, count: int) -> dict[str, Any]:
    work.mkdir()
    source, manifest = work / f"{medium}s", work / "manifest.json"
    if any(call(partial(_plant, source, manifest, medium, count), work / "plant.log").wait(3000)):
        raise RuntimeError((work / "plant.log").read_text()[-2000:])
    expected: dict[str, str] = json.loads(manifest.read_text())
    files = sum(1 for _ in source.rglob("*"))
    config = config_of(work, medium, 1, steps=-(-files // BATCH) + 1, batch_size=BATCH, micro_batch_size=4, save_every=10_000)
    data = replace(config.data, source=str(source), max_bad=1.0, holdout=0.0, eval_split="train", deadline=20.0)
    config = replace(config, data=data)
    reports, wrong = {}, list[str]()
    for processes in (1, 2, 4):
        folder = work / f"on_{processes}"
        started = start(config, folder, processes)
        if any(codes := started.wait(3000)):
            wrong.append(f"{medium} on {processes}: ended with {codes}: {started.said()}")
            continue
        lines = [json.loads(line) for line in (folder / "bad_inputs.jsonl").read_text().splitlines()]
        reports[processes] = sorted((line["name"], line["reason"]) for line in lines)
        wrong += [f"{medium} on {processes}: {line}" for line in _compare(reports[processes], expected)]
    wrong += [f"{medium}: the reports differ"] * (len({json.dumps(report) for report in reports.values()}) > 1)
    return {
        "files": files,
        "bad": len(expected),
        "reported": {str(one): len(report) for one, report in reports.items()},
        "wrong": wrong,
    }


def _compare(report: list[tuple[str, str]], expected: dict[str, str]) -> list[str]:
    times = Counter(name for name, _ in report)
    wrong = [f"{name!r} is named {times[name]} times" for name in times if times[name] > 1]
    wrong += [f"{name!r} is bad and was not named" for name in expected if name not in times]
    wrong += [f"{name!r} is good, and was named: {reason}" for name, reason in report if name not in expected]
    return wrong + [f"{name!r}: {why}" for name, why in report if name in expected and not re.search(expected[name], why)]


def _plant(source: Path, manifest: Path, medium: str, count: int) -> None:
    """Writes the good and bad files, and the list of bad files in `manifest`."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    module = importlib.import_module("malformed" if medium == "image" else "malformed_videos")
    kinds = module.IMAGES if medium == "image" else module.VIDEOS
    source.mkdir()
    bad: dict[str, str] = {}
    for kind in kinds.values():
        for seed in range(count):
            case = kind(seed)
            case.place(source / case.name)
            if case.reason is not None:
                bad[printable(case.name)] = case.reason
    manifest.write_text(json.dumps(bad))
    for number in range(GOOD * len(bad)):
        _put_good(source, medium, number)


def _put_good(source: Path, medium: str, number: int) -> None:
    from PIL import Image

    from mmm.data.sources.builtin_videos import write_motion_video

    suffix = "png" if medium == "image" else "mp4"
    path = source / f"good_{number}.{suffix}"
    if number >= ORIGINALS:
        shutil.copyfile(source / f"good_{number % ORIGINALS}.{suffix}", path)
    elif medium == "image":
        Image.fromarray(picture(number)).save(path)
    else:
        write_motion_video(path, "train", number)
