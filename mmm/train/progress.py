"""Progress of training: a bar on a terminal, lines in a file."""

from __future__ import annotations

import logging
import os
import sys
from time import monotonic

from tqdm import tqdm

from mmm.train.loop import Update
from mmm.train.metrics import DataWait
from mmm.train.schedule import Plan

logger = logging.getLogger(__name__)

SILENCE = 60.0  # seconds after which a log file gets a line between two lines of metrics


class Progress:
    """Shows samples per second, the last loss and the remaining time; at the end, the time spent waiting for data.

    Attributes:
        bar: advanced by the samples of each update.
        shown: time of the last output.
    """

    def __init__(self, plan: Plan, start: int, main: bool) -> None:
        """Starts at update `start`. Only the process with `main` shows progress."""
        self.plan, self.start, self.main, self.terminal = plan, start, main, shows_bar()
        self.bar = tqdm(
            total=plan.steps * plan.batch_size,
            initial=start * plan.batch_size,
            unit=" samples",
            unit_scale=True,
            disable=not (main and self.terminal),
            dynamic_ncols=True,
        )
        self.wait, self.line = DataWait(), start
        self.began = self.shown = monotonic()

    def show(self, update: Update) -> None:
        """Shows an update's metrics, or the number of updates if it has none."""
        self.shown = monotonic()
        if update.metrics:
            self.wait.add(update.metrics, (update.step - self.line) * self.plan.batch_size)
            self.line = update.step
            self.bar.set_postfix(loss=f"{update.metrics['loss']:.4f}", step=update.step, refresh=False)
        if self.main and not self.terminal:
            seconds = (self.shown - self.began) / (update.step - self.start)
            line = f"step {update.step}/{self.plan.steps}, {seconds:.3g} s each"
            logger.info("%s", format_metrics(update, self.plan) if update.metrics else line)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
        if self.main and self.wait.seconds:
            logger.info("%s", self.wait)


def shows_bar() -> bool:
    """True if the output is a terminal that can show a bar. tqdm shows nothing on a terminal with 0 columns."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return True  # the size is unknown


def format_metrics(update: Update, plan: Plan) -> str:
    """Formats the metrics of an update as one line of a log file."""
    metrics = update.metrics
    left = (plan.steps - update.step) * plan.batch_size / metrics["samples_per_second"]
    return (
        f"step {update.step}/{plan.steps}  loss {metrics['loss']:.4f}  learning rate {metrics['learning_rate']:.2e}  "
        f"{metrics['samples_per_second']:.0f} samples/s, {metrics['data_wait']:.0%} of the time waiting for data  "
        f"{tqdm.format_interval(left)} left"
    )
