"""Tests every kind of malformed image and video among good files: which are read, which are rejected, and the cost of each.

    python -m benchmarks.data.malformed                          all goals, with 25 files of each kind
    python -m benchmarks.data.malformed zoo bombs --seeds 3

`zoo`: a scan, an epoch of training on 1, 2 and 4 processes, and an evaluation each name every bad file once and no good file, with
the right reason and in the same report; decoded pixels differ by at most 2 of 255 on average; an evaluation substitutes nothing.
`bombs`: each is rejected within 50 ms of processor time and 50 MiB of memory. `hang`: a decoder that holds Python's lock costs the
deadline and 2 s, and the following batches are as fast as before. `python -m benchmarks.reliability zoo` trains on real processes.

Writes JSON; the exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmm.data import BadInputs, Clips, ClipsConfig, Images, ImagesConfig, Problem, eval_batches, open_data, train_batches
from mmm.data.datasets import images
from mmm.data.decode.image import decode_image
from mmm.data.decode.video.reader import read_clip
from mmm.data.errors import Unreadable
from mmm.data.loading.scan import scan
from mmm.data.sources.folder import printable

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
pictures, films = importlib.import_module("malformed"), importlib.import_module("malformed_videos")

GOOD = 12  # good files for each kind
BATCH = 20
IMAGES = ImagesConfig(image_size=8, workers=0, holdout=0.0, max_bad=1.0)
# a clip contains all frames of a video, so that a training finds the same errors as a scan
CLIPS = ClipsConfig(image_size=16, frames=8, stride=1, crop_sides=(1.0,), workers=0, holdout=0.0, max_bad=1.0)
MOST_SECONDS, MOST_MIB, DEADLINE = 0.05, 50.0, 1.0
HUNG, ROUNDS, SEED = 40, 3, 1  # number of files, passes with and without a hang, and the seed of the order


def zoo(seeds: int = 25) -> dict[str, Any]:
    """Returns the results for images and for videos, and the errors in them."""
    with tempfile.TemporaryDirectory() as folder:
        found = {medium: _zoo(Path(folder) / medium, medium, seeds) for medium in ("images", "videos")}
    return {"media": found, "wrong": [f"{medium}: {line}" for medium, one in found.items() for line in one.pop("wrong")]}


def _zoo(folder: Path, medium: str, seeds: int) -> dict[str, Any]:
    folder.mkdir()
    kinds = pictures.IMAGES if medium == "images" else films.VIDEOS
    expected: dict[str, str] = {}
    truth: dict[str, Any] = {}
    for kind in kinds.values():
        for seed in range(seeds):
            case = kind(seed)
            case.place(folder / case.name)
            if case.reason is None:
                truth[printable(case.name)] = case.pixels
            else:
                expected[printable(case.name)] = case.reason
    for number in range(GOOD * len(kinds)):
        _good(folder, medium, number)
    config = IMAGES if medium == "images" else CLIPS
    samples = open_data(replace(config, source=str(folder)), "train")
    assert isinstance(samples, (Images, Clips))
    scanned = [(file["name"], file["reason"]) for file in scan(samples, workers=2)["files"]]
    reports = [_epoch(samples, folder.parent / f"{medium}_{world}.jsonl", world) for world in (1, 2, 4)]
    trained = [(one["name"], one["reason"]) for one in map(json.loads, reports[0].decode().splitlines())]
    scored, unscored = _evaluate(samples)
    named = {"scan": scanned, "training": trained, "evaluation": unscored}
    wrong = [f"{how}: {line}" for how, report in named.items() for line in _compare(report, expected)]
    wrong += ["the reports of 1, 2 and 4 processes differ"] * (len(set(reports)) > 1)
    wrong += ["the evaluation leaves out more than it says"] * (scored + len(unscored) != len(samples))
    worst, far = _differences(samples, truth)
    return {
        "kinds": len(kinds),
        "files": len(samples),
        "bad": len(expected),
        "named": len(trained),
        "worst pixels": round(worst, 3),
        "reasons": dict(Counter(re.sub(r"[0-9][0-9,]*", "N", reason) for _, reason in trained).most_common()),
        "wrong": wrong + far,
    }


def _good(folder: Path, medium: str, number: int) -> None:
    if medium == "images":
        (folder / f"good_{number}.png").write_bytes(pictures.encoded(pictures.photograph(number, 24, 24), "PNG"))
    else:
        (folder / f"good_{number}.mp4").write_bytes(films.filmed(films.film(number, height=32, width=32)))


def _epoch(samples: Images | Clips, path: Path, world: int) -> bytes:
    """Returns the report of a training of one epoch on `world` processes."""
    steps, bad = -(-len(samples) // BATCH), BadInputs(path, len(samples), 1.0)
    size = {"seed": 1, "batch_size": BATCH // world, "steps": steps, "world": world}
    feeds = [train_batches(samples, samples.config, **size, rank=rank) for rank in range(world)]
    met: list[Problem] = []
    for step, batches in enumerate(zip(*feeds, strict=True), 1):
        met += [problem for batch in batches for problem in batch.problems]
        if step % 5 == 0 or step == steps:
            bad.add(met)
            met = []
    return path.read_bytes()


def _evaluate(samples: Images | Clips) -> tuple[int, list[tuple[str, str]]]:
    """Returns the number of evaluated samples, and the samples that are left out, with reasons."""
    batches = list(eval_batches(samples, samples.config, batch_size=BATCH))
    return sum(map(len, batches)), [(problem.name, problem.reason) for batch in batches for problem in batch.problems]


def _compare(report: list[tuple[str, str]], expected: dict[str, Any]) -> list[str]:
    times = Counter(name for name, _ in report)
    wrong = [f"{name!r} is named {count} times" for name, count in times.items() if count > 1]
    wrong += [f"{name!r} is bad, and was not named" for name in expected if name not in times]
    wrong += [f"{name!r} is good, and was named: {reason}" for name, reason in report if name not in expected]
    return wrong + [f"{name!r}: {why}" for name, why in report if name in expected and not re.search(expected[name], why)]


def _differences(samples: Images | Clips, truth: dict[str, Any]) -> tuple[float, list[str]]:
    """Returns the largest mean difference from the true pixels, and the files whose difference is too large."""
    worst, far = 0.0, []
    for index in range(len(samples)):
        name = samples.name(index)
        if name not in truth:
            continue
        cell = samples.raw(index)
        try:
            pixels = decode_image(cell, 3) if isinstance(samples, Images) else read_clip(cell)
            off = float(np.abs(pixels.astype(float) - truth[name]).mean()) if pixels.shape == truth[name].shape else float("inf")
        except Unreadable as error:
            far.append(f"{name!r} should be read: {error}")
            continue
        worst = max(worst, off)
        far += [f"{name!r} is off by {off:.2f} of 255"] * (off > pictures.TOLERANCE)
    return worst, far


def bombs(seeds: int = 25) -> dict[str, Any]:
    """Measures the cost of each input, in a separate process."""
    costs, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for kinds, read in ((pictures.IMAGES, lambda path: decode_image(path, 3)), (films.VIDEOS, read_clip)):
            _open_once(Path(folder), kinds, read)
            for name in (name for name in kinds if name.startswith("bomb")):
                case = kinds[name](0)
                case.place(Path(folder) / case.name)
                seconds, memory = _cost(partial(read, Path(folder) / case.name))
                costs[case.name] = {"ms": round(1000 * seconds, 1), "MiB": round(memory, 1)}
                wrong += [f"{case.name} costs {costs[case.name]}"] * (seconds > MOST_SECONDS or memory > MOST_MIB)
    return {"costs": costs, "wrong": wrong}


def _open_once(folder: Path, kinds: dict[str, Any], read: Callable[[Path], Any]) -> None:
    """Reads a file once, so that one-time work of the libraries is not measured."""
    case = kinds["png_called_jpg" if "png_called_jpg" in kinds else "one_frame"](0)
    case.place(folder / case.name)
    read(folder / case.name)


def _cost(work: Callable[[], Any]) -> tuple[float, float]:
    """Returns the processor seconds and MiB that `work` takes."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        seconds, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            work()
        except Unreadable:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(start, json.dumps([time.process_time() - seconds, (peak - memory) / 1024]).encode())
        os._exit(0)
    os.close(start)
    os.waitpid(child, 0)
    with os.fdopen(end) as file:
        seconds, memory = json.load(file)
    return seconds, memory


def hang(seeds: int = 25) -> dict[str, Any]:
    """Measures the waits for batches while a decoder sleeps in C and holds Python's lock."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(HUNG):
            _good(Path(folder), "images", number)
        samples = open_data(replace(IMAGES, source=folder, workers=2, deadline=DEADLINE), "train")
        assert isinstance(samples, Images)
        calm = [list(_timed(samples)) for _ in range(ROUNDS)]
        victim = samples.name(int(samples.order(SEED).at(HUNG - BATCH // 2, 1)[1]))  # outside the samples that are prefetched
        plain = images.decode_image

        def trapped(source: Any, *rest: Any) -> Any:
            return ctypes.PyDLL(None).sleep(1000) if Path(source).name == victim else plain(source, *rest)

        images.decode_image = trapped  # type: ignore[assignment]
        try:
            hung = [list(_timed(samples)) for _ in range(ROUNDS)]
        finally:
            images.decode_image = plain
    longest = max(wait for one in hung for wait, _ in one)
    named = {problem.name: problem.reason for one in hung for _, batch in one for problem in batch.problems}
    rest, before = (min(sum(sorted(wait for wait, _ in one)[:-1]) for one in runs) for runs in (hung, calm))
    wrong = [f"a batch was waited for {longest:.1f} s"] * (longest > DEADLINE + 2)
    wrong += [f"named were {named}"] * (list(named) != [victim])
    wrong += [f"the rest took {rest:.2f} s, without a hang {before:.2f} s"] * (0.9 * rest > before)
    wrong += ["a worker is left"] * bool(multiprocessing.active_children())
    return {"longest wait, s": round(longest, 2), "rest, s": round(rest, 3), "rest without, s": round(before, 3), "wrong": wrong}


def _timed(samples: Images) -> Iterator[tuple[float, Any]]:
    """Yields batches, and the wait for each; the first start of the workers is not timed."""
    batches = train_batches(samples, samples.config, seed=SEED, batch_size=4, steps=400)
    next(batches)
    start = time.monotonic()
    for batch in batches:
        yield time.monotonic() - start, batch
        start = time.monotonic()


GOALS: dict[str, Callable[[int], dict[str, Any]]] = {"zoo": zoo, "bombs": bombs, "hang": hang}


def main() -> int:
    """Runs the requested goals, and returns 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goals", nargs="*", choices=[[], *GOALS], help="all where none is named")
    parser.add_argument("--seeds", type=int, default=25, help="files of each kind")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in chosen.goals or GOALS:
        found[name] = GOALS[name](chosen.seeds)
        print(json.dumps({name: found[name]}, indent=2), flush=True)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(one["wrong"] for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
