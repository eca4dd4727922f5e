"""R15: tests that each changed option of a run, and each change of its data, is refused or allowed when the run continues, as the
table in this file says. A refusal names the old and the new value. Options that are not in the table are refused, so that a new
option cannot be overlooked.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import LANES, side_by_side, start
from benchmarks.reliability.runs import IMAGES, config_of, make_data, picture, quicker
from mmm.config.overrides import apply_flags, part_configs, walk
from mmm.core.checks import arms
from mmm.core.registry import REGISTRIES
from mmm.data import ClipsConfig
from mmm.tokenizers import Tubes
from tasks import pretrain

COUNT, QUICK = 1000, 16  # maximum number of changed options; there are about a hundred
# options that may change: where a run computes, how often it logs and saves, and what it evaluates
FREE = {
    *("folder", "resume", "allow", "dry_run", "init", "evaluate"),
    *(f"data.{name}" for name in ("source", "workers", "cache", "max_bad", "deadline")),
    *(f"train.{name}" for name in ("micro_batch_size", "checkpoint_blocks", "compile", "strict", "threads", "log_every")),
    *(f"train.{name}" for name in ("max_skipped", "save_every", "keep_last", "keep_every", "evaluate_every", "timeout", "tracker")),
}
FREE_GROUPS = ("evaluate.",)
NOT_TRIED = {"train.compile": "takes a compiler and a minute", "train.tracker": "takes another package"}
# values that are valid with the other options, where the next value would not be
FITTING: dict[str, dict[str, Any]] = {
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


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests at most `count` random options, and all changes of the data."""
    make_data(work)
    _make_splits(work)
    base = _base(work)
    _template(base, work / "template")
    names = [name for name, _, value in walk(base) if not _is_nested(value)] + [f"{kind}.name" for kind in _other_parts(base)]
    names = draw.sample(names, min(count, len(names)))
    jobs: dict[str, Any] = {f"lane_{lane}": partial(_choices, work, base, names[lane::LANES]) for lane in range(LANES)}
    jobs["data"] = partial(_data, work)
    found = side_by_side(work, jobs)
    wrong = [line for one in found.values() for line in one["wrong"]]
    tried = {name: sum(one.get(name, 0) for one in found.values()) for name in ("refused", "allowed")}
    return {"choices": len(names), **tried, "not tried": NOT_TRIED, "changes of data": found["data"].get("changes"), "wrong": wrong}


def _base(work: Path) -> pretrain.Config:
    config = quicker(config_of(work, save_every=2, keep_last=None, micro_batch_size=4), steps=4)
    colour = {"channels": 3, "mean": (0.5,) * 3, "std": (0.18,) * 3}
    return replace(config, data=replace(config.data, source=str(work / "splits"), **colour))


def _make_splits(work: Path) -> None:
    for number in range(IMAGES):
        path = work / "splits" / ("train", "train", "val", "test")[number % 4] / f"class_{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)


def _template(config: pretrain.Config, folder: Path) -> None:
    """Trains a run up to step 2 of 4."""
    if any(codes := (started := start(config, folder)).wait()):
        raise RuntimeError(f"the first run ended with {codes}: {started.said()}")
    shutil.rmtree(folder / "checkpoints" / "step_00000004")


def _is_nested(value: Any) -> bool:
    return hasattr(value, "__dataclass_fields__")


def _other_parts(config: pretrain.Config) -> dict[str, str]:
    """Returns, for each kind of part that has an alternative, the name of the alternative."""
    found = {}
    for path, value in part_configs(config).items():
        if others := sorted(set(REGISTRIES[value.kind].parts) - {value.name}):
            found[path] = others[0]
    return found


def _choices(work: Path, base: pretrain.Config, names: list[str]) -> dict[str, Any]:
    wrong, refused, allowed = list[str](), 0, 0
    for name in names:
        if name in NOT_TRIED:
            continue
        free = name in FREE or name.startswith(FREE_GROUPS)
        folder = work / f"changed_{name}"
        shutil.copytree(work / "template", folder)
        flags = [word for one, value in _changed(work, folder, base, name).items() for word in _flag(one, value)]
        codes, said = _start(base, folder, flags)
        named = name.removesuffix(".name") in said
        if free:
            wrong += [f"{name} is free, and the start ended with {codes}: {said[-300:]}"] * any(codes)
            allowed += not any(codes)
        else:
            wrong += [f"{name} was changed, and the start ended with {codes}: {said[-300:]}"] * (codes != [2] or not named)
            refused += codes == [2] and named
        shutil.rmtree(folder)
    return {"refused": refused, "allowed": allowed, "wrong": wrong}


def _start(config: pretrain.Config, folder: Path, flags: list[str]) -> tuple[list[int], str]:
    """Starts the run with additional flags, and returns exit codes and output."""
    kept = [word for word in flags if word]
    started = start(apply_flags(config, []), folder, 1, None, kept)
    return started.wait(), started.said(4000)


def _flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{name}", *map(str, values)]


def _changed(work: Path, folder: Path, base: pretrain.Config, name: str) -> dict[str, Any]:
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
    return FITTING.get(name) or {name: _another(hint, value)}


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


def _data(work: Path) -> dict[str, Any]:
    """Tests adding, removing, renaming and resizing files, and reordering a list of files."""
    wrong = []
    for name, change in CHANGES.items():
        source, folder = work / f"data_{name}", work / f"run_{name}"
        shutil.copytree(work / "images", source)
        config = quicker(config_of(work, save_every=2, keep_last=None), steps=4)
        config = replace(config, data=replace(config.data, source=str(source)))
        wrong += _refused_unless_named(config, folder, name, partial(change, source))
    listed = work / "films" / "all.csv"
    rows = [
        f"{path.relative_to(work / 'films')},{number % 8}" for number, path in enumerate(sorted((work / "films").rglob("*.mp4")))
    ]
    listed.write_text("\n".join(rows))
    config = quicker(config_of(work, "video", save_every=2, keep_last=None), steps=4)
    assert isinstance(config.data, ClipsConfig)
    assert isinstance(config.tokenizer, Tubes.Config)
    config = replace(config, data=replace(config.data, source=str(listed)))
    wrong += _refused_unless_named(config, work / "run_list", "list reordered", lambda: listed.write_text("\n".join(rows[::-1])))
    return {"changes": len(CHANGES) + 1, "wrong": wrong}


def _refused_unless_named(config: pretrain.Config, folder: Path, name: str, change: Callable[[], Any]) -> list[str]:
    _template(config, folder)
    change()
    codes, said = _start(config, folder, [])
    wrong = [f"{name}: ended with {codes}: {said[-300:]}"] * (codes != [2] or "data.fingerprint was" not in said)
    codes, said = _start(config, folder, ["--allow", "data.fingerprint"])
    return wrong + [f"{name}, allowed by name: ended with {codes}: {said[-300:]}"] * any(codes)


def _add(source: Path) -> None:
    Image.fromarray(picture(999)).save(source / "class_0" / "999.png")


def _remove(source: Path) -> None:
    next(source.rglob("*.png")).unlink()


def _rename(source: Path) -> None:
    path = next(source.rglob("*.png"))
    path.rename(path.with_name("renamed.png"))


def _resize(source: Path) -> None:
    path = next(source.rglob("*.png"))
    Image.fromarray(np.asarray(Image.open(path))[:-1]).save(path)


CHANGES = {"added": _add, "removed": _remove, "renamed": _rename, "resized": _resize}
