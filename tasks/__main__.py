"""The console script `mmm TASK [RECIPE] [flags]`. It imports only the chosen task.

Help and errors about flags are printed without importing torch, which takes seconds."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks._placeholders import placeholders

RECIPES = Path(__file__).parents[1] / "recipes"
HELP = {"-h", "--help", "--help_all", "--help-all"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one task, and returns the exit code of the process.

    Args:
        argv: arguments without the program's name. None: those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    known = summaries(Path(__file__).parent)
    if not argv or argv[0] in HELP:
        print(usage(known))
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in known:
        with placeholders():
            if name == "--version":
                print(import_module("mmm").__version__)
                return 0
            suggest = import_module("mmm.core.checks").suggest
            print(f"error: there is no task {name!r}{suggest(name, known)}", file=sys.stderr)
            return 2
    if "torch" not in sys.modules and "RANK" not in os.environ:
        answer_early(name, rest)
    run_task(name, rest)
    return 0


def answer_early(name: str, argv: list[str]) -> None:
    """Prints help or an error about a flag without importing torch, and ends the process. Returns if there is neither."""
    if any(word == "--use" or word.startswith("--use=") for word in argv):
        return  # the user's file may need the libraries
    with contextlib.suppress(Exception), placeholders():  # `run_task` reports other errors
        from mmm.config import cli
        from mmm.core.checks import FlagError

        try:
            _, options = read_command(name, argv)
            cli.parse(options["presets"], options["argv"], doc=options["doc"], prog=options["prog"])
        except FlagError as error:
            with cli.plain_errors(0, running=False):
                raise error


def summaries(folder: Path) -> dict[str, str]:
    """Returns the name of every task or recipe in a folder with the first line of its docstring, which is read without an
    import."""
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("[!_]*.py"))}
    return {name: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0] for name, text in texts.items()}


def usage(tasks: dict[str, str]) -> str:
    """Returns the text of `mmm --help`."""
    lines = ["usage: mmm TASK [RECIPE] [--FLAG VALUE ...]", "", "Tasks (mmm TASK --help shows the flags of a task):"]
    lines += [f"  {name:<17}{summary}" for name, summary in tasks.items()]
    lines += ["", "Recipes, the values of one experiment (for instance mmm pretrain image_mae --help):"]
    return "\n".join([*lines, f"  {', '.join(summaries(RECIPES))}"])


def run_task(name: str, argv: list[str]) -> dict[str, Any]:
    """Reads the flags of a task and runs it."""
    from mmm.config import cli

    with cli.plain_errors(int(os.environ.get("RANK", "0")), running=False):
        task, options = read_command(name, argv)
    return cli.main(task.run, **options)


def read_command(name: str, argv: list[str]) -> tuple[ModuleType, dict[str, Any]]:
    """Imports a task and the recipe that the command line names, and returns the task and the options of `cli.main`.

    Raises:
        FlagError: there is no such recipe, it is for another task, or the task needs a recipe and none is given.
    """
    from mmm.core.checks import FlagError, nearest

    task = import_module(f"tasks.{name}")
    first = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    recipe = argv[0] if first and argv[0] in summaries(RECIPES) else None
    if recipe is not None:
        first, argv = first - 1, argv[1:]
    if first and hasattr(task, "POSITIONAL"):  # `mmm knn runs/a` is `mmm knn --model runs/a`
        argv = [f"--{task.POSITIONAL}", *argv]
    elif recipe is None and first:
        raise FlagError(f"there is no recipe {argv[0]!r}{nearest(argv[0], summaries(RECIPES))} (mmm --help lists them)")
    presets, doc = read_recipe(task, recipe) if recipe else (default_of(task, name, argv), task.__doc__ or "")
    prog = " ".join(["mmm", name, *([recipe] if recipe else [])])
    return task, {"presets": presets, "doc": doc, "argv": argv, "prog": prog}


def read_recipe(task: ModuleType, name: str) -> tuple[Any, str]:
    """Returns the presets and the docstring of a recipe.

    Raises:
        FlagError: the recipe is for another task.
    """
    from mmm.core.checks import FlagError

    recipe = import_module(f"recipes.{name}")
    kind = type(next(iter(recipe.PRESETS.values())))
    if kind is not task.Config:
        raise FlagError(f"{name} is a recipe for another task: mmm {kind.__module__.removeprefix('tasks.')} {name}")
    return recipe.PRESETS, recipe.__doc__ or ""


def default_of(task: ModuleType, name: str, argv: Sequence[str]) -> Any:
    """Returns the config that the flags change: the defaults of the task or, if it has none, the saved config that the flags
    name."""
    from mmm.config.overrides import group_flags, resumed_config
    from mmm.config.serialize import load
    from mmm.core.checks import FlagError

    if hasattr(task, "defaults"):  # the defaults depend on other flags
        return task.defaults(dict(group_flags(argv)))
    needed = [field.name for field in fields(task.Config) if field.default is field.default_factory is MISSING]
    if not needed:
        return task.Config()
    if "--config" in argv[:-1]:
        return load(task.Config, argv[argv.index("--config") + 1])
    if (resumed := resumed_config(dict(group_flags(argv)))) is not None:
        return load(task.Config, resumed)
    missing = f"mmm {name} has no default for {', '.join(needed)}"
    hint = f"name a recipe (mmm {name} image_mae) or a saved config (--config runs/x/config.yaml)"
    if HELP & set(argv):
        print(f"{task.__doc__}\n{missing}; {hint}. With either, --help shows all flags.")
        raise SystemExit(0)
    raise FlagError(f"{missing}; {hint}")


if __name__ == "__main__":
    sys.exit(main())
