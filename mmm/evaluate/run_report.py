"""A report on runs as one HTML file that needs no other: what they were, curves, figures, pictures, and their differences."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from mmm.evaluate.compare_runs import NOT_A_CHOICE
from mmm.evaluate.plots.curves import COLOURS
from mmm.evaluate.run_table import RunSummary, starts_of
from mmm.system.redact import redact

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 66, 26, 8  # of a plot and of the room for its numbers, units of the drawing
FIRST = ("loss", "held_out_loss", "learning_rate", "grad_norm")  # curves that come first
IMAGES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".jpg": "image/jpeg"}
PICTURES, LARGEST = 12, 8 * 2**20  # pictures of a run, the newest ones, and bytes of one


def write_report(runs: Sequence[RunSummary], path: Path, *, title: str) -> Path:
    """Writes the report.

    Args:
        runs: at least one.
        path: of the HTML file.
    """
    here = Path(__file__).parent / "plots"
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    body = [f"<h1>{escape(title)}</h1>", _legend(runs) if len(runs) > 1 else "", _overview(runs)]
    body += [_differences(runs) if len(runs) > 1 else "", "<h2>Curves</h2>", _plots(runs), _figures(runs)]
    body += [_details(run, number) for number, run in enumerate(runs)]
    body.append(f"<footer>Made by mmm report, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += '<meta name="color-scheme" content="light dark">'
    page = f"<!doctype html><html lang=en><head>{head}<title>{escape(title)}</title><style>{style}</style></head>"
    page += f"<body><main>{''.join(body)}</main><script>{script}</script></body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _legend(runs: Sequence[RunSummary]) -> str:
    entries = (f'<li><span style="background:{_colour(number)}"></span>{_name(run)}</li>' for number, run in enumerate(runs))
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _overview(runs: Sequence[RunSummary]) -> str:
    rows = [run.row() for run in runs]
    names = [name for name in rows[0] if name != "figures"]
    return _table(names, ([row[name] for name in names] for row in rows), "Runs")


def _differences(runs: Sequence[RunSummary]) -> str:
    """The options in which the runs differ, apart from those that change nothing of what is computed."""
    names = sorted({name for run in runs for name in run.record.config if not name.startswith("evaluate.")} - set(NOT_A_CHOICE))
    rows = []
    for name in names:
        values = [_plain(run.record.config.get(name, "-")) for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    if not rows:
        return "<h2>Differences</h2><p>The runs have the same options.</p>"
    return "<h2>Differences</h2>" + _table(["option", *(run.record.path.name for run in runs)], rows, "Options that differ")


def _figures(runs: Sequence[RunSummary]) -> str:
    """The last number of each evaluation, by run."""
    names = list(dict.fromkeys(name for run in runs for name in run.record.figures))
    if not names:
        return ""
    rows = []
    for name in names:
        values = [run.record.figures.get(name) for run in runs]
        rows.append([name, *("-" if value is None else f"{value:.4g}" for value in values)])
    return "<h2>Evaluations</h2>" + _table(["figure", *(run.record.path.name for run in runs)], rows, "The last of each")


def _plots(runs: Sequence[RunSummary]) -> str:
    """A plot of each number that was logged at two steps or more."""
    logged = dict.fromkeys(name for run in runs for line in run.record.metrics for name in line)
    names = [name for name in FIRST if name in logged] + [name for name in logged if name not in FIRST]
    plots = []
    for name in names:
        if name in ("step", "epoch", "clock"):
            continue
        series = [run.record.series(name) for run in runs]
        if max(len(steps) for steps, _ in series) > 1:
            plots.append(_plot(name, series, runs))
    return f'<div class="plots">{"".join(plots)}</div>' if plots else "<p>Nothing was logged yet.</p>"


def _plot(name: str, series: Sequence[tuple[list[int], list[float]]], runs: Sequence[RunSummary]) -> str:
    """A plot as SVG, with its values beside it for the pointer and the keyboard."""
    finite = [[(x, y) for x, y in zip(*one, strict=True) if math.isfinite(y)] for one in series]
    last = max((x for one in finite for x, _ in one), default=1) or 1
    later = [y for one in finite for x, y in one if x > last / 10] or [y for one in finite for _, y in one] or [0.0]
    low, high = min(later), max(later)
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - room if low < 0 else max(low - room, 0.0), high + room

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 8) * x / last
        return round(across, 1), round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (min(y, high) - low) / (high - low), 1)

    drawn = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = place(0, low + share * (high - low))[1]
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{low + share * (high - low):.3g}</text>')
        x = place(share * last, low)[0]
        anchor = "end" if share == 1 else "middle"
        drawn.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{share * last:,.0f}</text>')
    for number, one in enumerate(finite):
        points = " ".join(f"{x},{y}" for x, y in (place(*point) for point in one))
        drawn.append(f'<polyline points="{points}" style="stroke:{_colour(number)}"/>')
    drawn.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/>')
    values = {"left": LEFT, "right": WIDTH - 8, "last": last, "series": finite, "names": [run.record.path.name for run in runs]}
    data = escape(json.dumps(values), quote=True)
    label = escape(f"{name} over steps; arrow keys read it off", quote=True)
    return (
        f'<figure class="plot" data-values="{data}"><figcaption>{escape(name)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}">{"".join(drawn)}</svg>'
        '<output aria-live="polite">Point at the plot to read it off.</output></figure>'
    )


def _details(run: RunSummary, number: int) -> str:
    """What a run was: its starts, its options, its pictures and clips."""
    starts = starts_of(run.record.path)
    text = [f'<section><h2><span class="dot" style="background:{_colour(number)}"></span>{_name(run)}</h2>']
    if starts:
        again = f" and resumed {len(starts) - 1} times" if len(starts) > 1 else ""
        command = redact(" ".join(str(word) for word in starts[0].get("command") or ()))
        text.append(f"<p>Started {escape(str(starts[0].get('time', '?')))}{again}:</p><pre>{escape(command)}</pre>")
        facts = {name: starts[-1].get(name) for name in ("mmm", "commit", "python", "versions.torch", "device", "host", "cpu")}
        known = [[name, _plain(value)] for name, value in facts.items() if value is not None]
        text.append(_table(["", ""], known, "Environment of the last start") if known else "")
    pictures, left = _pictures(run.record.path / "pictures")
    if pictures:
        text.append(f'<h3>Pictures and clips</h3><div class="pictures">{"".join(pictures)}</div>')
    if left:
        text.append(f"<p>{left} more in {escape(str(run.record.path / 'pictures'))}.</p>")
    options = ([name, _plain(value)] for name, value in run.record.config.items())
    text.append(f"<details><summary>All options</summary>{_table(['option', 'value'], options, 'config.yaml')}</details></section>")
    return "".join(text)


def _pictures(folder: Path) -> tuple[list[str], int]:
    """The newest pictures and moving ones, each once, and how many are left out."""
    files = [file for file in folder.glob("*") if file.suffix in IMAGES and file.is_file() and file.name != "loss.png"]
    files = sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)
    shown = [file for file in files if file.stat().st_size <= LARGEST][:PICTURES]
    figures = []
    for file in shown:
        data = base64.b64encode(file.read_bytes()).decode()
        name = escape(file.name, quote=True)
        image = f'<img src="data:{IMAGES[file.suffix]};base64,{data}" alt="{name}">'
        figures.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
    return figures, len(files) - len(shown)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(redact(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    top = f"<tr>{cells}</tr>" if any(head) else ""
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>{top}{lines}</table></div>'


def _name(run: RunSummary) -> str:
    return escape(run.record.path.name)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _plain(value: Any) -> str:
    """A value as an option has it."""
    return " ".join(map(_plain, value)) if isinstance(value, list) else "none" if value is None else str(value)
