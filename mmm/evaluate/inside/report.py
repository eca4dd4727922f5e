"""Plots of an inspection, and one static page that contains them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmm.evaluate.attention.decoder_attention import SETS
from mmm.evaluate.attention.plot import draw_fusion
from mmm.evaluate.inside.claims import claims
from mmm.evaluate.plots.curves import COLOURS, FAINT, INK, new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e22; --paper: #ffffff; --faint: #6e727a; --line: #d9dce3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --paper: #16181c; --faint: #9a9fa8; --line: #33373f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } p, figcaption { color: var(--faint); }
img { width: 100%; height: auto; background: #ffffff; border-radius: 4px; } figure { margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } td, th { text-align: left; vertical-align: top;
padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); } .wide { overflow-x: auto; }
"""

Models = dict[str, dict[str, Any]]


def draw_inspection(models: Models, across: list[list[float]] | None, folder: Path) -> list[tuple[Path, str, str]]:
    """Draws the plots of an inspection.

    Args:
        models: by name, as `Inspection.result` returns them; one or two.
        across: CKA between the layers of the first and of the second model, or None.
        folder: folder for the PNG files.

    Returns:
        For each picture its file, a title and a sentence that explains it.
    """
    made = [
        (
            _similarity(models, across, folder / "similarity.png"),
            "Similarity between layers",
            "Unbiased linear CKA of the mean of each sample's tokens: 1 for equal up to rotation and scale, about 0 for unrelated. "
            "Layer 0 is what enters the first block.",
        ),
    ]
    made.append(
        (
            _by_block(models, folder / "layers.png"),
            "Changes by each block",
            "Left: size of the change over the size of the tokens. Middle: gain of a small random change; 1 passes it on. "
            "Right: directions that the tokens use (participation ratio).",
        )
    )
    if any(found["attention"]["distance"] for found in models.values()):
        made.append(
            (
                _attention(models, folder / "attention.png"),
                "Attention of the encoder",
                "One dot per head, without a mask. The broken line is even attention. Distances are between token centres, in "
                "pixels. Right: singular values of the attention matrices, from large to small, one line per block.",
            )
        )
    if any("errors" in found for found in models.values()):
        made.append(
            (
                _errors(models, folder / "errors.png"),
                "Errors of predictions",
                "Left: mean squared error of hidden tokens by the distance to the nearest visible token. Middle: energy of "
                "the error over that of the original, by spatial frequency. Right: PSNR of hidden tokens as more is hidden.",
            )
        )
    if any(found.get("decoder", {}).get("rings") for found in models.values()):
        made.append(
            (
                _rings(models, folder / "decoder.png"),
                "Attention of predicted tokens",
                "Left: share of the predicted tokens' attention that goes to visible tokens, one dot per head. Right: share of the "
                "attention to visible tokens by distance, beside even attention. " + _summed(models),
            )
        )
    if any(found.get("errors", {}).get("by_motion") for found in models.values()):
        made.append(
            (
                _motion(models, folder / "motion.png"),
                "Errors by motion",
                "Mean squared error of hidden tokens by the mean change of their pixels from frame to frame, of a range of 1.",
            )
        )
    for number, (name, found) in enumerate(models.items(), start=1):
        if "fusion" in found:
            path = draw_fusion(found["fusion"], folder / f"fusion_{number}.png", name)
            made.append((path, f"Encoder blocks that decoder blocks read: {name}", "Weights of inter-block fusion, and shares."))
    return made


def _summed(models: Models) -> str:
    """Returns CrossMAE's measure of each model whose decoder reads all tokens, as a sentence."""
    parts = []
    for name, found in models.items():
        one = found.get("decoder", {}).get("mean", {}).get("all", {}).get("crossmae", {})
        if one.get("visible") is not None and one.get("masked") is not None:
            parts.append(f"{name} {one['visible']:.2f} to a visible token, {one['masked']:.2f} to a masked one")
    if not parts:
        return ""
    start = (
        "Mean attention to one token, summed over blocks and heads as CrossMAE's authors do (1.42 and 0.39 for their MAE ViT-B): "
    )
    return f"{start}{'; '.join(parts)}."


def _similarity(models: Models, across: list[list[float]] | None, path: Path) -> Path:
    """Draws heat maps of CKA."""
    maps = [(name, found["cka"]) for name, found in models.items()]
    if across is not None:
        first, second = models
        maps.append((f"{first} (down) and {second} (across)", across))
    figure = new_figure(4.2 * len(maps) + 0.8, 4.0)
    for axes, (name, values) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        axes.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower")
        plain(axes, "layer", "layer")
        axes.grid(visible=False)
        axes.set_title(name, fontsize=9, color=INK)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.8, label="CKA")
    return save_figure(figure, path)


def _by_block(models: Models, path: Path) -> Path:
    """Draws change, gain and directions by block."""
    figure = new_figure(10.5, 3.4)
    left, middle, right = figure.subplots(1, 3)
    for (name, found), colour in zip(models.items(), COLOURS, strict=False):
        for axes, values, start in (
            (left, found["stability"]["change"], 1),
            (middle, found["stability"]["noise_gain"], 1),
            (right, found["directions"], 0),
        ):
            axes.plot(range(start, start + len(values)), values, marker="o", markersize=3, color=colour, label=name)
    for axes, title in ((left, "relative change"), (middle, "gain of noise"), (right, "directions used")):
        plain(axes, "block", title)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
    _legend(figure, left)
    return save_figure(figure, path)


def _attention(models: Models, path: Path) -> Path:
    """Draws distance, tokens read and rank of each head by block, and the spectrum of each block."""
    figure = new_figure(13.0, 3.4)
    *first, last = figure.subplots(1, 4)
    names = (("distance", "mean distance, pixels"), ("tokens_read", "tokens read"), ("effective_rank", "effective rank"))
    for found, colour in zip(models.values(), COLOURS, strict=False):
        for shares in found["attention"]["spectrum"]:
            last.plot(range(1, len(shares) + 1), shares, color=colour, linewidth=1)
    last.set_yscale("log")
    last.minorticks_off()
    plain(last, "singular value", "share of their sum")
    for axes, (name, title) in zip(first, names, strict=True):
        for place, ((label, found), colour) in enumerate(zip(models.items(), COLOURS, strict=False)):
            for block, heads in enumerate(found["attention"][name], start=1):
                axes.plot([block + 0.2 * place] * len(heads), heads, ".", color=colour, label=label if block == 1 else None)
        plain(axes, "block", title)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        if name == "distance":
            even = next(found["attention"]["even"] for found in models.values() if found["attention"]["distance"])
            axes.axhline(even, color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
            _legend(figure, axes)
    return save_figure(figure, path)


def _errors(models: Models, path: Path) -> Path:
    """Draws errors by distance, by frequency and by ratio."""
    figure = new_figure(10.5, 3.4)
    left, middle, right = figure.subplots(1, 3)
    shown = [
        (name, found["errors"], colour) for (name, found), colour in zip(models.items(), COLOURS, strict=False) if "errors" in found
    ]
    _bars(left, [(name, errors["by_distance"], "error", colour) for name, errors, colour in shown], "{:.1f}")
    for _, errors, colour in shown:
        ends, shares = zip(*((row["up_to"], row["share"]) for row in errors["by_frequency"]), strict=True)
        middle.plot(ends, shares, marker="o", markersize=3, color=colour)
        ratios = errors["psnr_by_ratio"]
        right.plot([float(ratio) for ratio in ratios], [psnr["model"] for psnr in ratios.values()], marker="o", color=colour)
    plain(left, "distance to the nearest visible token, tokens", "mean squared error")
    plain(middle, "spatial frequency, cycles per pixel", "energy of the error / of the original")
    plain(right, "fraction hidden", "PSNR of hidden tokens, dB")
    _legend(figure, left)
    return save_figure(figure, path)


def _motion(models: Models, path: Path) -> Path:
    """Draws errors by motion."""
    figure = new_figure(7.0, 3.4)
    axes: Axes = figure.add_subplot()
    shown = [(name, found["errors"]["by_motion"]) for name, found in models.items() if found.get("errors", {}).get("by_motion")]
    _bars(axes, [(name, rows, "error", colour) for (name, rows), colour in zip(shown, COLOURS, strict=False)], "up to {:g}")
    plain(axes, "change of a pixel from frame to frame", "mean squared error")
    _legend(figure, axes)
    return save_figure(figure, path)


def _rings(models: Models, path: Path) -> Path:
    """Draws the decoder's attention to visible tokens by block and head, and by distance ring."""
    figure = new_figure(10.5, 3.4)
    left, axes = figure.subplots(1, 2, width_ratios=(1, 2))
    for place, ((_, found), colour) in enumerate(zip(models.items(), COLOURS, strict=False)):
        for block, layer in enumerate(found.get("decoder", {}).get("layers", ()), start=1):
            values = [head[SETS.index("visible")] for head in layer["heads"]]
            left.plot([block + 0.2 * place] * len(values), values, ".", color=colour)
    plain(left, "layer", "share of attention to visible tokens")
    count = max(len(found.get("decoder", {}).get("layers", ())) for found in models.values())
    left.set_xticks(range(1, count + 1, max(1, count // 8)))
    left.set_xlim(0.5, count + 0.7)
    left.set_ylim(0, 1)
    shown = [(name, found["decoder"]["rings"]) for name, found in models.items() if found.get("decoder", {}).get("rings")]
    groups = [(name, rings, "share", colour) for (name, rings), colour in zip(shown, COLOURS, strict=False)]
    _bars(axes, [*groups, ("even attention", shown[0][1], "even", "#b9c0cc")], "up to {:g}")
    plain(axes, "distance, tokens", "share of attention to visible tokens")
    _legend(figure, axes)
    return save_figure(figure, path)


def _bars(axes: Axes, groups: Sequence[tuple[str, list[dict[str, Any]], str, str]], end: str) -> None:
    """Draws the bars of several groups side by side, bin by bin.

    Args:
        groups: for each its name, a row for each bin, the name of the value that is drawn, and its colour.
        end: format of the upper end of a bin.
    """
    width = 0.8 / len(groups)
    for place, (name, rows, value, colour) in enumerate(groups):
        known = [(number + width * place, row[value]) for number, row in enumerate(rows) if row[value] is not None]
        axes.bar([x for x, _ in known], [height for _, height in known], 0.9 * width, color=colour, label=name)
    axes.set_xticks(range(len(rows)), ["beyond" if row["up_to"] is None else end.format(row["up_to"]) for row in rows])


def _legend(figure: Figure, axes: Axes) -> None:
    """Draws a legend with the names of the models below the plots."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=INK, fontsize=8)


def write_page(title: str, models: Models, pictures: list[tuple[Path, str, str]], path: Path) -> Path:
    """Writes one page of HTML with all pictures and tables, which needs no other file."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for name, found in models.items():
        parts.append(f"<h2>Claims of published theory: {escape(name)}</h2>")
        head = "<tr><th>claim<th>measured as<th>expected<th>found<th>holds</tr>"
        rows = "".join(
            f"<tr><td>{escape(row['claim'])}<td>{escape(row['formula'])}<td>{escape(row['expected'])}<td>{row['value']:.3g}"
            f"<td>{ {True: 'yes', False: 'no', None: 'not decided'}[row['holds']] }</tr>"
            for row in claims(found)
        )
        parts.append(f'<div class="wide"><table>{head}{rows}</table></div>')
        parts.append(f"<p>{found['samples']:,} samples of {escape(found['data'])}.</p>")
        parts += [f"<p>Not measured: {escape(what)}; {escape(why)}.</p>" for what, why in found["left_out"].items()]
    for file, name, how in pictures:
        image = base64.b64encode(file.read_bytes()).decode()
        parts.append(
            f'<h2>{escape(name)}</h2><figure><img alt="{escape(name)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{escape(how)}</figcaption></figure>"
        )
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    start = f"{head}<title>{escape(title)}</title>"
    path.write_text(f"{start}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n", encoding="utf-8")
    return path
