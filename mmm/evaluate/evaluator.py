"""Evaluations as parts: measurements of a model in the course of a training, at its end, or by `mmm evaluate`.

An evaluation is a class with a nested `Config`, registered under the name by which `--evaluate` chooses it:

    @evaluators.register("width")
    class Width(Evaluator):
        @dataclass(frozen=True, kw_only=True)
        class Config(EvaluatorConfig):
            "Nothing to choose."

        def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
            return {"width": model.encoder.shape.width}

What it finds is appended to the run's evaluations.jsonl, which `mmm compare` reads. In a training, its figures are also logged in
metrics.jsonl and by trackers, and printed at the end of the run.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from mmm.core.checks import Positive
from mmm.core.registry import PartConfig, PartSet, Registry
from mmm.data import Clips, DataConfig, Images, Problem, open_data
from mmm.evaluate.run_results import output_name, record
from mmm.maskers import Masker
from mmm.model import MaskedModel
from mmm.train.schedule import due

logger = logging.getLogger(__name__)

evaluators: Registry[Evaluator] = Registry("evaluator")


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig(PartConfig):
    """Base of the `Config` of each evaluation."""

    every: Positive | None = None
    """Updates between two of these evaluations in the course of a training; none: only at its end."""

    @property
    def flag(self) -> str:
        """The name of its flags' group."""
        return f"evaluate.{self.name}"


class EvaluatorSet(PartSet):
    """The evaluations that a config names."""

    kind = "evaluator"


@dataclass(frozen=True)
class Column:
    """Display of a number by `mmm compare`.

    Attributes:
        title: of the column.
        form: a format; numbers whose format ends in a percent sign are accuracies in [0, 1], and are drawn as bars.
    """

    title: str
    form: str = "{:.4g}"


@dataclass(kw_only=True)
class Context:
    """The data, device and paths that an evaluation gets beside the model.

    Attributes:
        data: how the samples are read.
        masker: for the masks of this data.
        device: of the model.
        title: of the model, for pictures.
        untrained: builds the same model with the random weights that the training began with.
        pictures: folder for pictures; None: none are drawn, as in the processes that are not the main one.
        changes: choices by which the data is not that of the model's run, by name; names of pictures hold them.
        source: empty for the first source of a run; else the name of another, which is appended to names of results.
        step: updates that the weights have seen; None: not known.
        steps: updates of the whole run, for maskers with a schedule.
        batch_size: samples that the model gets at once.
        dtype: of autocast; None: fp32.
        test_split: split of the source to evaluate on; None: the evaluation part, as in training.
        problems: inputs that could not be read; evaluations append those of their own process.
        train_samples: the training samples, where they are open already.
    """

    data: DataConfig
    masker: Masker
    device: torch.device
    title: str
    untrained: Callable[[], MaskedModel]
    pictures: Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    step: int | None = None
    steps: int = 1
    batch_size: int = 256
    dtype: torch.dtype | None = None
    test_split: str | None = None
    problems: list[Problem] = field(default_factory=list)
    train_samples: Images | Clips | None = None

    @cached_property
    def train(self) -> Images | Clips:
        """The samples that the model is trained on, and whose labels may be used."""
        return open_data(self.data, "train") if self.train_samples is None else self.train_samples

    @cached_property
    def test(self) -> Images | Clips:
        """The samples to evaluate on."""
        return open_data(self.data, self.test_split or "eval")

    @property
    def heading(self) -> str:
        """Title of the model and its step."""
        return self.title if self.step is None else f"{self.title}, step {self.step:,}"

    def named(self, name: str) -> str:
        """A name for results on this source."""
        return f"{name}_{self.source}" if self.source else name

    def picture(self, kind: str) -> Path | None:
        """Path of a picture of this step, or None where none is drawn."""
        return None if self.pictures is None else self.pictures / f"{output_name(self.named(kind), self.step, self.changes)}.png"


class Evaluator(ABC):
    """A measurement of a model. Built from its config alone.

    Attributes:
        config: the user's choices.
        needs_labels: whether the samples must have labels.
        online: whether it is made in the course of a training also where `every` is none: as often as `train.evaluate_every` says,
            and after the last update.
        columns: the numbers that `mmm compare` shows, by name, and how; numbers that are not here are shown under their names.
    """

    config: EvaluatorConfig
    needs_labels: ClassVar[bool] = False
    online: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {}

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    @abstractmethod
    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Measures a model. Called by all processes, with a model that needs no other process; at most the main one draws.

        Returns:
            Plain values by name. They are appended to evaluations.jsonl in the run's folder.
        """

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Returns the reason for which a model cannot be evaluated so, or None where it can."""
        return None

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers that are logged and compared, from what `run` returned: all that stand in it by themselves."""
        return {name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}

    def format(self, found: Mapping[str, Any]) -> str:
        """Returns what is printed of a result, one or several lines."""
        shown = [f"{name} {self.columns.get(name, Column(name)).form.format(value)}" for name, value in self.figures(found).items()]
        return f"{self.config.name}: {', '.join(shown)}"


Due = tuple[Evaluator, Context]


@dataclass(frozen=True)
class Result:
    """The result of one evaluation on one source.

    Attributes:
        name: of the evaluation, with that of the source.
        found: what `Evaluator.run` returned.
        figures: its numbers, by names that tell sources apart.
        text: for a person.
    """

    name: str
    found: dict[str, Any]
    figures: dict[str, float]
    text: str

    def record(self, run: Path, step: int) -> Path:
        """Appends the result to the evaluations.jsonl of a run, and returns that file."""
        return record(run, self.name, step, self.found | {"figures": self.figures})


class Evaluations:
    """The evaluations of one model on each source of its data.

    What cannot serve the model is left out with a warning.

    Args:
        configs: which.
        model: only its parts matter here.
        contexts: one for each source.
        every: updates between two evaluations that are made in the course of a training (`train.evaluate_every`).

    Raises:
        ValueError: where one needs labels that the first source does not have.
    """

    def __init__(self, configs: EvaluatorSet, model: MaskedModel, contexts: Sequence[Context], *, every: int | None = None) -> None:
        self.every, self.contexts = every, list(contexts)
        self.pairs: list[Due] = []
        for evaluator in (evaluators.build(config) for config in configs):
            for context in self.contexts:
                if reason := self._why_not(evaluator, model, context):
                    logger.warning("--evaluate %s is left out: %s", context.named(evaluator.config.name), reason)
                else:
                    self.pairs.append((evaluator, context))

    def _why_not(self, evaluator: Evaluator, model: MaskedModel, context: Context) -> str | None:
        if evaluator.needs_labels and (context.train.labels() is None or context.test.labels() is None):
            part = context.train if context.train.labels() is None else context.test
            reason = f"it needs labels, and {part.title} have none"
            if not context.source:
                name = evaluator.config.name
                raise ValueError(f"--evaluate {name}: {reason}; leave it out, or name the labels with data.label_column")
            return reason
        return evaluator.why_not(model, context)

    @property
    def inputs(self) -> int:
        """Inputs that are read in the course of a training, beside those that are trained on."""
        online = [context for evaluator, context in self.pairs if self._interval(evaluator) is not None or evaluator.online]
        return sum(len(context.test) for context in self.contexts if any(context is one for one in online))

    def write_to(self, title: str, pictures: Path | None) -> None:
        """Names the run for titles, and its folder of pictures; None: no pictures."""
        for context in self.contexts:
            context.title, context.pictures = title, pictures

    def due(self, step: int, steps: int) -> list[Due]:
        """The evaluations to make after an update, in the course of a training of so many."""
        return [
            (evaluator, context)
            for evaluator, context in self.pairs
            if due(step, self._interval(evaluator), steps) and (evaluator.online or step < steps)
        ]

    def measure(self, due: Sequence[Due], model: MaskedModel, step: int, *, batch_size: int | None = None) -> dict[str, float]:
        """Makes evaluations in the course of a training, and returns their numbers by names that tell sources apart.

        Args:
            due: from `due`.
            model: that needs no other process.
            batch_size: samples that the model gets at once; None: as many as the context says.
        """
        figures: dict[str, float] = {}
        for evaluator, context in due:
            usual, context.batch_size = context.batch_size, batch_size or context.batch_size
            figures |= self._result(evaluator, context, model, step).figures
            context.batch_size = usual
        return figures

    def finish(self, model: MaskedModel, step: int | None, *, again: bool = False) -> Iterator[Result]:
        """Makes the evaluations that a training ends with, one by one. One that fails is logged as an error, and left out.

        Args:
            again: also make those that are made in the course of a training, as `mmm evaluate` does.
        """
        for evaluator, context in self.pairs:
            if again or not evaluator.online:
                logger.info("evaluation %s", context.named(evaluator.config.name))
                try:
                    yield self._result(evaluator, context, model, step)
                except ValueError as error:
                    logger.error("the evaluation %s failed: %s", context.named(evaluator.config.name), error)

    def _result(self, evaluator: Evaluator, context: Context, model: MaskedModel, step: int | None) -> Result:
        context.step = step
        found = evaluator.run(model, context)
        figures = {context.named(name): value for name, value in evaluator.figures(found).items()}
        return Result(context.named(evaluator.config.name), found, figures, evaluator.format(found))

    def _interval(self, evaluator: Evaluator) -> int | None:
        own = evaluator.config.every
        return self.every if own is None and evaluator.online else own

    def take_problems(self) -> list[Problem]:
        """The inputs that this process could not read since this was called last."""
        problems = [problem for context in self.contexts for problem in context.problems]
        for context in self.contexts:
            context.problems.clear()
        return problems
