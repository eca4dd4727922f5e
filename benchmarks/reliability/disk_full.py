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

from benchmarks.reliability.harness import Patch, run_jobs, start
from benchmarks.reliability.progress import saved_steps
from benchmarks.reliability.runs import STEPS, Variant, compare, finish_and_compare, make_config, make_data, run_undisturbed
from mmm.objectives.masked import MaskedObjective
from mmm.train.checkpoint import writer as checkpoint

COUNT, QUICK = 20, 4
LIMITS = (1 << 12, 1 << 14, 1 << 15)  # maximum bytes per file: less than the smallest tensor file, and less than the larger ones
DISK = 3 << 20  # bytes of the small disk


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` runs that get space again later or only for the next start, and a small disk if this user may mount one."""
    make_data(work)
    variant = Variant("image", make_config(work), 1)
    expected = run_undisturbed(variant, work / "undisturbed")
    jobs: dict[str, Any] = {}
    for number in range(count):
        first = rng.randrange(2, STEPS - 8)
        last = rng.randrange(first + 2, STEPS - 1) if number % 2 else STEPS
        name, limit = f"limit_{number}", rng.choice(LIMITS)
        jobs[name] = partial(_train_with_a_limit, work / name, variant, expected, limit, first, last)
    jobs["small_disk"] = partial(_fill_small_disk, work / "small", variant, expected)
    results, failures = run_jobs(work, jobs)
    return {"runs": len(results), "small disk": results["small_disk"].get("mounted", False), "failures": failures}


def _train_with_a_limit(
    folder: Path, variant: Variant, expected: dict[str, Any], limit: int, first: int, last: int
) -> dict[str, Any]:
    """Limits the size of files between two steps."""
    started = start(variant.config, folder, 1, limit_file_size(limit, first, last))
    codes = started.wait()
    failures = [f"{folder.name}: {line}" for line in _incomplete_checkpoints(folder)]
    if last < STEPS:
        ended = [f"{folder.name} ended with {codes}: {started.output()}"] if any(codes) else compare(variant, folder, expected)
        return {"failures": failures + ended}
    failures += [f"{folder.name} ended with {codes} though its last checkpoint was not written"] * (codes == [0])
    newest = max(saved_steps(folder), default=0)
    failures += [f"{folder.name}: step {newest} was saved, after the limit from step {first} on"] * (newest > first)
    return {"failures": failures + finish_and_compare(variant, folder, expected)}


def _incomplete_checkpoints(folder: Path) -> list[str]:
    """Returns a description of each incomplete checkpoint that has its final name."""
    paths = [folder / "checkpoints" / f"step_{step:08d}" for step in saved_steps(folder)]
    return [f"{path.name} is incomplete: {damage}" for path in paths if (damage := checkpoint.damage(path)) is not None]


def limit_file_size(limit: int, first: int, last: int) -> Patch:
    """Returns a patch that limits the size of files from step `first` until before `last`.

    Python ignores SIGXFSZ, so that writes beyond the limit fail with an error, as on a full disk.
    """

    def patch(rank: int) -> None:
        original = MaskedObjective.loss

        def loss(objective: MaskedObjective, model: Any, batch: Any, step: int) -> Any:
            allowed = limit if first <= step < last else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, resource.RLIM_INFINITY))
            return original(objective, model, batch, step)

        MaskedObjective.loss = loss  # type: ignore[method-assign]

    return patch


def _fill_small_disk(disk: Path, variant: Variant, expected: dict[str, Any]) -> dict[str, Any]:
    """Tests a small disk that another file fills for some time."""
    with _mounted(disk) as mounted:
        if not mounted:
            return {"mounted": False, "failures": []}
        folder, filler = disk / "run", disk / "filler"
        started = start(variant.config, folder)
        started.wait_until(lambda: saved_steps(folder))
        try:
            filler.write_bytes(bytes(DISK))
        except OSError:
            codes = started.wait()
        else:
            raise RuntimeError("the disk is larger than it should be")
        failures, saved = [f"full disk: {line}" for line in _incomplete_checkpoints(folder)], saved_steps(folder)
        if codes == [0] and saved[-1:] != [STEPS]:
            failures.append(f"full disk: ended with {codes}, and the last checkpoint is {saved[-1:]}")
        failures += [f"full disk: no checkpoint is left, the run ended with {codes}"] * (not saved)
        filler.unlink()
        return {"mounted": True, "failures": failures + finish_and_compare(variant, folder, expected)}


@contextmanager
def _mounted(path: Path) -> Any:
    """Mounts a small disk, and yields whether this was possible."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
    try:
        possible = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, timeout=20).returncode == 0
    except subprocess.SubprocessError:
        possible = False
    try:
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", str(path)], capture_output=True, timeout=20)
