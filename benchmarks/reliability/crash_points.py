"""R2: tests a forced exit at every line of the code that saves, and an interruption after every 64 KiB of the largest file.

After each of them the same command continues, at the latest from the checkpoint before, with bit-identical results to the
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
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.reliability.harness import LANES, Sabotage, side_by_side, start
from benchmarks.reliability.moments import saved
from benchmarks.reliability.runs import Variant, config_of, finish, make_data, whole
from mmm.encoders import VisionTransformer
from mmm.train.state import Training
from tasks import pretrain

COUNT, QUICK = 100_000, 12  # maximum number of points; there are some hundreds
STEPS, EVERY = 6, 2
SAVING = ("checkpoint", "shard", "sav", "stored", "run", "place", "lock")  # prefixes of file names in mmm/train
CUT = 1 << 16  # bytes
EXITED = 77

Point = tuple[str, int, int]  # file, line, and number of executions of the line up to and including this one


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests at most `count` random points and cuts."""
    make_data(work)
    variant = Variant("image", config_of(work, steps=STEPS, save_every=EVERY, keep_last=1), 1)
    expected = whole(variant, work / "whole")
    met = _lines_met(work, variant)
    # the first, a middle and the last execution of a line that is executed often
    points = [(file, line, time) for (file, line), times in met.items() for time in sorted({1, (1 + times) // 2, times})]
    points = sorted(draw.sample(points, min(count, len(points))))
    jobs: dict[str, Any] = {
        f"lane_{lane}": partial(_exits, work, f"lane_{lane}", variant, expected, points[lane::LANES]) for lane in range(LANES)
    }
    jobs["cuts"] = partial(_cuts, work, count)
    found = side_by_side(work, jobs)
    wrong = [line for one in found.values() for line in one.pop("wrong")]
    figures = {name: sum(one.get(name, 0) for one in found.values()) for name in ("exits", "not met", "cuts")}
    return {"lines": len(met), **figures, "wrong": wrong}


def _lines_met(work: Path, variant: Variant) -> dict[tuple[str, int], int]:
    """Returns every line of the saving code that an undisturbed run executes, with the number of its executions."""
    told, made = work / "lines.json", pretrain.run

    def sabotage(rank: int) -> None:
        met = _trace(None)

        def run_and_tell(config: pretrain.Config) -> dict[str, Any]:
            result = made(config)
            told.write_text(json.dumps([[*place, times] for place, times in met.items()]))
            return result

        pretrain.run = run_and_tell

    if any(codes := (started := start(variant.config, work / "traced", 1, sabotage)).wait()):
        raise RuntimeError(f"the traced run ended with {codes}: {started.said()}")
    return {(file, line): times for file, line, times in json.loads(told.read_text())}


def _trace(exit_at: Point | None) -> Counter[tuple[str, int]]:
    """Counts the lines that are executed in all threads; ends the process before the line of `exit_at`."""
    met: Counter[tuple[str, int]] = Counter()

    def line(frame: FrameType, event: str, value: Any) -> Any:
        if event == "line":
            place = (os.path.basename(frame.f_code.co_filename), frame.f_lineno)
            met[place] += 1
            if exit_at is not None and place == exit_at[:2] and met[place] == exit_at[2]:
                os._exit(EXITED)
        return line

    def calls(frame: FrameType, event: str, value: Any) -> Any:
        file = frame.f_code.co_filename
        name = os.path.basename(file)
        folder = os.path.basename(os.path.dirname(file))
        return line if (folder == "train" and name.startswith(SAVING)) or (folder, name) == ("mmm", "journal.py") else None

    threading.settrace(calls)
    sys.settrace(calls)
    return met


def _exits(work: Path, lane: str, variant: Variant, expected: dict[str, Any], points: list[Point]) -> dict[str, Any]:
    """Forces an exit at each of these points."""
    wrong, exits = list[str](), 0
    for file, line, time in points:
        folder = work / f"{lane}_{file}_{line}_{time}"
        asked = folder.with_name(f"{folder.name}.asked")  # not with_suffix, because the name contains a dot
        started = start(variant.config, folder, 1, _exit_at((file, line, time), asked))
        codes = started.wait()
        exits += codes == [EXITED]
        wrong += _judge(folder, codes, (0, EXITED), asked) + finish(variant, folder, expected)
        shutil.rmtree(folder, ignore_errors=True)
    return {"exits": exits, "not met": len(points) - exits, "wrong": wrong}


def _judge(folder: Path, codes: list[int], expected: tuple[int, ...], asked: Path) -> list[str]:
    """Checks that the run ended as intended and lost at most one save interval."""
    last = int(asked.read_text()) if asked.exists() else 0
    kept = max(saved(folder), default=0)
    wrong = [f"{folder.name} ended with {codes}"] * (codes[0] not in expected)
    return wrong + [f"{folder.name}: step {last} was being saved, and step {kept} is the newest"] * (kept < last - EVERY)


def _exit_at(point: Point, asked: Path) -> Sabotage:
    def sabotage(rank: int) -> None:
        _note_saves(asked)
        _trace(point)

    return sabotage


def _note_saves(asked: Path) -> None:
    """Records the step of the last save that was requested."""
    save = Training.save

    def noted(self: Training, *given: Any, **named: Any) -> Any:
        asked.write_text(str(self.step))
        return save(self, *given, **named)

    Training.save = noted  # type: ignore[method-assign]


def _cuts(work: Path, count: int) -> dict[str, Any]:
    """Lets the kernel end the process when a file exceeds a length."""
    encoder = VisionTransformer.Config(width=64, depth=2, heads=2)
    base = config_of(work, steps=STEPS, save_every=EVERY, keep_last=1)
    variant = Variant("larger", pretrain.Config(**{**vars(base), "encoder": encoder}), 1)
    expected = whole(variant, work / "larger")
    largest = max(path.stat().st_size for path in (work / "larger").rglob("*.safetensors"))
    wrong, cuts = list[str](), 0
    for place in list(range(CUT, largest, CUT))[:count]:
        folder = work / f"cut_{place}"
        started = start(variant.config, folder, 1, partial(_limit, place))
        codes = started.wait()
        cuts += codes == [-signal.SIGXFSZ]
        wrong += [f"{folder.name} ended with {codes}: {started.said()}"] * (codes != [-signal.SIGXFSZ])
        wrong += finish(variant, folder, expected)
        shutil.rmtree(folder, ignore_errors=True)
    return {"cuts": cuts, "wrong": wrong}


def _limit(place: int, rank: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (place, place))
