"""Pictures of grids of samples, with titles above and text below. Each pixel of a small sample becomes a sharp square.

Shapes: B samples, C channels, s... a sample's axes (H, W or T, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

INK, FAINT, NOTHING = "#1c1e22", "#60646e", (205, 212, 226)
CELL = 168  # side towards which a small sample is enlarged, pixels
LARGEST = 320  # side to which a large sample is reduced, pixels
GAP, MARGIN, LINE = 6, 28, 20  # distances between cells, around the grid, and from one line of text to the next, pixels
TITLE, TEXT, SMALL = 16, 13, 11  # heights of text, pixels
CHARACTER = 0.56  # mean width of a character, as a fraction of its height


def to_rgb(x: Tensor) -> Tensor:
    """Converts samples to colours. One or two channels become grey, more than three are cut to three; clips show the middle frame.

    Args:
        x: (B, C, H, W) or (B, C, T, H, W) in [0, 1]; NaN in empty areas.

    Returns:
        uint8 (B, H, W, 3).
    """
    x = x if x.dim() == 4 else x[:, :, x.shape[2] // 2]  # (B, C, H, W)
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)  # (B, 3, H, W)
    nothing = torch.tensor(NOTHING, device=x.device).view(3, 1, 1) / 255
    return torch.where(x.isnan(), nothing, x).clamp(0, 1).mul(255).round().byte().movedim(1, -1).cpu()


def resize_cells(cells: Tensor) -> Tensor:
    """Resizes cells for display. Small ones are enlarged by a whole factor, so that they stay sharp. uint8 (B, H, W, 3)."""
    side = max(cells.shape[1:3])
    if side <= LARGEST:
        factor = max(1, round(CELL / side))
        return cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    size = [round(length * LARGEST / side) for length in cells.shape[1:3]]
    return F.interpolate(cells.movedim(-1, 1), size, mode="bicubic", antialias=True).movedim(1, -1)


def draw_grid(
    columns: Sequence[tuple[str, Tensor]],
    path: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    figures: Sequence[tuple[str, str]] = (),
    groups: int = 1,
    captions: Sequence[Sequence[str]] = (),
) -> Path:
    """Writes the picture of `paint_grid` to a PNG file, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paint_grid(columns, title=title, notes=notes, figures=figures, groups=groups, captions=captions).save(path, optimize=True)
    return path


def paint_grid(
    columns: Sequence[tuple[str, Tensor]],
    *,
    title: str,
    notes: Sequence[str] = (),
    figures: Sequence[tuple[str, str]] = (),
    groups: int = 1,
    captions: Sequence[Sequence[str]] = (),
) -> Image:
    """Draws one row per sample and one column per treatment.

    Args:
        columns: title and samples (B, C, s...) of each column; see `to_rgb`.
        title: text above the grid.
        notes: sentences below the grid.
        figures: numbers and their meanings, one per line, below the notes.
        groups: number of groups side by side, each with its share of the rows.
        captions: for each column, one line of text for each of its samples, shown below it and shortened to its width.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    cells = [resize_cells(to_rgb(samples)).numpy() for _, samples in columns]  # (B, h, w, 3) each
    rows, (high, wide) = -(-len(cells[0]) // groups), cells[0].shape[1:3]
    row = high + (LINE if captions else 0) + GAP  # from the top of one row to the top of the next
    group = len(columns) * (wide + GAP) + 3 * GAP  # from the left of one group to the left of the next
    width = max(groups * group - 4 * GAP, 4 * CELL)
    lines = [line for note in notes for line in wrap(note, int(width / (CHARACTER * TEXT)))]
    heading = wrap(title, int(width / (CHARACTER * TITLE)))
    top = MARGIN + len(heading) * LINE + 2 * LINE
    bottom = top + rows * row + LINE
    size = (width + 2 * MARGIN, bottom + (len(lines) + len(figures)) * LINE + MARGIN)
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, facecolor="white")  # 72 dots an inch: a point is a pixel
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, height: int, colour: str = FAINT, align: Any = "left") -> None:
        """Writes a line on its baseline, from the top left corner."""
        figure.text(x / size[0], 1 - y / size[1], text, size=height, color=colour, ha=align, va="baseline", parse_math=False)

    for number, line in enumerate(heading):
        write(MARGIN, MARGIN + TITLE + number * LINE, line, TITLE, INK)
    for column, (name, _) in enumerate(columns):
        for sample, cell in enumerate(cells[column]):
            x, y = MARGIN + sample // rows * group + column * (wide + GAP), top + sample % rows * row
            figure.figimage(cell, x, size[1] - y - high, origin="upper")
            if sample % rows == 0:
                write(x + wide / 2, y - GAP, name, TEXT, INK, "center")
            if captions:
                limit = int(wide / (CHARACTER * SMALL))
                text = captions[column][sample] if column < len(captions) else ""
                write(x, y + high + TEXT, text if len(text) <= limit else f"{text[: limit - 1]}…", SMALL)
    for number, line in enumerate(lines):
        write(MARGIN, bottom + number * LINE, line, TEXT)
    indent = MARGIN + CHARACTER * TEXT * max((len(value) for value, _ in figures), default=0)
    for number, (value, meaning) in enumerate(figures, start=len(lines)):
        write(indent, bottom + number * LINE, value, TEXT, INK, "right")
        write(indent + TEXT, bottom + number * LINE, meaning, TEXT)
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
