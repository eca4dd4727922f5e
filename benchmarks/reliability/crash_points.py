"""R2: tests a forced exit at every line of the code that saves, and an interruption after every 64 KiB of the largest file.

After each of them the same command continues, at the latest from the previous checkpoint, with bit-identical results to the
undisturbed run, and the next save leaves no incomplete files.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import mmm
from benchmarks.reliability.harness import PARALLEL_JOBS, Patch, run_jobs, start
from benchmarks.reliability.progress import saved_steps
from benchmarks.reliability.runs import Variant, finish_and_compare, make_config, make_data, run_undisturbed
from mmm.encoders import VisionTransformer
from mmm.train.state import Training
from tasks import pretrain

COUNT, QUICK = 100_000, 12  # maximum number of points; there are some hundreds
STEPS, SAVE_EVERY = 6, 2
SAVING = ("train/checkpoint/", "train/run/", "system/files.py")  # folders and files in mmm/ with the code that saves
CUT = 1 << 16  # bytes
EXIT_CODE = 77

Point = tuple[str, int, int]  # file, line, and number of executions of the line up to and including this one


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests at most `count` random points and cuts."""
    make_data(work)
    variant = Variant("image", make_config(work, steps=STEPS, save_every=SAVE_EVERY, keep_last=1), 1)
    expected = run_undisturbed(variant, work / "undisturbed")
    executed = _executed_lines(work, variant)
    # the first, a middle and the last execution of a line that is executed often
    points = [(file, line, time) for (file, line), times in executed.items() for time in sorted({1, (1 + times) // 2, times})]
    points = sorted(rng.sample(points, min(count, len(points))))
    jobs: dict[str, Any] = {
        f"exits_{job}": partial(_exit_at_points, work, variant, expected, points[job::PARALLEL_JOBS])
        for job in range(PARALLEL_JOBS)
    }
    jobs["cuts"] = partial(_cut_files, work, count)
    results, failures = run_jobs(work, jobs)
    failures += ["no line of the code that saves was executed"] * (not executed)
    figures = {name: sum(result.get(name, 0) for result in results.values()) for name in ("exits", "not reached", "cuts")}
    return {"lines": len(executed), **figures, "failures": failures}


def _executed_lines(work: Path, variant: Variant) -> dict[tuple[str, int], int]:
    """Returns every line of the saving code that an undisturbed run executes, with the number of its executions."""
    path, original = work / "lines.json", pretrain.run

    def patch(rank: int) -> None:
        executed = _trace(None)

        def traced_run(config: pretrain.Config) -> dict[str, Any]:
            result = original(config)
            path.write_text(json.dumps([[*line, times] for line, times in executed.items()]))
            return result

        pretrain.run = traced_run

    run_undisturbed(variant, work / "traced", patch)
    return {(file, line): times for file, line, times in json.loads(path.read_text())}


def _trace(exit_at: Point | None) -> Counter[tuple[str, int]]:
    """Counts the lines that are executed in all threads; ends the process before the line of `exit_at`."""
    executed: Counter[tuple[str, int]] = Counter()
    package = f"{os.path.dirname(mmm.__file__)}/"
    traced = tuple(package + name for name in SAVING)

    def trace_line(frame: FrameType, event: str, value: Any) -> Any:
        if event == "line":
            line = (frame.f_code.co_filename.removeprefix(package), frame.f_lineno)
            executed[line] += 1
            if exit_at is not None and line == exit_at[:2] and executed[line] == exit_at[2]:
                os._exit(EXIT_CODE)
        return trace_line

    def trace_call(frame: FrameType, event: str, value: Any) -> Any:
        return trace_line if frame.f_code.co_filename.startswith(traced) else None

    threading.settrace(trace_call)
    sys.settrace(trace_call)
    return executed


def _exit_at_points(work: Path, variant: Variant, expected: dict[str, Any], points: list[Point]) -> dict[str, Any]:
    """Forces an exit at each of these points."""
    failures, exits = list[str](), 0
    for file, line, time in points:
        folder = work / f"{file.replace('/', '_')}_{line}_{time}"
        requested = folder.with_name(f"{folder.name}.requested")  # not with_suffix, because the name contains a dot
        started = start(variant.config, folder, 1, _exit_at((file, line, time), requested))
        codes = started.wait()
        exits += codes == [EXIT_CODE]
        failures += _check_exit(folder, codes, requested) + finish_and_compare(variant, folder, expected)
        shutil.rmtree(folder, ignore_errors=True)
    return {"exits": exits, "not reached": len(points) - exits, "failures": failures}


def _check_exit(folder: Path, codes: list[int], requested: Path) -> list[str]:
    """Checks that the run ended as intended and lost at most one save interval."""
    last = int(requested.read_text()) if requested.exists() else 0
    newest = max(saved_steps(folder), default=0)
    failures = [f"{folder.name} ended with {codes}"] * (codes[0] not in (0, EXIT_CODE))
    return failures + [f"{folder.name}: step {last} was being saved, and step {newest} is the newest"] * (
        newest < last - SAVE_EVERY
    )


def _exit_at(point: Point, requested: Path) -> Patch:
    def patch(rank: int) -> None:
        _record_save_requests(requested)
        _trace(point)

    return patch


def _record_save_requests(requested: Path) -> None:
    """Writes the step of the last save that was requested into a file."""
    original = Training.save

    def save(self: Training, *args: Any, **options: Any) -> Any:
        requested.write_text(str(self.step))
        return original(self, *args, **options)

    Training.save = save  # type: ignore[method-assign]


def _cut_files(work: Path, count: int) -> dict[str, Any]:
    """Lets the kernel end the process when a file exceeds a length."""
    encoder = VisionTransformer.Config(width=64, depth=2, heads=2)
    config = replace(make_config(work, steps=STEPS, save_every=SAVE_EVERY, keep_last=1), encoder=encoder)
    variant = Variant("larger", config, 1)
    expected = run_undisturbed(variant, work / "larger")
    largest = max(path.stat().st_size for path in (work / "larger").rglob("*.safetensors"))
    failures, cuts = list[str](), 0
    for size in list(range(CUT, largest, CUT))[:count]:
        folder = work / f"cut_{size}"
        started = start(variant.config, folder, 1, partial(_limit_file_size, size))
        codes = started.wait()
        cuts += codes == [-signal.SIGXFSZ]
        failures += [f"{folder.name} ended with {codes}: {started.output()}"] * (codes != [-signal.SIGXFSZ])
        failures += finish_and_compare(variant, folder, expected)
        shutil.rmtree(folder, ignore_errors=True)
    return {"cuts": cuts, "failures": failures}


def _limit_file_size(size: int, rank: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
