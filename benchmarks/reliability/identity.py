"""R15: tests that each changed option of a run, and each change of its data, is refused or allowed when the run continues, as the
table in this file says. A refusal names the old and the new value. Options that are not in the table must be refused, so that a new
option is not forgotten.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import PARALLEL_JOBS, run_jobs, start
from benchmarks.reliability.runs import IMAGES, make_config, make_data, make_image
from mmm.config.overrides import part_configs, walk
from mmm.core.checks import arms
from mmm.core.registry import REGISTRIES
from tasks import pretrain

COUNT, QUICK = 1000, 16  # maximum number of changed options; there are about a hundred
# options that may change: where a run computes, how often it logs and saves, and what it evaluates
ALLOWED = {
    *("folder", "resume", "allow", "dry_run", "init", "evaluate"),
    *(f"data.{name}" for name in ("source", "workers", "cache", "max_bad", "deadline")),
    *(f"train.{name}" for name in ("micro_batch_size", "checkpoint_blocks", "compile", "strict", "threads", "log_every")),
    *(f"train.{name}" for name in ("max_skipped", "save_every", "keep_last", "keep_every", "evaluate_every", "timeout", "tracker")),
}
ALLOWED_PREFIX = "evaluate."
NOT_TESTED = {"train.compile": "needs a compiler and a minute", "train.tracker": "needs another package"}
# new values of options for which `_another` would return a value that is not valid with the other options
NEW_VALUES: dict[str, dict[str, Any]] = {
    "data.channels": {"data.channels": 1, "data.mean": [0.5], "data.std": [0.18]},
    "data.split": {"data.split": "val"},
    "data.eval_split": {"data.eval_split": "test"},
    "data.augment": {"data.augment": "rand-m9-mstd0.5-inc1"},
    "data.mean": {"data.mean": [0.4, 0.5, 0.5]},
    "data.std": {"data.std": [0.2, 0.18, 0.18]},
    "data.crop_scale": {"data.crop_scale": [0.5, 1.0]},
    "data.crop_ratio": {"data.crop_ratio": [1.0, 1.0]},
    "data.image_size": {"data.image_size": 32},
    "train.betas": {"train.betas": [0.9, 0.95]},
    "train.epochs": {"train.epochs": 2.0, "train.steps": "none"},
    "train.precision": {"train.precision": "bf16"},
    "train.ema": {"train.ema": 0.5},
    "masker.ratio": {"masker.ratio": 0.5},
    "masker.predict": {"masker.predict": 0.25},
    "resume": {"resume": "true"},
    "allow": {"allow": ["train.ema"]},
}


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests at most `count` random options, and all changes of the data."""
    make_data(work)
    _make_splits(work)
    base = _base_config(work)
    _train_half(base, work / "template")
    names = [name for name, _, value in walk(base) if not is_dataclass(value)] + [f"{kind}.name" for kind in _other_parts(base)]
    names = rng.sample(names, min(count, len(names)))
    jobs: dict[str, Any] = {
        f"options_{job}": partial(_change_options, work, base, names[job::PARALLEL_JOBS]) for job in range(PARALLEL_JOBS)
    }
    jobs["data"] = partial(_change_data, work)
    results, failures = run_jobs(work, jobs)
    figures = {name: sum(result.get(name, 0) for result in results.values()) for name in ("refused", "allowed")}
    figures = {"options": len(names), **figures, "changes of data": results["data"].get("changes", 0)}
    return {**figures, "not tested": NOT_TESTED, "failures": failures}


def _base_config(work: Path) -> pretrain.Config:
    config = make_config(work, save_every=2, keep_last=None, micro_batch_size=4, steps=4)
    colour = {"channels": 3, "mean": (0.5,) * 3, "std": (0.18,) * 3}
    return replace(config, data=replace(config.data, source=str(work / "splits"), **colour))


def _make_splits(work: Path) -> None:
    for number in range(IMAGES):
        path = work / "splits" / ("train", "train", "val", "test")[number % 4] / f"class_{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(number)).save(path)


def _train_half(config: pretrain.Config, folder: Path) -> None:
    """Trains a run of four steps, and deletes its last checkpoint, so that it continues from step 2."""
    if any(codes := (started := start(config, folder)).wait()):
        raise RuntimeError(f"the first run ended with {codes}: {started.output()}")
    shutil.rmtree(folder / "checkpoints" / "step_00000004")


def _other_parts(config: pretrain.Config) -> dict[str, str]:
    """Returns, for each kind of part that has an alternative, the name of the alternative."""
    names = {}
    for path, value in part_configs(config).items():
        if others := sorted(set(REGISTRIES[value.kind].parts) - {value.name}):
            names[path] = others[0]
    return names


def _change_options(work: Path, base: pretrain.Config, names: list[str]) -> dict[str, Any]:
    """Continues a copy of the run with another value of each of these options."""
    failures, refused, allowed = list[str](), 0, 0
    for name in names:
        if name in NOT_TESTED:
            continue
        folder = work / f"changed_{name}"
        shutil.copytree(work / "template", folder)
        flags = [word for one, value in _new_values(work, base, name).items() for word in _flag(one, value)]
        codes, output = _continue(base, folder, flags)
        if name in ALLOWED or name.startswith(ALLOWED_PREFIX):
            failures += [f"{name} may change, and the start ended with {codes}: {output[-300:]}"] * any(codes)
            allowed += not any(codes)
        else:
            is_refused = codes == [2] and name.removesuffix(".name") in output
            failures += [f"{name} may not change, and the start ended with {codes}: {output[-300:]}"] * (not is_refused)
            refused += is_refused
        shutil.rmtree(folder)
    return {"refused": refused, "allowed": allowed, "failures": failures}


def _continue(config: pretrain.Config, folder: Path, flags: Sequence[str] = ()) -> tuple[list[int], str]:
    """Continues the run with additional flags, and returns exit codes and output."""
    started = start(config, folder, flags=flags)
    return started.wait(), started.output(4000)


def _flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{name}", *map(str, values)]


def _new_values(work: Path, base: pretrain.Config, name: str) -> dict[str, Any]:
    """Returns another value of an option, with the options that must change with it."""
    if name.endswith(".name"):
        return {name: _other_parts(base)[name.removesuffix(".name")]}
    if name in ("data.source", "data.eval_source"):
        shutil.copytree(work / "splits", work / "moved", dirs_exist_ok=True)
        return {name: work / "moved"}
    if name == "init":
        return {name: work / "template" / "checkpoints" / "step_00000002"}
    if name == "folder":
        return {}  # the copied run already has another folder
    hint, value = next((hint, value) for one, hint, value in walk(base) if one == name)
    return NEW_VALUES.get(name) or {name: _another(hint, value)}


def _another(hint: Any, value: Any) -> Any:
    """Returns another value of the same type."""
    for arm in arms(hint):
        if get_origin(arm) is Literal:
            return next(str(choice) for choice in get_args(arm) if choice != value)
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return value * 2 or 1
    if isinstance(value, float):
        return value / 2 or 0.1
    if isinstance(value, tuple):
        return [item / 2 for item in value] or [1]
    kinds = {int: 2, float: 0.5, str: "other"}
    return next((kinds[arm] for arm in arms(hint) if arm in kinds), [1])


def _change_data(work: Path) -> dict[str, Any]:
    """Tests adding, removing, renaming and resizing files, and reordering a list of files."""
    failures = list[str]()
    for name, change in CHANGES.items():
        source, folder = work / f"data_{name}", work / f"run_{name}"
        shutil.copytree(work / "images", source)
        config = make_config(work, save_every=2, keep_last=None, steps=4)
        config = replace(config, data=replace(config.data, source=str(source)))
        failures += _check_change_of_data(config, folder, name, partial(change, source))
    listed = work / "videos" / "all.csv"
    rows = [
        f"{path.relative_to(work / 'videos')},{number % 8}" for number, path in enumerate(sorted((work / "videos").rglob("*.mp4")))
    ]
    listed.write_text("\n".join(rows))
    config = make_config(work, "video", save_every=2, keep_last=None, steps=4)
    config = replace(config, data=replace(config.data, source=str(listed)))
    failures += _check_change_of_data(config, work / "run_list", "list reordered", lambda: listed.write_text("\n".join(rows[::-1])))
    return {"changes": len(CHANGES) + 1, "failures": failures}


def _check_change_of_data(config: pretrain.Config, folder: Path, name: str, change: Callable[[], Any]) -> list[str]:
    """Changes the data of a run; the run must refuse it, and continue if the change is allowed by name."""
    _train_half(config, folder)
    change()
    codes, output = _continue(config, folder)
    failures = [f"{name}: ended with {codes}: {output[-300:]}"] * (codes != [2] or "data.fingerprint was" not in output)
    codes, output = _continue(config, folder, ["--allow", "data.fingerprint"])
    return failures + [f"{name}, allowed by name: ended with {codes}: {output[-300:]}"] * any(codes)


def _add(source: Path) -> None:
    Image.fromarray(make_image(999)).save(source / "class_0" / "999.png")


def _remove(source: Path) -> None:
    next(source.rglob("*.png")).unlink()


def _rename(source: Path) -> None:
    path = next(source.rglob("*.png"))
    path.rename(path.with_name("renamed.png"))


def _resize(source: Path) -> None:
    path = next(source.rglob("*.png"))
    Image.fromarray(np.asarray(Image.open(path))[:-1]).save(path)


CHANGES = {"added": _add, "removed": _remove, "renamed": _rename, "resized": _resize}
