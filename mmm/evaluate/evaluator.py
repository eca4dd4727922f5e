"""Evaluations as parts: measurements of a model during training, after it, or by `mmm evaluate`.

An evaluation is a class with a nested `Config`, registered under the name that `--evaluate` takes:

    @evaluators.register("width")
    class Width(Evaluator):
        @dataclass(frozen=True, kw_only=True)
        class Config(EvaluatorConfig):
            "No options."

        def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
            return {"width": model.encoder.shape.width}

Its result is appended to the run's evaluations.jsonl, which `mmm compare` reads. During training, its figures are also logged in
metrics.jsonl and by trackers, and printed at the end of the run.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from mmm.core.checks import Positive
from mmm.core.modes import evaluating
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
    """Updates between two of these evaluations during training. None: only after training."""

    @property
    def flag(self) -> str:
        """Common prefix of its flags."""
        return f"evaluate.{self.name}"


class EvaluatorSet(PartSet):
    """The evaluations of a config."""

    kind = "evaluator"


@dataclass(frozen=True)
class Column:
    """Display of a number by `mmm compare`.

    Attributes:
        title: title of the column.
        form: format string. Numbers whose format ends in a percent sign are accuracies in [0, 1], and are drawn as bars.
    """

    title: str
    form: str = "{:.4g}"


@dataclass(kw_only=True)
class Context:
    """The data, device and paths that an evaluation gets in addition to the model.

    Attributes:
        data: options of the samples.
        masker: draws the masks for this data.
        device: device of the model.
        title: title of the model, for pictures.
        untrained: builds the same model with its initial random weights.
        pictures: folder for pictures. None: no pictures, as in processes other than the main one.
        changes: options, by name, in which the data differs from that of the model's run. They become part of the names of
            pictures.
        source: empty for the first source of a run, else the name of the source, which is appended to the names of results.
        step: number of updates of the weights. None: not known.
        steps: number of updates of the whole run, for maskers with a schedule.
        batch_size: number of samples that the model processes at once.
        dtype: type for autocast. None: fp32.
        test_split: split of the source to evaluate on. None: the evaluation split, as in training.
        problems: inputs that could not be read; evaluations append those of their own process.
        train_samples: the training samples, if they are open already.
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
        """The training samples, whose labels may be used."""
        return open_data(self.data, "train") if self.train_samples is None else self.train_samples

    @cached_property
    def test(self) -> Images | Clips:
        """The samples to evaluate on."""
        return open_data(self.data, self.test_split or "eval")

    @property
    def compute(self) -> dict[str, Any]:
        """Returns how models compute: `device`, `dtype` and `batch_size`."""
        return {"device": self.device, "dtype": self.dtype, "batch_size": self.batch_size}

    @property
    def heading(self) -> str:
        """Title of the model, with its step."""
        return self.title if self.step is None else f"{self.title}, step {self.step:,}"

    def named(self, name: str) -> str:
        """Returns a name for results on this source."""
        return f"{name}_{self.source}" if self.source else name

    def picture(self, kind: str) -> Path | None:
        """Returns the path of a picture of this step. None: no picture is drawn."""
        return None if self.pictures is None else self.pictures / f"{output_name(self.named(kind), self.step, self.changes)}.png"


class Evaluator(ABC):
    """A measurement of a model. It is built from its config alone.

    Attributes:
        config: the user's choices.
        needs_labels: whether the samples must have labels.
        online: whether it runs during training even if `every` is None: every `train.evaluate_every` updates, and after the last
            update.
        columns: title and format of its numbers in `mmm compare`, by name. Other numbers are shown under their names.
    """

    config: EvaluatorConfig
    needs_labels: ClassVar[bool] = False
    online: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {}

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    @abstractmethod
    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Measures a model in evaluation mode. All processes call it, each with a complete model; only the main process draws.

        Returns:
            Plain values by name, which are appended to evaluations.jsonl in the run folder.
        """

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Returns the reason why this evaluation does not apply to a model. None: it applies."""
        return None

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers that are logged and compared. Default: all values of the result that are numbers."""
        return {name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}

    def format(self, found: Mapping[str, Any]) -> str:
        """Returns a result as text, in one or more lines."""
        shown = [f"{name} {self.columns.get(name, Column(name)).form.format(value)}" for name, value in self.figures(found).items()]
        return f"{self.config.name}: {', '.join(shown)}"


Due = tuple[Evaluator, Context]


@dataclass(frozen=True)
class Result:
    """The result of one evaluation on one source.

    Attributes:
        name: name of the evaluation and of the source.
        found: the value that `Evaluator.run` returned.
        figures: the numbers of the result, by names that include the source.
        text: the result as text.
    """

    name: str
    found: dict[str, Any]
    figures: dict[str, float]
    text: str

    def record(self, run: Path, step: int, *, averaged: bool) -> Path:
        """Appends the result to evaluations.jsonl in a run folder, and returns the path of that file; see `run_results.record`."""
        return record(run, self.name, step, self.found | {"figures": self.figures}, averaged=averaged)


class Evaluations:
    """The evaluations of one model on each source of its data.

    An evaluation that does not apply to the model is left out with a warning.

    Args:
        configs: the evaluations.
        model: the model, whose parts decide which evaluations apply.
        contexts: one for each source.
        every: number of updates between two evaluations during training (`train.evaluate_every`).

    Attributes:
        intervals: updates between two evaluations, for those that run during training. None: only after the last update.

    Raises:
        ValueError: an evaluation needs labels that the first source does not have.
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
        self.intervals = {self._interval(evaluator) for evaluator, _ in self.pairs}

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
        """Number of inputs that evaluations read during training."""
        online = [context for evaluator, context in self.pairs if self._interval(evaluator) is not None or evaluator.online]
        return sum(len(context.test) for context in self.contexts if any(context is one for one in online))

    def write_to(self, title: str, pictures: Path | None) -> None:
        """Sets the title of the run and its folder of pictures. None: no pictures."""
        for context in self.contexts:
            context.title, context.pictures = title, pictures

    def due(self, step: int, steps: int) -> list[Due]:
        """Returns the evaluations that are due after update `step` of `steps`."""
        return [
            (evaluator, context)
            for evaluator, context in self.pairs
            if due(step, self._interval(evaluator), steps) and (evaluator.online or step < steps)
        ]

    def measure(self, due: Sequence[Due], model: MaskedModel, step: int, *, batch_size: int | None = None) -> dict[str, float]:
        """Runs evaluations during training, and returns their numbers by names that include the source.

        Args:
            due: the evaluations, as `due` returns them.
            model: a complete model, which needs no other process.
            batch_size: number of samples that the model gets at once. None: that of the context.
        """
        figures: dict[str, float] = {}
        for evaluator, context in due:
            usual, context.batch_size = context.batch_size, batch_size or context.batch_size
            figures |= self._result(evaluator, context, model, step).figures
            context.batch_size = usual
        return figures

    def finish(self, model: MaskedModel, step: int | None, *, again: bool = False) -> Iterator[Result]:
        """Runs the evaluations that follow training, one by one. A failed evaluation is logged as an error and left out.

        Args:
            again: also run the evaluations that already run during training, as `mmm evaluate` does.
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
        with evaluating(model):  # after training, the model may be in training mode
            found = evaluator.run(model, context)
        try:
            json.dumps(found)
        except TypeError as error:
            raise ValueError(f"its result is not JSON ({error}); return numbers, texts, lists and dicts of them") from error
        figures = {context.named(name): value for name, value in evaluator.figures(found).items()}
        return Result(context.named(evaluator.config.name), found, figures, evaluator.format(found))

    def _interval(self, evaluator: Evaluator) -> int | None:
        own = evaluator.config.every
        return self.every if own is None and evaluator.online else own

    def take_problems(self) -> list[Problem]:
        """Returns the inputs that this process could not read since the last call."""
        problems = [problem for context in self.contexts for problem in context.problems]
        for context in self.contexts:
            context.problems.clear()
        return problems
