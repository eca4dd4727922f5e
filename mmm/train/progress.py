"""What a person sees while a model trains: a bar on a terminal, lines in a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from time import monotonic

from tqdm import tqdm

from mmm.train.loop import Update
from mmm.train.schedule import Plan
from mmm.train.waiting import Waits

logger = logging.getLogger(__name__)

SILENCE = 60.0  # seconds after which a log file gets a line between two lines of metrics


def show_progress(updates: Iterator[Update], plan: Plan, *, start: int, main: bool) -> Iterator[Update]:
    """Passes updates on, and shows samples per second, the loss of the last line of metrics, and the time left; at the end, how
    long was waited for data.

    Args:
        start: updates made before.
        main: whether this is the process that shows.
    """
    terminal = _shows_bar()
    bar = tqdm(
        total=plan.steps * plan.batch_size,
        initial=start * plan.batch_size,
        unit=" samples",
        unit_scale=True,
        disable=not (main and terminal),
        dynamic_ncols=True,
    )
    waits, line, began = Waits(), start, monotonic()
    said = began
    try:
        for update in updates:
            bar.update(plan.batch_size)
            if update.metrics is not None:
                waits.add(update.metrics, (update.step - line) * plan.batch_size)
                line = update.step
                bar.set_postfix(loss=f"{update.metrics['loss']:.4f}", step=update.step, refresh=False)
            if main and not terminal and (update.metrics is not None or monotonic() - said > SILENCE):
                pace = (monotonic() - began) / (update.step - start)
                logger.info(
                    "%s",
                    f"step {update.step}/{plan.steps}, {pace:.3g} s each" if update.metrics is None else describe(update, plan),
                )
                said = monotonic()
            yield update
    finally:  # also of a run that was asked to stop
        bar.close()
        if main and waits.seconds:
            logger.info("%s", waits)


def _shows_bar() -> bool:
    """Whether a person sees a bar; tqdm shows nothing on a terminal of 0 columns."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return True  # it has no size


def describe(update: Update, plan: Plan) -> str:
    """One line for a log file. The update has metrics."""
    metrics = update.metrics or {}
    left = (plan.steps - update.step) * plan.batch_size / metrics["samples_per_second"]
    return (
        f"step {update.step}/{plan.steps}  loss {metrics['loss']:.4f}  learning rate {metrics['learning_rate']:.2e}  "
        f"{metrics['samples_per_second']:.0f} samples/s, {metrics['data_wait']:.0%} of the time waiting for data  "
        f"{tqdm.format_interval(left)} left"
    )
