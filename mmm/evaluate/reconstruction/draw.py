"""The picture of a reconstruction, for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmm.evaluate.plots.image_grid import paint_grid
from mmm.evaluate.reconstruction.reconstruct import Reconstruction, psnr

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(shown: Reconstruction, title: str = "Reconstruction") -> Image:
    """Draws original, visible part, prediction, and both together, one row per sample. For clips it shows the middle frames.

    Args:
        shown: the result of `model.reconstruct`.
        title: text above the picture.

    Returns:
        A Pillow image, which a notebook shows.
    """
    error = shown.errors["model"].mean().item()
    figures = [(f"{psnr(error):.1f} dB", "PSNR of the hidden tokens, pixels in [0, 1]")]
    return paint_grid(shown.columns, title=title, figures=figures)
