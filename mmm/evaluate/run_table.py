"""A table of run folders: the recipe, parts, steps, state and figures of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.run_results import Record
from mmm.system.redact import redact
from mmm.train.run.lock import find_holder

PARTS = ("tokenizer", "masker", "encoder", "decoder", "target")


@dataclass(frozen=True)
class RunSummary:
    """One run in a table.

    Attributes:
        record: its config, metrics and evaluations.
        recipe: what started it, for instance `image_mae`; "-" where the folder does not say.
        parts: the names of its parts.
        steps: updates that were made.
        planned: updates that it is to make, or None where only epochs are planned.
        state: `finished`, `stopped`, or `running` with the process that holds the folder.
    """

    record: Record
    recipe: str
    parts: tuple[str, ...]
    steps: int
    planned: int | None
    state: str

    @classmethod
    def read(cls, path: str | Path) -> RunSummary:
        """Reads a run folder.

        Raises:
            ValueError: it is no run, or a file in it cannot be read.
        """
        record = Record.read(path)
        config, last = record.config, record.metrics[-1] if record.metrics else {}
        planned, epochs = config.get("train.steps"), config.get("train.epochs")
        done = record.steps >= planned if planned is not None else epochs is not None and last.get("epoch", 0) >= epochs
        holder = find_holder(Path(path))
        state = f"running: {holder}" if holder else "finished" if done else "stopped"
        parts = tuple(str(config[f"{part}.name"]) for part in PARTS if f"{part}.name" in config)
        return cls(record, _recipe(Path(path)), parts, record.steps, planned, state)

    @property
    def loss(self) -> float | None:
        """The last loss, of held-out samples where there is one."""
        held = self.record.last("held_out_loss")
        return self.record.last("loss") if held is None else held

    def row(self) -> dict[str, str]:
        """The cells of its row, by column."""
        steps = f"{self.steps:,}" + (f" of {self.planned:,}" if self.planned is not None else "")
        figures = {name: value for name, value in self.record.figures.items() if name != "held_out_loss"}
        return {
            "run": str(self.record.path),
            "recipe": self.recipe,
            "parts": " ".join(self.parts),
            "steps": steps,
            "state": self.state,
            "loss": "-" if self.loss is None else f"{self.loss:.4f}",
            "figures": "  ".join(f"{name} {value:.4g}" for name, value in figures.items()) or "-",
        }


def find_runs(paths: Sequence[str]) -> list[Path]:
    """Returns the run folders among paths and everywhere below them, in the order of their names.

    Raises:
        ValueError: a path is no folder.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; give run folders, or a folder of runs")
        found += sorted(file.parent for file in path.rglob("config.yaml") if _is_run(file.parent))
    return list(dict.fromkeys(found))


def format_runs(rows: Sequence[dict[str, str]]) -> str:
    """Returns rows as aligned text; a row with a `problem` has that in place of its cells."""
    whole = [row for row in rows if "problem" not in row]
    names = list(whole[0]) if whole else []
    widths = {name: max(len(name), *(len(row[name]) for row in whole)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names).rstrip()] if whole else []
    for row in rows:
        if "problem" in row:
            lines.append(f"{row['run']}: {row['problem']}")
        else:
            lines.append("  ".join(row[name].ljust(widths[name]) for name in names).rstrip())
    return "\n".join(lines)


def _is_run(folder: Path) -> bool:
    """Whether a folder with a config.yaml is a run and not a saved model."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "environment.json"))


def starts_of(path: Path) -> list[dict[str, Any]]:
    """Returns what environment.json says of each start of a run; nothing where it cannot be read."""
    try:
        found = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []


def _recipe(path: Path) -> str:
    """The recipe of the command that started a run, or its task."""
    command = [str(word) for start in starts_of(path)[:1] for word in start.get("command") or ()]
    if not command:
        return "-"
    words = [word for word in command[1:3] if not word.startswith("-")]
    return redact(words[-1] if words and "recipes" not in command[0] else Path(command[0]).stem)
