"""Results of a run, read from its folder: config, metrics, and evaluations.

Evaluations are lines of `evaluations.jsonl`: {"kind": "features", "step": 1000, "averaged": false, "figures": {...}, ...}.
`averaged` states whether the moving average of the weights (`train.ema`) was evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mmm.config.diff import flatten
from mmm.config.serialize import read_yaml
from mmm.system.redact import redact
from mmm.train.run.folder import RESULT
from mmm.train.run.lock import find_holder

EVALUATIONS = "evaluations.jsonl"
KINDS = ("tokenizer", "masker", "encoder", "decoder", "target", "pool")
NOT_IN_NAMES = re.compile(r"[^\w.]+")  # characters that names of files do not contain
# numbers in metrics.jsonl that are not results of evaluations
OF_TRAINING = frozenset(
    ("step", "epoch", "loss", "learning_rate", "grad_norm", "skipped", "samples_per_second", "data_wait", "clock")
)


def record(
    run: Path,
    kind: str,
    step: int,
    found: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
    *,
    averaged: bool = False,
) -> Path:
    """Appends the result of an evaluation to a run's folder, and returns the file.

    Args:
        run: the run folder.
        kind: name of the evaluation, for instance `features`.
        step: number of updates of the weights.
        found: the result, as plain values. `mmm compare` compares its `figures`.
        changes: options that differ from those of the run. `mmm compare` ignores a result with such changes.
        averaged: whether the moving average of the weights was evaluated.
    """
    line = {"kind": kind, "step": step, "averaged": averaged} | ({"changes": dict(changes)} if changes else {})
    with (run / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | dict(found)) + "\n")
    return run / EVALUATIONS


def output_name(kind: str, step: int | None, changes: Mapping[str, Any]) -> str:
    """Returns the name of a result file without its suffix: reconstruction_00000500 for step 500 with the data of the run,
    reconstruction_00000500_source-my_images_ratio-0.9 for other data and another ratio."""
    words = [kind, *([] if step is None else [f"{step:08d}"])]
    words += [f"{name}-{NOT_IN_NAMES.sub('-', redact(str(value))).strip('-.')[-40:]}" for name, value in changes.items()]
    return "_".join(words)


@dataclass(frozen=True)
class Record:
    """Config, metrics and evaluations of a run.

    Attributes:
        path: the folder.
        config: values by dotted names.
        metrics: the lines of metrics.jsonl.
        evaluations: the last result of each kind on the data of the run and of the weights that `read` selects.
    """

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path, *, trained: bool = True, averaged: bool | None = None) -> Record:
        """Reads a run folder. The run may still be in progress.

        Args:
            trained: whether the folder must be that of a training run. Otherwise it may also be an exported model, which has no
                training options.
            averaged: whether to read the results of the moving average of the weights instead of those of the trained weights.
                None: those of the weights that the run evaluates at its end, which are the average if the run has one. A result
                that does not state its weights counts as one of these.

        Raises:
            ValueError: the folder is not a run folder, or a file in it cannot be read.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is not a run folder: it has no config.yaml")
        try:
            config = flatten(read_yaml((path / "config.yaml").read_text(encoding="utf-8")))
        except (yaml.YAMLError, AttributeError) as error:
            raise ValueError(f"{path / 'config.yaml'} cannot be read: {' '.join(str(error).split())}") from error
        if trained and not isinstance(config.get("train.batch_size"), int):
            raise ValueError(f"{path} is not a run folder: its config.yaml has no train.batch_size")
        usual = config.get("train.ema") is not None
        wanted = usual if averaged is None else averaged
        own = [line for line in _lines(path / EVALUATIONS) if "changes" not in line and line.get("averaged", usual) == wanted]
        found = {line["kind"]: line for line in own}
        return cls(path, config, _lines(path / "metrics.jsonl"), found)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns steps and values of a metric, without missing and non-finite values."""
        points = [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, name: str) -> float | None:
        """Returns the last value of a metric."""
        values = self.series(name)[1]
        return values[-1] if values else None

    @cached_property
    def figures(self) -> dict[str, float]:
        """Last number of each evaluation, by name, from metrics.jsonl and evaluations.jsonl, or else from result.json."""
        names = dict.fromkeys(name for line in self.metrics for name in line if name not in OF_TRAINING)
        logged = {name: value for name in names if (value := self.last(name)) is not None}
        logged |= {name: value for line in self.evaluations.values() for name, value in line.get("figures", {}).items()}
        return logged or self._scores()

    def _scores(self) -> dict[str, float]:
        """Returns the accuracies in result.json. A probe that is fitted without updates has no other numbers."""
        found = json.loads(self._result.read_text(encoding="utf-8")) if self._result.is_file() else {}
        return {f"{name}_top1": score["top1"] for name, score in found.items() if isinstance(score, dict) and "top1" in score}

    @property
    def _result(self) -> Path:
        return self.path / RESULT

    @property
    def steps(self) -> int:
        """Number of logged updates."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def planned(self) -> int | None:
        """Number of updates of the whole run. None: it is stated in epochs, and nothing has been logged yet."""
        steps, epochs = self.config.get("train.steps"), self.config.get("train.epochs")
        if steps is not None or epochs is None or not self.metrics:
            return steps
        line = next((line for line in reversed(self.metrics) if line.get("epoch")), None)
        return None if line is None else math.ceil(round(epochs * line["step"] / line["epoch"], 6))

    @property
    def state(self) -> str:
        """The state of the run: running, finished, or stopped. A stopped run can be resumed."""
        if find_holder(self.path):
            return "running"
        if not self.metrics and self._result.is_file():  # a probe that is fitted without updates
            return "finished"
        return "finished" if self.planned is not None and self.steps >= self.planned else "stopped"

    @property
    def parts(self) -> dict[str, str]:
        """The names of the parts, by kind, in the order of the forward."""
        return {kind: self.config[f"{kind}.name"] for kind in KINDS if f"{kind}.name" in self.config}

    @cached_property
    def seconds(self) -> float | None:
        """Seconds of training without evaluations and checkpoints: the sum of samples / samples per second over the log lines."""
        total, before = 0.0, 0
        for line in self.metrics:
            rate = line.get("clock", {}).get("samples_per_second")
            if rate:
                total += (line["step"] - before) * self.config["train.batch_size"] / rate
                before = line["step"]
        return total or None


def _lines(file: Path) -> list[dict[str, Any]]:
    """Reads a file of JSON lines; a missing file has no lines. An incomplete last line is left out.

    Raises:
        ValueError: a line is not JSON; the message names it.
    """
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if line.endswith("\n"):
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
    return found
