"""R14: tests a run whose writes fail from some step on, because file sizes are limited or because the disk is full.

The run continues, the last good checkpoint stays complete, and no incomplete file has a final name. When there is space again, the
result is bit-identical to that of the undisturbed run. If there is no space until the end, the run ends with an error, and the same
command continues it later.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import Sabotage, side_by_side, start
from benchmarks.reliability.moments import saved
from benchmarks.reliability.runs import STEPS, Variant, config_of, differs, finish, make_data, whole
from mmm.objectives.masked import MaskedObjective
from mmm.train.checkpoint import writer as checkpoint

COUNT, QUICK = 20, 4
LIMITS = (1 << 12, 1 << 14, 1 << 15)  # maximum bytes per file: smaller than the smallest tensor file, and inside it
DISK = 3 << 20  # bytes of the small disk


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` runs that get space again later or only for the next start, and a small disk if this user may mount one."""
    make_data(work)
    variant = Variant("image", config_of(work), 1)
    expected = whole(variant, work / "whole")
    jobs: dict[str, Any] = {}
    for place in range(count):
        first = draw.randrange(2, STEPS - 8)
        last = draw.randrange(first + 2, STEPS - 1) if place % 2 else STEPS
        jobs[f"limit_{place}"] = partial(_limited, work / f"limit_{place}", variant, expected, draw.choice(LIMITS), first, last)
    jobs["small_disk"] = partial(_small_disk, work / "small", variant, expected)
    found = side_by_side(work, jobs)
    mounted = found["small_disk"].get("mounted", False)
    return {"runs": len(found), "small disk": mounted, "wrong": [line for one in found.values() for line in one["wrong"]]}


def _limited(folder: Path, variant: Variant, expected: dict[str, Any], limit: int, first: int, last: int) -> dict[str, Any]:
    """Limits the size of files between two steps."""
    started = start(variant.config, folder, 1, no_room(limit, first, last))
    codes = started.wait()
    wrong = [f"{folder.name}: {one} is not whole: {why}" for one, why in _broken(folder)]
    if last < STEPS:
        ended = [f"{folder.name} ended with {codes}: {started.said()}"] if any(codes) else differs(folder, expected, variant)
        return {"wrong": wrong + ended}
    wrong += [f"{folder.name} ended with {codes} though its last checkpoint was not written"] * (codes == [0])
    wrong += [f"{folder.name}: {saved(folder)[-1:]} is newer than the limit"] * (max(saved(folder), default=0) > first)
    return {"wrong": wrong + finish(variant, folder, expected)}


def _broken(folder: Path) -> list[tuple[str, str]]:
    """Returns incomplete checkpoints that have their final name."""
    places = [folder / "checkpoints" / f"step_{step:08d}" for step in saved(folder)]
    return [(place.name, why) for place in places if (why := checkpoint.damage(place)) is not None]


def no_room(limit: int, first: int, last: int) -> Sabotage:
    """Limits the size of files. Python ignores SIGXFSZ, so that writes beyond the limit fail with an error, as on a full disk."""

    def sabotage(rank: int) -> None:
        made = MaskedObjective.loss

        def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Any:
            allowed = limit if first <= step < last else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, resource.RLIM_INFINITY))
            return made(objective, model, batch, step)

        MaskedObjective.loss = loss  # type: ignore[method-assign]

    return sabotage


def _small_disk(place: Path, variant: Variant, expected: dict[str, Any]) -> dict[str, Any]:
    """Tests a small disk that another file fills for some time."""
    with _mounted(place) as mounted:
        if not mounted:
            return {"mounted": False, "wrong": []}
        folder, filler = place / "run", place / "filler"
        started = start(variant.config, folder)
        started.until(lambda: saved(folder))
        try:
            filler.write_bytes(bytes(DISK))
        except OSError:
            codes = started.wait()
        else:
            raise RuntimeError("the disk is larger than it should be")
        wrong = [f"full disk: {one} is not whole: {why}" for one, why in _broken(folder)]
        wrong += [f"full disk: ended with {codes}, and the last checkpoint is {saved(folder)[-1:]}"] * (
            codes == [0] and saved(folder)[-1:] != [STEPS]
        )
        wrong += [f"full disk: no checkpoint is left, the run ended with {codes}"] * (not saved(folder))
        filler.unlink()
        return {"mounted": True, "wrong": wrong + finish(variant, folder, expected)}


@contextmanager
def _mounted(place: Path) -> Any:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        possible = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, timeout=20).returncode == 0
    except subprocess.SubprocessError:
        possible = False
    try:
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", str(place)], capture_output=True, timeout=20)
