"""Comparison of several runs: the options in which they differ, and their results, in one table and one plot."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from textwrap import shorten
from typing import Any

from mmm.evaluate.evaluator import Column, evaluators
from mmm.evaluate.plots.curves import draw_runs
from mmm.evaluate.run_results import Record

logger = logging.getLogger(__name__)

# options that do not change what is computed
NOT_A_CHOICE = {"folder", "resume", "allow", "init", "dry_run", "evaluate", "data.workers"}
NOT_A_CHOICE |= {f"train.{name}" for name in ("threads", "log_every", "save_every", "keep_last", "evaluate_every")}
NOT_A_CHOICE |= {"train.tracker", "train.tracker_options"}
# options that make losses incomparable, except for the way in which hidden tokens are withheld from the encoder
OTHER_LOSS = ("target.", "masker.", "tokenizer.", "data.")
SAME_LOSS = ("masker.blank",)
LONGEST = 60  # characters of a label that names the differing options; if labels are longer, rows are named by their folders
FIRST = {"steps": Column("updates", "{:,.0f}"), "samples": Column("samples", "{:,.0f}"), "loss": Column("loss", "{:.4f}")}
LAST = {"seconds": Column("seconds", "{:,.0f}")}


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: the values in which they differ from the other groups; if these are too long, the folder of the first run.
        runs: at least one, each with another seed.
        choices: the values in which they differ from the other groups, by name.
    """

    label: str
    runs: Sequence[Record]
    choices: Mapping[str, str] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """Returns a result of each run that has it."""
        return [value for run in self.runs if (value := figures(run).get(name)) is not None]

    def mean(self, name: str) -> float | None:
        """Returns the mean of a result over the runs that have it."""
        return mean(values) if (values := self.values(name)) else None

    def error(self, name: str) -> float | None:
        """Returns the standard error of that mean. None: fewer than two runs have the result."""
        values = self.values(name)
        return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def figures(run: Record) -> dict[str, float | None]:
    """Returns the results of a run by name. None: not measured."""
    training = {"steps": run.steps, "samples": run.steps * run.config["train.batch_size"], "loss": run.last("loss")}
    return training | run.figures | {"seconds": run.seconds}


def columns(runs: Sequence[Record]) -> dict[str, Column]:
    """Returns the columns of the table: first the results of the training, then those that evaluations declare, then all others."""
    declared = {name: column for part in evaluators.parts.values() for name, column in part.columns.items()}
    there = dict.fromkeys(name for run in runs for name in run.figures)
    known = {name: column for name, column in declared.items() if name in there}
    return FIRST | known | {name: Column(name) for name in there if name not in known} | LAST


def differing(runs: Sequence[Record]) -> list[str]:
    """Returns the names of options that differ between the runs. If a part differs, its own options are left out."""
    names = sorted({name for run in runs for name in run.config if not name.startswith("evaluate.")} - set(NOT_A_CHOICE))
    differ = _unlike(runs, names)
    swapped = [name.removesuffix("name") for name in differ if name.endswith(".name")]
    return [name for name in differ if name.endswith(".name") or not name.startswith(tuple(swapped) or ("\0",))]


def _unlike(runs: Sequence[Record], names: Iterable[str]) -> list[str]:
    """Returns the names whose values differ between the runs."""
    return [name for name in names if len({str(run.config.get(name)) for run in runs}) > 1]


def group_runs(runs: Sequence[Record]) -> list[Group]:
    """Groups runs that differ only in their seed. If all runs differ only in their seed, each run is a group.

    Of runs with equal options and seed, only the first counts, because the standard error assumes independent runs.
    """
    names = differing(runs)
    shared = [name for name in names if name != "seed"]
    groups: dict[Any, list[Record]] = {}
    for number, run in enumerate(runs):
        values = tuple((name, _plain(run.config[name])) for name in shared if name in run.config)
        members = groups.setdefault(values if shared else number, [])
        twin = next((other for other in members if other.config.get("seed") == run.config.get("seed")), None)
        if twin is None:
            members.append(run)
        else:
            logger.warning("%s has the same options and seed as %s, and is not counted again", run.path, twin.path)
    firsts = [members[0] for members in groups.values()]
    choices = [{name: _plain(run.config[name]) for name in names if name in run.config} for run in firsts]
    choices = [{name: value for name, value in one.items() if name != "seed" or not shared} for one in choices]
    labels = [" ".join(f"{name}={value}" for name, value in one.items()) for one in choices]
    if max(map(len, labels), default=0) > LONGEST or len(set(labels)) < len(labels) or not all(labels):
        labels = short_names([run.path for run in firsts])
    return [Group(*parts) for parts in zip(labels, groups.values(), choices, strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the names of folders, with as many of their parents as are needed to distinguish them."""
    whole = [path.resolve().parts for path in paths]
    count = next((n for n in range(1, max(map(len, whole))) if len({parts[-n:] for parts in whole}) == len(set(whole))), 1)
    return ["/".join(parts[-count:]) for parts in whole]


def warnings(runs: Sequence[Record]) -> list[str]:
    """Returns the reasons why the comparison is not fair, one sentence each."""
    names, said = differing(runs), []
    for unit, value in (
        ("updates", [run.steps for run in runs]),
        ("samples", [run.steps * run.config["train.batch_size"] for run in runs]),
    ):
        if len(set(value)) > 1:
            said.append(
                f"the runs have different numbers of {unit}: {', '.join(f'{number:,.0f}' for number in sorted(set(value)))}"
            )
    shared = sorted(set.intersection(*({name for name in run.config if name.startswith("evaluate.")} for run in runs)))
    if different := [name for name in _unlike(runs, shared) if not name.endswith(".every")]:
        said.append(f"they were evaluated differently: {', '.join(different)}")
    other = [name for name in names if name.startswith(OTHER_LOSS) and name not in SAME_LOSS]
    if other:
        said.append(f"they differ in {', '.join(other)}, so their losses cannot be compared; compare the accuracies")
    if len({tuple(sorted(str(run.config.get("seed")) for run in group.runs)) for group in group_runs(runs)}) > 1:
        said.append("the runs have different seeds")
    return said


def compare(groups: Sequence[Group], picture: Path | None) -> dict[str, Any]:
    """Compares groups of runs, and draws the picture.

    Returns:
        `columns`: title and format of each result; `rows`: label, runs, differing options, and mean and standard error of every
        result for each group; `warnings`; `picture`.
    """
    shown = columns([run for group in groups for run in group.runs])
    rows = [
        {
            "label": group.label,
            "runs": [str(run.path) for run in group.runs],
            "choices": dict(group.choices),
            **{name: {"mean": group.mean(name), "error": group.error(name)} for name in shown},
        }
        for group in groups
    ]
    if picture is not None:
        accuracies = [
            (column.title.replace(" ", "\n"), [group.mean(name) for group in groups])
            for name, column in shown.items()
            if column.form.endswith("%}")
        ]
        draw_runs([(group.label, group.runs) for group in groups], accuracies, picture)
    notes = warnings([run for group in groups for run in group.runs])
    return {
        "columns": {name: asdict(column) for name, column in shown.items()},
        "rows": rows,
        "warnings": notes,
        "picture": None if picture is None else str(picture),
    }


def format_comparison(found: dict[str, Any]) -> str:
    """Returns the table as text. Columns without a value are left out."""
    shown = {name: Column(**column) for name, column in found["columns"].items()}
    names = [name for name in shown if any(row[name]["mean"] is not None for row in found["rows"])]
    seeds = max(len(row["runs"]) for row in found["rows"])
    table = [["", *(["runs"] if seeds > 1 else []), *(shown[name].title for name in names)]]
    for row in found["rows"]:
        count = [str(len(row["runs"]))] if seeds > 1 else []
        table.append([row["label"], *count, *(_cell(row[name], shown[name].form) for name in names)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in table
    ]
    if seeds > 1:
        lines.append("mean ± standard error over the runs of a row")
    if not all(value in row["label"] for row in found["rows"] for value in row["choices"].values()):
        lines += ["", *_describe_choices(found["rows"])]
    return "\n".join([*lines, *(f"warning: {said}" for said in found["warnings"])])


def _describe_choices(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns lines of text: each differing option with its values in all rows."""
    names = dict.fromkeys(name for row in rows for name in row["choices"])
    values = {name: [shorten(row["choices"].get(name, "-"), LONGEST, placeholder="...") for row in rows] for name in names}
    return [f"{name}: {' | '.join(value)}" for name, value in values.items()]


def _cell(figure: dict[str, float | None], form: str) -> str:
    """Returns a mean as text, with its standard error if there is one."""
    if figure["mean"] is None:
        return "-"
    error = f" ± {form.format(figure['error'])}" if figure["error"] else ""
    return form.format(figure["mean"]) + error


def _plain(value: Any) -> str:
    """Returns a value in the form in which it is written after a flag."""
    return " ".join(map(_plain, value)) if isinstance(value, list) else "none" if value is None else str(value)
