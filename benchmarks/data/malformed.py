"""Tests every kind of malformed image and video among good files: which are read, which are rejected, and the cost of each.

    python -m benchmarks.data.malformed                          all goals, with 25 files of each kind
    python -m benchmarks.data.malformed kinds bombs --seeds 3

`kinds`: a scan, an epoch of training on 1, 2 and 4 processes, and an evaluation each name every bad file once and no good file,
with the right reason and in the same report; decoded pixels differ by at most 2 of 255 on average; an evaluation leaves a bad file
out and does not replace it. `bombs`: each is rejected within 50 ms of processor time and 50 MiB of memory. `hang`: a decoder that
holds Python's lock costs at most the deadline and 2 s, and the other batches are as fast as before.
`python -m benchmarks.reliability malformed_inputs` tests trainings on real processes.

Prints JSON with a list of `failures`; the exit code is 1 if there is a failure.
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
malformed, malformed_videos = importlib.import_module("malformed"), importlib.import_module("malformed_videos")
KINDS = {"image": malformed.IMAGES, "video": malformed_videos.VIDEOS}  # functions from a seed to a file, by medium and name

GOOD = 12  # good files for each kind
BATCH = 20
IMAGES = ImagesConfig(image_size=8, workers=0, holdout=0.0, max_bad=1.0)
# a clip contains all frames of a video, so that a training finds the same errors as a scan
CLIPS = ClipsConfig(image_size=16, frames=8, stride=1, crop_sides=(1.0,), workers=0, holdout=0.0, max_bad=1.0)
MAX_SECONDS, MAX_MIB, DEADLINE = 0.05, 50.0, 1.0
FILES, ROUNDS, SEED = 40, 3, 1  # of `hang`: number of files, passes with and without a hang, and the seed of the order


def read_kinds(seeds: int = 25) -> dict[str, Any]:
    """Returns the results for images and for videos, and the failures."""
    with tempfile.TemporaryDirectory() as folder:
        results = {medium: _read_medium(Path(folder) / medium, medium, seeds) for medium in KINDS}
    failures = [f"{medium}: {line}" for medium, result in results.items() for line in result.pop("failures")]
    return {"media": results, "failures": failures}


def _read_medium(folder: Path, medium: str, seeds: int) -> dict[str, Any]:
    folder.mkdir()
    expected, pixels = write_kinds(folder, KINDS[medium], seeds)
    for number in range(GOOD * len(KINDS[medium])):
        write_good_file(folder, medium, number)
    samples = open_data(replace(IMAGES if medium == "image" else CLIPS, source=str(folder)), "train")
    assert isinstance(samples, (Images, Clips))
    scanned = [(file["name"], file["reason"]) for file in scan(samples, workers=2)["files"]]
    reports = [_train_one_epoch(samples, folder.parent / f"{medium}_{world}.jsonl", world) for world in (1, 2, 4)]
    trained = [(line["name"], line["reason"]) for line in map(json.loads, reports[0].decode().splitlines())]
    evaluated, left_out = _evaluate(samples)
    named = {"scan": scanned, "training": trained, "evaluation": left_out}
    failures = [f"{where}: {line}" for where, report in named.items() for line in compare_report(report, expected)]
    failures += ["the reports of 1, 2 and 4 processes differ"] * (len(set(reports)) > 1)
    failures += ["the evaluation leaves out samples that it does not report"] * (evaluated + len(left_out) != len(samples))
    largest, inaccurate = _compare_pixels(samples, pixels)
    return {
        "kinds": len(KINDS[medium]),
        "files": len(samples),
        "bad": len(expected),
        "named": len(trained),
        "largest difference of pixels": round(largest, 3),
        "reasons": dict(Counter(re.sub(r"[0-9][0-9,]*", "N", reason) for _, reason in trained).most_common()),
        "failures": failures + inaccurate,
    }


def write_kinds(folder: Path, kinds: dict[str, Any], seeds: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes files of each kind. Returns the reasons of the unreadable ones and the pixels of the others, by name."""
    reasons: dict[str, str] = {}
    pixels: dict[str, Any] = {}
    for kind in kinds.values():
        for seed in range(seeds):
            case = kind(seed)
            case.write(folder / case.name)
            if case.reason is None:
                pixels[printable(case.name)] = case.pixels
            else:
                reasons[printable(case.name)] = case.reason
    return reasons, pixels


def write_good_file(folder: Path, medium: str, number: int) -> Path:
    """Writes a small image or video, which depends only on its number, and returns its path."""
    path = folder / f"good_{number}.{'png' if medium == 'image' else 'mp4'}"
    if medium == "image":
        path.write_bytes(malformed.encoded(malformed.photograph(number, 24, 24), "PNG"))
    else:
        path.write_bytes(malformed_videos.encode_frames(malformed_videos.make_frames(number, height=32, width=32)))
    return path


def _train_one_epoch(samples: Images | Clips, path: Path, world: int) -> bytes:
    """Returns the report of a training of one epoch on `world` processes."""
    steps, bad = -(-len(samples) // BATCH), BadInputs(path, len(samples), 1.0)
    size = {"seed": 1, "batch_size": BATCH // world, "steps": steps, "world": world}
    loaders = [train_batches(samples, samples.config, **size, rank=rank) for rank in range(world)]
    problems: list[Problem] = []
    for step, batches in enumerate(zip(*loaders, strict=True), 1):
        problems += [problem for batch in batches for problem in batch.problems]
        if step % 5 == 0 or step == steps:
            bad.add(problems)
            problems = []
    return path.read_bytes()


def _evaluate(samples: Images | Clips) -> tuple[int, list[tuple[str, str]]]:
    """Returns the number of evaluated samples, and the samples that are left out, with reasons."""
    batches = list(eval_batches(samples, samples.config, batch_size=BATCH))
    return sum(map(len, batches)), [(problem.name, problem.reason) for batch in batches for problem in batch.problems]


def compare_report(report: list[tuple[str, str]], expected: dict[str, str]) -> list[str]:
    """Returns the differences between the reported names and reasons, and the expected ones.

    Args:
        expected: the pattern of the reason by name, of each bad file.
    """
    counts = Counter(name for name, _ in report)
    failures = [f"{name!r} is named {count} times" for name, count in counts.items() if count > 1]
    failures += [f"{name!r} is bad, and was not named" for name in expected if name not in counts]
    failures += [f"{name!r} is good, and was named: {reason}" for name, reason in report if name not in expected]
    return failures + [
        f"{name!r}: {reason}" for name, reason in report if name in expected and not re.search(expected[name], reason)
    ]


def _compare_pixels(samples: Images | Clips, expected: dict[str, Any]) -> tuple[float, list[str]]:
    """Returns the largest mean difference from the expected pixels, and the files whose difference is too large."""
    largest, failures = 0.0, []
    for index in range(len(samples)):
        name = samples.name(index)
        if name not in expected:
            continue
        file = samples.raw(index)
        try:
            pixels = decode_image(file, 3) if isinstance(samples, Images) else read_clip(file)
        except Unreadable as error:
            failures.append(f"{name!r} should be read: {error}")
            continue
        same_shape = pixels.shape == expected[name].shape
        difference = float(np.abs(pixels.astype(float) - expected[name]).mean()) if same_shape else float("inf")
        largest = max(largest, difference)
        failures += [f"{name!r} differs by {difference:.2f} of 255"] * (difference > malformed.TOLERANCE)
    return largest, failures


def bombs(seeds: int = 25) -> dict[str, Any]:
    """Measures the cost of each decompression bomb, in a separate process."""
    costs, failures = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for kinds, read in ((KINDS["image"], lambda path: decode_image(path, 3)), (KINDS["video"], read_clip)):
            _read_once(Path(folder), kinds, read)
            for name in (name for name in kinds if name.startswith("bomb")):
                case = kinds[name](0)
                case.write(Path(folder) / case.name)
                seconds, memory = _cost(partial(read, Path(folder) / case.name))
                costs[case.name] = {"ms": round(1000 * seconds, 1), "MiB": round(memory, 1)}
                failures += [f"{case.name} costs {costs[case.name]}"] * (seconds > MAX_SECONDS or memory > MAX_MIB)
    return {"costs": costs, "failures": failures}


def _read_once(folder: Path, kinds: dict[str, Any], read: Callable[[Path], Any]) -> None:
    """Reads a file once, so that one-time work of the libraries is not measured."""
    case = kinds["png_called_jpg" if "png_called_jpg" in kinds else "one_frame"](0)
    case.write(folder / case.name)
    read(folder / case.name)


def _cost(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the processor seconds and MiB that a function takes until it rejects a file, in a separate process."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        seconds, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            function()
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
        for number in range(FILES):
            write_good_file(Path(folder), "image", number)
        samples = open_data(replace(IMAGES, source=folder, workers=2, deadline=DEADLINE), "train")
        assert isinstance(samples, Images)
        without_hang = [list(_timed(samples)) for _ in range(ROUNDS)]
        name = samples.name(int(samples.order(SEED).at(FILES - BATCH // 2, 1)[1]))  # outside the samples that are prefetched
        original = images.decode_image

        def decode(source: Any, *options: Any) -> Any:
            return ctypes.PyDLL(None).sleep(1000) if Path(source).name == name else original(source, *options)

        images.decode_image = decode  # type: ignore[assignment]
        try:
            with_hang = [list(_timed(samples)) for _ in range(ROUNDS)]
        finally:
            images.decode_image = original
    longest = max(wait for one in with_hang for wait, _ in one)
    named = {problem.name: problem.reason for one in with_hang for _, batch in one for problem in batch.problems}
    other, before = (min(sum(sorted(wait for wait, _ in one)[:-1]) for one in rounds) for rounds in (with_hang, without_hang))
    failures = [f"a batch took {longest:.1f} s"] * (longest > DEADLINE + 2)
    failures += [f"named were {named}, expected {name}"] * (list(named) != [name])
    failures += [f"the other batches took {other:.2f} s, without a hang {before:.2f} s"] * (0.9 * other > before)
    failures += ["a worker still runs"] * bool(multiprocessing.active_children())
    figures = {"longest wait, s": longest, "other batches, s": other, "other batches without a hang, s": before}
    return {**{figure: round(seconds, 3) for figure, seconds in figures.items()}, "failures": failures}


def _timed(samples: Images) -> Iterator[tuple[float, Any]]:
    """Yields batches, and the wait for each; the first start of the workers is not timed."""
    batches = train_batches(samples, samples.config, seed=SEED, batch_size=4, steps=400)
    next(batches)
    start = time.monotonic()
    for batch in batches:
        yield time.monotonic() - start, batch
        start = time.monotonic()


GOALS: dict[str, Callable[[int], dict[str, Any]]] = {"kinds": read_kinds, "bombs": bombs, "hang": hang}


def main() -> int:
    """Runs the requested goals, and returns 1 if there is a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goals", nargs="*", choices=[[], *GOALS], help="default: all")
    parser.add_argument("--seeds", type=int, default=25, help="files of each kind")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.goals or GOALS:
        results[name] = GOALS[name](options.seeds)
        print(json.dumps({name: results[name]}, indent=2), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any(result["failures"] for result in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
