"""The training of a task, from the start of its run folder to the last checkpoint.

    with RunFolder.open(config.folder, "pretrain", config, ...) as folder, open_session(folder, config, ...) as session:
        for update in session:
            if update.due(config.train.evaluate_every):
                update.metrics["held_out_loss"] = ...
        ...  # the evaluations that the run ends with

The session does the work that all tasks share: the watchdog, the micro-batch size, restoring, trackers, unreadable inputs, log
lines and checkpoints. There are no hooks: the task evaluates in its own `for` loop, and the values that it adds to `update.metrics`
are logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from torch import Tensor, nn

from mmm.data import BadInputs, Batch
from mmm.data.datasets.mixture import Mixture
from mmm.data.transforms.resize import kernel_in_use
from mmm.system.files import write_json
from mmm.train.config import RunConfig
from mmm.train.loop import Update, fit
from mmm.train.memory.batch_size_finder import Trial, find_micro_batch_size
from mmm.train.memory.dry_run import dry_run
from mmm.train.memory.usage import advise_on_memory
from mmm.train.progress import SILENCE, Progress
from mmm.train.run.folder import RESULT, RunFolder
from mmm.train.schedule import Plan
from mmm.train.state import Training
from mmm.train.trackers import Tracker
from mmm.train.watchdog.watchdog import Watchdog

logger = logging.getLogger(__name__)


class Objective(Protocol):
    """The forward with its loss."""

    def loss(self, model: nn.Module, batch: Any, step: int, /) -> Tensor:
        """Returns the mean loss of a micro-batch, (). Moves the batch to the device, and calls `model`, never its `forward`."""
        ...


@dataclass
class Session:
    """A training in progress; see `open_session`.

    Attributes:
        config: config of the task.
        training: the model and its optimizer.
        objective: the loss.
        data: the training samples.
        plan: the plan, with a micro-batch that fits into memory.
        folder: the run folder.
        bad_inputs: the unreadable inputs; evaluations append theirs to its `pending`.
        tracker: the experiment tracker, or one that does nothing.
        metrics: the last value of each metric.
    """

    config: RunConfig
    training: Training
    objective: Objective
    data: Mixture
    plan: Plan
    folder: RunFolder
    bad_inputs: BadInputs
    tracker: Tracker
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> bool:
        """True if this is the process that writes and prints."""
        return self.training.accelerator.is_main_process

    def __iter__(self) -> Iterator[Update]:
        """Trains from the current step to the end of the run. Each update is logged and saved after the body of the task's loop."""
        updates = fit(
            self.training,
            self._batches(),
            self.objective.loss,
            config=self.config.train,
            plan=self.plan,
            seed=self.config.seed,
            name_samples=partial(self.data.name_samples, batch_size=self.plan.batch_size),
        )
        progress = Progress(self.plan, self.training.step, self.main)
        try:
            for update in updates:
                progress.bar.update(self.plan.batch_size)
                if update.metrics or monotonic() - progress.shown > SILENCE:
                    progress.show(update)
                yield update
                if update.metrics or update.save:
                    self._record(update)
        finally:  # also if a stop was requested
            progress.close()

    def _batches(self) -> Iterator[Batch]:
        """Yields the micro-batches of this process from the current step, and notes unreadable inputs."""
        batches = self.data.batches(
            batch_size=self.plan.micro_batch_size,
            steps=self.plan.steps,
            start_step=self.training.step,
            accumulation=self.plan.accumulation,
            world=self.plan.processes,
            rank=self.training.accelerator.process_index,
        )
        for batch in batches:
            if batch.problems:
                self.bad_inputs.note(batch.problems)
            yield batch

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends numbers to metrics.jsonl and passes them to the tracker; an empty mapping is ignored."""
        if metrics:
            self.folder.log(step, metrics)
            self.tracker.log(metrics, step)
            self.metrics |= metrics

    def write_result(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Ends the run with its scores: checks the unreadable inputs, and writes result.json from the main process.

        Args:
            found: the scores. If it contains `step`, this is the step of the scored weights.

        Returns:
            The content of the file: the `run`, the `step`, and the scores.
        """
        self.bad_inputs.finish()
        result = {"run": str(self.folder.path), "step": self.training.step, **found}
        if self.main:
            write_json(self.folder.path / RESULT, result)
        return result

    def _record(self, update: Update) -> None:
        """Logs metrics, saves a checkpoint if one is due, and stops the run if too many inputs are unreadable."""
        folder, config = self.folder, self.config.train
        folder.note_skipped(update.skipped)
        self.bad_inputs.share()
        self.log(update.step, update.metrics)
        if update.save:
            self.training.save(folder.checkpoints, config.keep_last, keep_every=config.keep_every, needed=update.last)
        self.bad_inputs.check()  # after the checkpoint, so that a run that stops here keeps it


@contextmanager
def open_session(
    folder: RunFolder,
    config: RunConfig,
    training: Training,
    objective: Objective,
    data: Mixture,
    plan: Plan,
    *,
    evaluated: int = 0,
    unit: int | None = 1,
) -> Iterator[Session]:
    """Starts the watchdog, finds the micro-batch size, and restores the run if it is resumed.

    Args:
        folder: the open run folder.
        evaluated: number of inputs that are read in addition to the training samples; `data.max_bad` is a share of all.
        unit: the micro-batch size is a multiple of this and of `data.repeats`. None: the plan's micro-batch size is kept.

    Raises:
        ValueError: see `find_micro_batch_size` and `Training.restore`; also if memory does not suffice.
    """
    accelerator, train = training.accelerator, config.train
    data.check(plan.micro_batch_size)
    with Watchdog(training, train.timeout):
        if train.micro_batch_size is None and unit is not None:
            checkpointed = train.checkpoint_blocks
            plan = fitting_plan(training, objective, data, plan, unit=unit, folder=folder.path, checkpointed=checkpointed)
        training.micro_batch_size = plan.micro_batch_size
        with advise_on_memory(plan, checkpointed=train.checkpoint_blocks, unit=math.lcm(unit or 1, data.unit)):
            if config.resume:
                folder.record_changes(training.restore(folder.checkpoints, config.allow), training.step, config)
            folder.cut_metrics(training.step)  # also if the run died before its first checkpoint, and is started again
            tracker = Tracker(
                accelerator, train.tracker, folder.path, training.identity, options=train.tracker_options, step=training.step
            )
            inputs = evaluated + sum(len(part) for part in data.parts)
            max_bad = data.parts[0].config.max_bad
            bad_inputs = BadInputs(folder.path / "bad_inputs.jsonl", inputs, max_bad, write=accelerator.is_main_process)
            announce(data, plan, folder.path)
            yield Session(config, training, objective, data, plan, folder, bad_inputs, tracker)
            tracker.log_pictures(training.step)
            accelerator.end_training()  # last, because it ends the process group, which evaluations use


def fitting_plan(
    training: Training,
    objective: Objective,
    data: Mixture,
    plan: Plan,
    *,
    unit: int,
    folder: Path | None = None,
    checkpointed: bool = False,
) -> Plan:
    """Returns the plan with the largest micro-batch size that fits in memory, tried with one batch of each source.

    Args:
        unit, folder, checkpointed: see `find_micro_batch_size`.
    """
    trials = [Trial(partial(data.sample_batch, source), objective.loss) for source in range(len(data.parts))]
    unit = math.lcm(unit, data.unit)
    return find_micro_batch_size(training, plan, trials, unit=unit, folder=folder, checkpointed=checkpointed)


def preview(
    config: RunConfig,
    training: Training,
    objective: Objective,
    data: Mixture,
    plan: Plan,
    *,
    tokens: Mapping[str, int] | None = None,
    unit: int | None = 1,
) -> str:
    """Returns the table of a dry run, measured on real samples of the first source; see `open_session` and `dry_run`.

    Args:
        tokens: numbers of tokens of a sample. None: those of the model's tokenizer.
    """
    if tokens is None:
        model: Any = training.unwrapped
        tokens = {"of a sample": math.prod(model.tokenizer.grid_of(data.parts[0].config.size))}
    if config.train.micro_batch_size is None and unit is not None:
        plan = fitting_plan(training, objective, data, plan, unit=unit)
    notes = {"resizing": kernel_in_use()} | about_repeats(data, plan) | about_sources(data)
    return dry_run(training, Trial(partial(data.sample_batch, 0), objective.loss), plan=plan, tokens=tokens, notes=notes)


def about_repeats(data: Mixture, plan: Plan) -> dict[str, str]:
    """Explains the effect of several samples per decode on epochs, batches and the learning rate."""
    config = data.parts[0].config
    if config.repeats == 1:
        return {}
    noun, epochs = config.medium.noun, plan.epoch(plan.steps)
    return {
        "data.repeats": f"{config.repeats} samples of each decoded input",
        "effective epochs": f"{epochs * config.repeats:.4g} samples of each of the {noun}; each is decoded {epochs:.4g} times",
        "inputs an update": f"{plan.batch_size // config.repeats:,}, for {plan.batch_size:,} samples",
        "learning rate": "scaled by the samples of an update, repeats among them",
    }


def about_sources(data: Mixture) -> dict[str, str]:
    """Explains the number of updates on each of two sources."""
    if len(data.parts) == 1:
        return {}
    (first, second), names = data.updates, [part.config.source for part in data.parts]
    return {
        "two sources": f"of {first + second} updates, {first} on {names[0]} and {second} on {names[1]}; "
        "this table and its epochs are about the first"
    }


def announce(data: Mixture, plan: Plan, folder: Path) -> None:
    """Logs the data, the length of the run and its folder."""
    for part in data.parts:
        classes = "" if part.classes is None else f" of {len(part.classes)} classes"
        logger.info("%s: %s %s%s (%s)", part.config.source, f"{len(part):,}", part.config.medium.noun, classes, part.where)
    steps, samples, epochs = f"{plan.steps:,}", f"{plan.batch_size:,}", plan.epoch(plan.steps)
    logger.info("%s steps of %s samples (%.4g epochs), peak learning rate %.3g", steps, samples, epochs, plan.peak)
    logger.info("run folder %s", folder)
