"""Compare runs in one table and one plot: existing runs, or variants of a recipe with equal steps and seeds.

    mmm compare runs/a runs/b
    mmm compare --recipe image_mae --seeds 0 1 --swap masker.name=block decoder.name=linear,masker.blank=true
    mmm compare --recipe image_mae --preset cifar10 --change data.source=DATA train.steps=2000 --swap encoder.depth=6

A swap is one change or several, separated by commas. Each change is a flag of the recipe without dashes.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.core.checks import CheckedConfig, suggest
from mmm.evaluate.compare_runs import compare, format_comparison, group_runs
from mmm.evaluate.run_results import Record
from mmm.system.files import write_json
from mmm.train.run.folder import next_free

logger = logging.getLogger(__name__)

POSITIONAL = "runs"
RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Compare runs."""

    runs: tuple[str, ...] = ()
    """Folders of runs to compare."""

    recipe: str | None = None
    """A recipe to run for each seed, unchanged and with each swap: its name, or the path of its file."""

    preset: str | None = None
    """Preset of the recipe. None: the recipe's own choice."""

    swap: tuple[str, ...] = ()
    """Variants of the recipe: name=value, or several of these separated by commas."""

    change: tuple[str, ...] = ()
    """Changes that all variants share, for instance train.steps=500."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs of every variant."""

    launcher: str | None = None
    """Command that starts the recipe, for instance "accelerate launch". None: this Python."""

    out: str | None = None
    """Folder for the table, the plot and the runs of a recipe. None: runs/compare-N with the next free N."""


def run(config: Config) -> dict[str, Any]:
    """Runs the recipe, if one is given; prints the table; writes the table and the plot."""
    _check(config)
    runs = [Record.read(path) for path in config.runs]  # first, so that a wrong folder is reported before anything is written
    folder = _folder(config.out)
    runs += [Record.read(path) for path in make_runs(config, folder)]
    found = compare(group_runs(runs), folder / "comparison.png")
    text = format_comparison(found)
    write_json(folder / "comparison.json", found)
    (folder / "comparison.txt").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\ntable: {folder / 'comparison.txt'}, {folder / 'comparison.json'}\nplot: {found['picture']}")
    return found


def make_runs(config: Config, folder: Path) -> list[Path]:
    """Runs the variants of the recipe one by one. An unfinished run in the folder is resumed, and a finished run is only evaluated
    again.

    Raises:
        ValueError: a run failed. It has printed the reason.
    """
    made = []
    for path, command in commands(config, folder):
        logger.info("%s", shlex.join(command))
        code = subprocess.run(command, check=False).returncode
        if code:
            raise ValueError(f"a run failed with exit code {code}, see above; the same command continues from there")
        made.append(path)
    return made


def commands(config: Config, folder: Path) -> list[tuple[Path, list[str]]]:
    """Returns the folder and the command of every run. All variants of a seed come before the next seed, so that an interrupted
    comparison is fair."""
    if config.recipe is None:
        return []
    start = shlex.split(config.launcher) if config.launcher else [sys.executable]
    start += [str(recipe_file(config.recipe)), *(["--preset", config.preset] if config.preset else []), *flags(config.change)]
    found = []
    for seed in config.seeds:
        for swap in ("", *config.swap):
            path = folder / (re.sub(r"[^\w.=+-]+", "_", swap) or "as-it-is") / f"seed-{seed}"
            run = ["--seed", str(seed), "--folder", str(path), "--resume", "auto"]
            found.append((path, [*start, *flags([swap] if swap else []), *run]))
    return found


def recipe_file(recipe: str) -> Path:
    """Returns the file of a recipe, from its path or its name.

    Raises:
        ValueError: there is no such file, and no recipe of this name.
    """
    own, known = RECIPES / f"{recipe}.py", sorted(path.stem for path in RECIPES.glob("[!_]*.py"))
    if Path(recipe).is_file():
        return Path(recipe)
    if recipe not in known:
        raise ValueError(f"--recipe {recipe} is not a recipe{suggest(recipe, known)}")
    return own


def flags(changes: Sequence[str]) -> list[str]:
    """Returns the flags of a variant. "decoder.name=linear,data.mean=0.5 0.5" becomes --decoder.name linear --data.mean 0.5 0.5.

    Raises:
        ValueError: a word is not a change.
    """
    found: list[str] = []
    for change in changes:
        for one in re.split(r",(?=[\w.]+=)", change):  # does not split at a comma inside a value
            name, equals, value = one.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", name):
                raise ValueError(f"{one!r} is not a change of a flag; write name=value, for instance masker.name=block")
            found += [f"--{name}", *value.split()]
    return found


def _check(config: Config) -> None:
    if config.recipe is None and len(config.runs) < 2:
        raise ValueError("give two or more runs to compare, or a --recipe with --swap")
    if config.recipe is None and (config.swap or config.change or config.preset):
        raise ValueError("--swap, --change and --preset change a recipe; give it with --recipe")
    if config.recipe is not None:
        recipe_file(config.recipe)
    if config.recipe is not None and not config.swap and len(config.seeds) + len(config.runs) < 2:
        raise ValueError("--recipe alone is one run; give variants with --swap, or several --seeds")
    taken = [name for name in flags([*config.change, *config.swap]) if name in ("--folder", "--seed")]
    if taken:
        raise ValueError(f"{taken[0].removeprefix('--')} is set by the comparison; leave it out of --swap and --change")


def _folder(out: str | None) -> Path:
    """Makes the folder of this comparison, and returns it."""
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        return Path(out)
    return next_free("compare")
