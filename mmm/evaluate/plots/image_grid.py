"""Grids of samples as PNG files, each pixel a square of whole pixels, with titles above and plain words below.

Shapes: B samples, C channels, s... the sample's axes (H, W or T, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.evaluate.plots.lettering import FAINT, INK, LEADING, SMALL, TEXT, TITLE, font, shorten, wrap, write_notes

if TYPE_CHECKING:
    from PIL.Image import Image

PAPER, NOTHING = (255, 255, 255), (205, 212, 226)
CELL = 168  # side that a small sample is enlarged towards, and a large one left at, in pixels
LARGEST = 320  # side that a large sample is reduced to
GAP, MARGIN = 6, 28  # pixels


def to_rgb(x: Tensor) -> Tensor:
    """Samples as pictures: grey as three equal channels, of more than three the first three, of a clip its middle frame.

    Args:
        x: (B, C, H, W) or (B, C, T, H, W) in [0, 1], or not a number where there is nothing to show.

    Returns:
        uint8 (B, H, W, 3).
    """
    x = x if x.dim() == 4 else x[:, :, x.shape[2] // 2]  # (B, C, H, W)
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)  # (B, 3, H, W)
    nothing = torch.tensor(NOTHING, device=x.device).view(3, 1, 1) / 255
    return torch.where(x.isnan(), nothing, x).clamp(0, 1).mul(255).round().byte().movedim(1, -1).cpu()


def resize_cells(cells: Tensor) -> Tensor:
    """Cells at a size to look at: small ones enlarged by a whole factor, so that they stay sharp. uint8 (B, H, W, 3)."""
    side = max(cells.shape[1:3])
    if side <= LARGEST:
        factor = max(1, round(CELL / side))
        return cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    size = [round(length * LARGEST / side) for length in cells.shape[1:3]]
    return F.interpolate(cells.movedim(-1, 1), size, mode="bicubic", antialias=True).movedim(1, -1)


@dataclass(frozen=True)
class Layout:
    """Where things stand in a grid of samples, pixels.

    Attributes:
        cell: height and width of a sample.
        columns, rows, groups: of samples; the groups stand side by side.
        caption: height of the line below a sample, 0 where there is none.
    """

    cell: tuple[int, int]
    columns: int
    rows: int
    groups: int
    caption: int = 0

    @property
    def group(self) -> int:
        """From the left of one group to the left of the next."""
        return self.columns * (self.cell[1] + GAP) + 3 * GAP

    @property
    def width(self) -> int:
        """Of what stands between the margins."""
        return max(self.groups * self.group - 4 * GAP, 4 * CELL)

    @property
    def top(self) -> int:
        """Of the first row."""
        return MARGIN + 2 * TITLE + 2 * TEXT

    @property
    def row(self) -> int:
        """From the top of one row to the top of the next."""
        return self.cell[0] + self.caption + GAP

    @property
    def bottom(self) -> int:
        """Of the last row."""
        return self.top + self.rows * self.row - GAP

    def place(self, column: int, sample: int) -> tuple[int, int]:
        """Left and top of a cell."""
        group, row = divmod(sample, self.rows)
        return MARGIN + group * self.group + column * (self.cell[1] + GAP), self.top + row * self.row


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
    """Draws `paint_grid`'s picture into a PNG file, and gives its path."""
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
    """Draws one row a sample and one column a treatment.

    Args:
        columns: the title and the samples (B, C, s...) of each, as `to_rgb` takes them.
        title: above all.
        notes: sentences below, broken where they are too long.
        figures: below these, a number and what it is, one a line.
        groups: side by side, each with its share of the rows.
        captions: for each column, a line below each of its samples; shortened to the sample's width.
    """
    from PIL import Image, ImageDraw

    cells = [resize_cells(to_rgb(samples)).numpy() for _, samples in columns]  # (B, h, w, 3) each
    rows = -(-len(cells[0]) // groups)
    layout = Layout(cells[0].shape[1:3], len(columns), rows, groups, LEADING if captions else 0)
    lines = wrap(notes, layout.width)
    below = layout.bottom + 2 * TEXT
    height = below + LEADING * (len(lines) + len(figures)) + (TEXT if lines and figures else 0) + MARGIN - LEADING + TEXT
    canvas = Image.new("RGB", (layout.width + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, font(TITLE), anchor="lt")
    for column, (name, _) in enumerate(columns):
        for group in range(groups):
            x, y = layout.place(column, group * layout.rows)
            draw.text((x + layout.cell[1] // 2, y - TEXT + 3), name, INK, font(TEXT), anchor="ms")
        for sample, cell in enumerate(cells[column]):
            canvas.paste(Image.fromarray(np.ascontiguousarray(cell)), layout.place(column, sample))
    for column, texts in enumerate(captions):
        for sample, text in enumerate(texts):
            x, y = layout.place(column, sample)
            draw.text((x, y + layout.cell[0] + TEXT), shorten(text, layout.cell[1]), FAINT, font(SMALL), anchor="ls")
    write_notes(draw, (MARGIN, below), lines, figures)
    return canvas
