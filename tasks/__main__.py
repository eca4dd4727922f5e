"""The console script: `mmm TASK ...`. Only the chosen task is imported."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

USAGE = "mmm TASK [flags]\n\nTasks (mmm TASK --help shows a task's flags):"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one task; gives the process's exit code.

    Args:
        argv: without the program's name; none: the process's own.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    known = tasks()
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join([USAGE, *(f"  {name:<17}{summary}" for name, summary in known.items())]))
        return 0 if argv else 2
    if argv[0] == "--version":
        print(import_module("mmm").__version__)
        return 0
    name, rest = argv[0], argv[1:]
    if name not in known:
        from mmm.core.registry import suggest

        print(f"error: no task is called {name!r}{suggest(name, known)}", file=sys.stderr)
        return 2
    _run(import_module(f"tasks.{name}"), name, rest)
    return 0


def tasks() -> dict[str, str]:
    """Every task's name and the first line of its docstring, read without importing it."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0] for file in files}


def _run(task: ModuleType, name: str, argv: list[str]) -> dict[str, Any]:
    """Reads the task's flags and runs it."""
    from mmm.config import cli as config

    first = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    if first and hasattr(task, "POSITIONAL"):  # `mmm knn runs/a` is `mmm knn --model runs/a`
        argv = [f"--{task.POSITIONAL}", *argv]
    with config.plain_errors(int(os.environ.get("RANK", "0")), running=False):
        default = _default(task, name, argv)
    return config.main(task.run, presets=default, doc=task.__doc__ or "", argv=argv, prog=f"mmm {name}")


def _default(task: ModuleType, name: str, argv: Sequence[str]) -> Any:
    """What the flags change: the task's own defaults or, where it has none, the saved config that --config names."""
    if hasattr(task, "defaults"):  # which follow from other flags
        from mmm.config.overrides import group_flags

        return task.defaults(dict(group_flags(argv)))
    needed = [field.name for field in fields(task.Config) if field.default is field.default_factory is MISSING]
    if not needed:
        return task.Config()
    from mmm.config import cli as config
    from mmm.config.overrides import group_flags, resumed_config

    if "--config" in argv[:-1]:
        return config.load(task.Config, argv[argv.index("--config") + 1])
    if (resumed := resumed_config(dict(group_flags(argv)))) is not None:
        return config.load(task.Config, resumed)
    missing = f"mmm {name} has no values of its own for {', '.join(needed)}"
    cure = "start from a saved config (--config runs/x/config.yaml) or run a recipe (accelerate launch recipes/image_mae.py)"
    if {"-h", "--help"} & set(argv):
        print(f"{task.__doc__}\n{missing}; {cure}. With either, --help shows all flags.")
        raise SystemExit(0)
    print(f"error: {missing}; {cure}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
