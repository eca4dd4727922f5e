"""Writes the report of one or several runs: a summary, curves, evaluations, pictures, and their differences."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmm.evaluate.compare_runs import columns, differing, figures, short_names, warnings
from mmm.evaluate.plots.curves import COLOURS
from mmm.evaluate.run_results import Record
from mmm.system.files import replace_text
from mmm.system.redact import redact

TEMPLATE = Path(__file__).with_name("page.html")
TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".mp4": "video/mp4"}
LARGEST = 8 * 2**20  # largest size of a picture on the page, bytes; of a larger one, only the name is shown
POINTS = 2000  # largest number of points of a curve; a longer one is subsampled


def write_report(runs: Sequence[Record], path: Path) -> dict[str, Any]:
    """Writes the page.

    Args:
        runs: one or several, in the order of the page.
        path: path of the HTML file.

    Returns:
        `page`, the path; `runs`; `curves` and `pictures`, the names of those on the page; `left_out`, the pictures that are too
        large.
    """
    names = short_names([run.path for run in runs])
    curves = read_curves(runs, names)
    shown, left_out = pictures_of(runs)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    body = [f"<h1>{escape(title)}</h1>", _summary(runs, names)]
    if len(runs) > 1:
        body += ["<h2>Differences</h2>", _differences(runs, names)]
    body += ["<h2>Curves</h2>", '<p>Move the pointer over a curve to read it.</p><div class="charts">']
    body += [
        f'<figure data-curve="{number}"><figcaption>{escape(curve["name"])}</figcaption></figure>'
        for number, curve in enumerate(curves)
    ]
    body += ["</div>", *_pictures(shown, left_out, many=len(runs) > 1), "<h2>Details</h2>"]
    body += [_details(run, name) for run, name in zip(runs, names, strict=True)]
    data = json.dumps(curves, allow_nan=False).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8")
    texts = {"title": escape(title), "curves": data, "body": "\n".join(body)}  # the body last, because it contains the user's text
    for mark, text in texts.items():
        page = page.replace("{{" + mark + "}}", text, 1)
    replace_text(path, page)
    return {
        "page": str(path),
        "runs": [str(run.path) for run in runs],
        "curves": [curve["name"] for curve in curves],
        "pictures": [str(picture) for _, picture in shown],
        "left_out": [str(picture) for picture in left_out],
    }


def read_curves(runs: Sequence[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns all numbers that were logged more than once or by several runs, each with one curve per run."""
    known = dict.fromkeys(name for run in runs for line in run.metrics for name in line if name not in ("step", "clock", "epoch"))
    curves = []
    for name in known:
        lines = []
        for run, title, number in zip(runs, names, range(len(runs)), strict=True):
            steps, values = run.series(name)
            every = -(-len(steps) // POINTS) or 1
            if steps:
                colour = COLOURS[number % len(COLOURS)]
                lines.append({"name": title, "colour": colour, "steps": steps[::every], "values": values[::every]})
        if lines and max(len(line["steps"]) for line in lines) > 1:
            curves.append({"name": name, "lines": lines})
    return curves


def pictures_of(runs: Sequence[Record]) -> tuple[list[tuple[Record, Path]], list[Path]]:
    """Returns the newest picture of each kind in each run folder, and the pictures that are too large for a page."""
    shown, left_out = [], []
    for run in runs:
        newest: dict[str, Path] = {}
        for path in sorted((run.path / "pictures").glob("*")):
            if path.suffix in TYPES:
                kind = path.stem.split("_0")[0] + path.suffix
                newest[kind] = path  # the names contain the step, so the last one is the newest
        moving = {kind.rpartition(".")[0] for kind in newest if kind.endswith((".webp", ".gif"))}
        for kind, path in newest.items():
            if kind.endswith(".mp4") and kind.removesuffix(".mp4") in moving:
                continue  # shows the same clips as the animation
            if path.stat().st_size > LARGEST:
                left_out.append(path)
            else:
                shown.append((run, path))
    return shown, left_out


def _summary(runs: Sequence[Record], names: Sequence[str]) -> str:
    """Makes a row for each run with its state, parts and results."""
    shown = {name: column for name, column in columns(runs).items() if any(figures(run).get(name) is not None for run in runs)}
    head = "".join(f"<th>{escape(title)}" for title in ("run", "state", "parts", *(column.title for column in shown.values())))
    rows = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        key = f'<span class="key" style="background:{COLOURS[number % len(COLOURS)]}"></span>' if len(runs) > 1 else ""
        values = figures(run)
        cells = [
            f'<td class="number">{column.form.format(value) if (value := values.get(figure)) is not None else "-"}'
            for figure, column in shown.items()
        ]
        planned = "" if run.planned is None else f" of {run.planned:,}"
        state = f"{run.state}, {run.steps:,}{planned} updates"
        parts = ", ".join(run.parts.values())
        rows.append(f"<tr><td>{key}{escape(name)}<td>{escape(state)}<td>{escape(parts)}{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _differences(runs: Sequence[Record], names: Sequence[str]) -> str:
    """Lists the options in which the runs differ, and the reasons why a comparison may be unfair."""
    said = "".join(f'<p class="warning">{escape(text)}</p>' for text in warnings(runs))
    rows = []
    for choice in differing(runs):
        values = "".join(f"<td>{escape(redact(str(run.config.get(choice, '-'))))}" for run in runs)
        rows.append(f"<tr><td>{escape(choice)}{values}</tr>")
    head = "".join(f"<th>{escape(name)}" for name in ("choice", *names))
    if not rows:
        return said + "<p>They have the same options.</p>"
    return f'{said}<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _pictures(shown: Sequence[tuple[Record, Path]], left_out: Sequence[Path], *, many: bool) -> list[str]:
    """Embeds the pictures in the page."""
    if not shown and not left_out:
        return []
    parts = ["<h2>Pictures</h2>", '<div class="pictures">']
    for run, path in shown:
        data = f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        name = escape(f"{run.path.name}: {path.stem}" if many else path.stem)
        image = f'<img alt="{name}" src="{data}">'
        if path.suffix == ".mp4":
            image = f'<video controls loop muted aria-label="{name}" src="{data}"></video>'
        parts.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
    return [*parts, "</div>", *(f"<p>{escape(str(path))} is too large for this page.</p>" for path in left_out)]


def _details(run: Record, name: str) -> str:
    """Makes collapsed sections for the environment of each start, the evaluations and the config."""
    file = run.path / "environment.json"
    starts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    texts = {
        f"Evaluations of {name}": json.dumps(run.evaluations, indent=2),
        f"Starts of {name}": json.dumps(starts, indent=2),
        f"Config of {name}": "\n".join(f"{choice}: {value}" for choice, value in run.config.items()),
    }
    return "".join(
        f"<details><summary>{escape(title)}</summary><pre>{escape(redact(text))}</pre></details>" for title, text in texts.items()
    )
