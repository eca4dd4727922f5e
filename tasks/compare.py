"""Compare runs in one table and one plot: runs that exist, or one recipe with parts swapped, at equal steps and seeds.

    mmm compare runs/a runs/b
    mmm compare --recipe recipes/image_mae.py --seeds 0 1 --swap masker.name=block decoder.name=linear,masker.blank=true
    mmm compare --recipe recipes/image_mae.py --preset cifar10 --change data.source=DATA train.steps=2000 --swap encoder.depth=6

A swap is one or several changes with commas between, each a flag of the recipe without its dashes.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.compare_runs import compare, format_comparison, group_runs
from mmm.evaluate.run_results import Record

logger = logging.getLogger(__name__)

POSITIONAL = "runs"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare runs."""

    runs: tuple[str, ...] = ()
    """Folders of runs to compare."""

    recipe: str | None = None
    """A recipe to run, once as it is and once with each swap, for each seed."""

    preset: str | None = None
    """The recipe's preset; None: what the recipe itself takes."""

    swap: tuple[str, ...] = ()
    """Variants of the recipe: name=value, or several of them with commas between."""

    change: tuple[str, ...] = ()
    """Changes that all variants share, for instance train.steps=500."""

    seeds: tuple[int, ...] = (0,)
    """Seeds that every variant is run with."""

    launcher: str | None = None
    """Command that starts the recipe, for instance "accelerate launch"; None: this Python."""

    out: str | None = None
    """Folder for the table, the plot and the runs of a recipe; None: runs/compare-N with the next free N."""


def run(config: Config) -> dict[str, Any]:
    """Makes the runs that are asked for, prints the table, and writes it and the plot."""
    _check(config)
    runs = [Record.read(path) for path in config.runs]  # first: what is no run is said before a folder is made
    folder = _folder(config.out)
    runs += [Record.read(path) for path in make_runs(config, folder)]
    found = compare(group_runs(runs), folder / "comparison.png")
    text = format_comparison(found)
    (folder / "comparison.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "comparison.txt").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\ntable: {folder / 'comparison.txt'}, {folder / 'comparison.json'}\nplot: {found['picture']}")
    return found


def make_runs(config: Config, folder: Path) -> list[Path]:
    """Runs the recipe, variant after variant; a run that is in the folder already is gone on with, or only evaluated again.

    Raises:
        ValueError: where a run fails; it has said why.
    """
    made = []
    for path, command in commands(config, folder):
        logger.info("%s", shlex.join(command))
        code = subprocess.run(command, check=False).returncode
        if code:
            raise ValueError(f"a run failed with exit code {code}, see above; the same command goes on from there")
        made.append(path)
    return made


def commands(config: Config, folder: Path) -> list[tuple[Path, list[str]]]:
    """Folder and command of every run, seeds outermost, so that a comparison that is cut short is still fair."""
    if config.recipe is None:
        return []
    start = shlex.split(config.launcher) if config.launcher else [sys.executable]
    start += [config.recipe, *(["--preset", config.preset] if config.preset else []), *flags(config.change)]
    found = []
    for seed in config.seeds:
        for swap in ("", *config.swap):
            path = folder / (re.sub(r"[^\w.=+-]+", "_", swap) or "as-it-is") / f"seed-{seed}"
            run = ["--seed", str(seed), "--folder", str(path), "--resume", "auto"]
            found.append((path, [*start, *flags([swap] if swap else []), *run]))
    return found


def flags(changes: Sequence[str]) -> list[str]:
    """The recipe's flags: "decoder.name=linear,data.mean=0.5 0.5" becomes --decoder.name linear --data.mean 0.5 0.5.

    Raises:
        ValueError: for what is no change.
    """
    found: list[str] = []
    for change in changes:
        for one in re.split(r",(?=[\w.]+=)", change):  # a comma inside a value stays
            name, equals, value = one.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", name):
                raise ValueError(f"{one!r} is no change of a flag; write name=value, for instance masker.name=block")
            found += [f"--{name}", *value.split()]
    return found


def _check(config: Config) -> None:
    if config.recipe is None and len(config.runs) < 2:
        raise ValueError("give two or more runs to compare, or a --recipe with --swap")
    if config.recipe is None and (config.swap or config.change or config.preset):
        raise ValueError("--swap, --change and --preset say how to run a recipe; name it with --recipe")
    if config.recipe is not None and not Path(config.recipe).is_file():
        raise ValueError(f"--recipe {config.recipe} does not exist; give the path of a recipe's file")
    if config.recipe is not None and not config.swap and len(config.seeds) + len(config.runs) < 2:
        raise ValueError("--recipe alone is one run; give variants with --swap, or several --seeds")
    taken = [name for name in flags([*config.change, *config.swap]) if name in ("--folder", "--seed")]
    if taken:
        raise ValueError(f"{taken[0].removeprefix('--')} is the comparison's own to set; leave it out of --swap and --change")


def _folder(out: str | None) -> Path:
    """The folder of this comparison, made."""
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        return Path(out)
    number = 1
    while True:
        path = Path("runs") / f"compare-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
