"""Words in pictures: Pillow's own typeface, broken lines, and columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

INK, FAINT = (28, 30, 34), (96, 100, 110)
TITLE, TEXT, SMALL, LEADING = 16, 13, 11, 20  # pixels


def write_notes(draw: ImageDraw, corner: tuple[int, int], lines: Sequence[str], figures: Sequence[tuple[str, str]]) -> None:
    """Lines of text from a corner (left, top) down, then the figures, their numbers flush right in a column of their own."""
    left, top = corner
    for number, line in enumerate(lines):
        draw.text((left, top + number * LEADING + TEXT), line, FAINT, font(TEXT), anchor="ls")
    top += len(lines) * LEADING + (TEXT if lines else 0)
    column = left + max((round(font(TEXT).getlength(number)) for number, _ in figures), default=0)
    for row, (figure, words) in enumerate(figures):
        draw.text((column, top + row * LEADING + TEXT), figure, INK, font(TEXT), anchor="rs")
        draw.text((column + TEXT, top + row * LEADING + TEXT), words, FAINT, font(TEXT), anchor="ls")


def wrap(notes: Sequence[str], width: int) -> list[str]:
    """Lines of at most `width` pixels."""
    lines: list[str] = []
    for note in notes:
        line = ""
        for word in note.split():
            longer = f"{line} {word}".strip()
            if line and font(TEXT).getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def shorten(text: str, width: int) -> str:
    """A text of at most `width` pixels in small letters; of a longer one the beginning."""
    while text and font(SMALL).getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text


def font(size: int) -> FreeTypeFont | ImageFont:
    """Pillow's own typeface: there on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
