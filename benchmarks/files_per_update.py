"""Counts the files of this project that one training update passes through.

    python -m benchmarks.files_per_update
    python -m benchmarks.files_per_update --recipe video_mae

Runs a recipe's demonstration for a few updates, records every call between two optimiser steps (`sys.setprofile`), and lists the
files under mmm/ and tasks/ with their numbers of lines. The update that is counted writes no metrics and runs no evaluation.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from mmm.config.cli import main as run_recipe

ROOT = Path(__file__).parents[1]
FIRST, STEPS = 3, 5  # the optimiser step after which the counted update begins; number of updates in the run


def files_of_an_update(recipe: str, flags: list[str]) -> list[Path]:
    """Returns the files, relative to the repository, in the order in which the update first enters them."""
    found: dict[Path, None] = {}
    made = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found[Path(frame.f_code.co_filename)] = None

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        sys.setprofile(note if made == FIRST else None)

    sys.path.insert(0, str(ROOT / "recipes"))
    module = importlib.import_module(recipe)
    hook = register_optimizer_step_post_hook(count)
    try:
        with tempfile.TemporaryDirectory() as folder:
            short = ["--preset", "demo", "--train.steps", str(STEPS), "--train.log_every", "1000", "--evaluate"]
            run_recipe(module.pretrain.run, presets=module.PRESETS, doc="", argv=[*short, "--folder", f"{folder}/run", *flags])
    finally:
        sys.setprofile(None)
        hook.remove()
    own = [path.relative_to(ROOT) for path in found if path.is_relative_to(ROOT)]
    return [path for path in own if path.parts[0] in ("mmm", "tasks")]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="image_mae", help="a file in recipes/, without its ending")
    options, flags = parser.parse_known_args()
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in files_of_an_update(options.recipe, flags)}
    for path, count in lines.items():
        print(f"{count:6}  {path}")
    print(f"{sum(lines.values()):6}  lines in {len(lines)} files")


if __name__ == "__main__":
    main()
