"""Curves of the metrics of one run, and comparisons of the curves of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from mmm.evaluate.run_results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RATE = "#1c1e22", "#6e727a", "#d9dce3"
LEGEND = 100  # characters per line of the legend
COLOURS = ("#2f6fde", "#e4572e", "#2a9d6f", "#8f5bd6", "#c98a0c", "#17889c", "#d1478c", "#6b7280")


def draw_loss(folder: Path, path: Path) -> Path:
    """Draws the loss of a run on training and held-out samples, with the learning rate in the background."""
    run = Record.read(folder)
    figure = new_figure(7.2, 4.0)
    axes = figure.add_subplot()
    steps, loss = run.series("loss")
    axes.plot(steps, loss, color=COLOURS[0], linewidth=1.4, label="training samples")
    held, held_loss = run.series("held_out_loss")
    if held:
        label = "held-out samples, fixed masks"
        axes.plot(held, held_loss, color=COLOURS[1], linewidth=1.4, marker="o", markersize=3.5, label=label)
    _rate(axes, run)
    plain(axes, "updates", "loss")
    _look_past_start(axes, [(steps, loss), (held, held_loss)])
    _neighbours(axes, run)
    figure.suptitle(f"{run.path.name}: masked loss", x=0.02, ha="left", fontsize=11, color=INK)
    return save_figure(figure, path)


def _neighbours(axes: Axes, run: Record) -> None:
    """Draws the accuracy of nearest neighbours, if it was measured, on a second axis on the right, and draws the legend."""
    handles, labels = axes.get_legend_handles_labels()
    steps, top1 = run.series("knn_top1")
    if steps:
        beside = axes.twinx()
        handles += beside.plot(steps, [100 * value for value in top1], color=COLOURS[2], linewidth=1.4, marker="o", markersize=3.5)
        labels.append("nearest neighbours, accuracy")
        beside.spines["right"].set_position(("axes", 1.14))  # outside the axis of the learning rate
        beside.set_ylim(0, 115 * max(top1) or 1.0)
        beside.set_ylabel("accuracy, %", color=COLOURS[2], fontsize=9)
        beside.tick_params(colors=COLOURS[2], labelsize=8, length=0)
        for spine in beside.spines.values():
            spine.set_visible(False)
    axes.legend(handles, labels, frameon=False, labelcolor=INK, fontsize=9)


def _rate(axes: Axes, run: Record) -> None:
    """Draws the learning rate as a light area in the background, with its axis on the right."""
    steps, rate = run.series("learning_rate")
    behind = axes.twinx()
    behind.fill_between(steps, rate, color=RATE, alpha=0.5, linewidth=0)
    behind.set_ylim(0, max(rate, default=1.0) * 1.05 or 1.0)
    behind.set_ylabel("learning rate", color=FAINT, fontsize=9)
    behind.tick_params(colors=FAINT, labelsize=8, length=0)
    behind.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    behind.yaxis.get_offset_text().set(color=FAINT, fontsize=8)
    for spine in behind.spines.values():
        spine.set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.set_facecolor("none")


def draw_runs(
    groups: Sequence[tuple[str, Sequence[Record]]], scores: Sequence[tuple[str, Sequence[float | None]]], path: Path
) -> Path:
    """Draws loss curves of groups of runs (different seeds of the same options), and next to them their final accuracies.

    Args:
        groups: for each group its label, and its runs, which have the same colour.
        scores: for each score its title, and the mean of each group in [0, 1]. None: not measured.
    """
    scores = [(title, values) for title, values in scores if any(value is not None for value in values)]
    entries = ["\n".join(wrap(label, LEGEND)) for label, _ in groups]
    lines = sum(entry.count("\n") + 1 for entry in entries)
    figure = new_figure(10.5 if scores else 7.2, 4.2 + 0.2 * lines)
    grid = figure.add_gridspec(1, 2, width_ratios=(2, 1)) if scores else figure.add_gridspec(1, 1)
    axes = figure.add_subplot(grid[0, 0])
    for entry, (_, runs), colour in zip(entries, groups, cycle(COLOURS)):
        axes.plot([], [], color=colour, linewidth=3, label=entry)
        for run in runs:
            held = run.series("held_out_loss")
            axes.plot(*run.series("loss"), color=colour, linewidth=0.9 if held[0] else 1.4, alpha=0.45 if held[0] else 1.0)
            axes.plot(*held, color=colour, linewidth=1.6, marker="o", markersize=3.5)
    plain(axes, "updates", "loss (thin: training samples; dots: held-out samples)")
    _look_past_start(axes, [run.series(name) for _, runs in groups for run in runs for name in ("loss", "held_out_loss")])
    figure.legend(loc="outside lower left", frameon=False, labelcolor=INK, fontsize=9)
    if scores:
        _bars(figure.add_subplot(grid[0, 1]), scores)
    return save_figure(figure, path)


def _bars(axes: Axes, scores: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    """Draws horizontal bars, grouped by score, in the colours of the groups of runs, with their values."""
    place, ticks = 0.0, []
    for title, values in scores:
        first = place
        for number, value in enumerate(values):
            if value is not None:
                axes.barh(place, 100 * value, color=COLOURS[number % len(COLOURS)], height=0.82)
                axes.text(100 * value + 1, place, f"{100 * value:.1f}", va="center", fontsize=8, color=INK)
                place += 1
        ticks.append(((first + place - 1) / 2, title))
        place += 0.5
    axes.set_yticks([tick for tick, _ in ticks], [title for _, title in ticks])
    axes.invert_yaxis()
    plain(axes, "accuracy on held-out images, %", "")
    axes.set_xlim(0, 100)
    axes.grid(visible=False)


def _look_past_start(axes: Axes, lines: Sequence[tuple[list[int], list[float]]]) -> None:
    """Chooses the range of the axis without the first tenth of the run, whose high loss would hide later differences."""
    last = max((step for steps, _ in lines for step in steps), default=0)
    later = [value for steps, values in lines for step, value in zip(steps, values, strict=True) if step > last / 10]
    if later:
        room = 0.05 * (max(later) - min(later)) or 0.05
        axes.set_ylim(min(later) - room, max(later) + room)


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of this size in inches, without the global state of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def plain(axes: Axes, x: str, y: str) -> None:
    """Sets titles of the axes and a light grid, and removes the frame."""
    axes.set_xlabel(x, color=FAINT, fontsize=9)
    axes.set_ylabel(y, color=FAINT, fontsize=9)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.grid(color="#e8eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG file, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
