"""Reconstructions of clips as a row of frames, as an animated picture, and as a video.

Shapes: B samples, C channels, T frames, (H, W) of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.data.decode.video.encode import EncodeConfig, write_video
from mmm.evaluate.plots.image_grid import paint_grid

Columns = Sequence[tuple[str, Tensor]]

STRIP = 6  # frames of a clip in a strip
SIDE = 128  # largest side of a frame in a strip, in pixels
FPS = 8.0  # frames per second of the animation: about real time for every fourth frame of a video with 30 frames per second
ENCODING = EncodeConfig(short_side=None, crf=18, fast_decode=False)
QUALITY = 85  # quality of the animated WebP, up to 100


def strip_of(columns: Columns) -> tuple[Columns, Sequence[Sequence[str]]]:
    """Returns evenly spread frames of clips as the columns of a grid. Each clip has one row for each treatment.

    Args:
        columns: the title and the clips (B, C, T, H, W) of each treatment.

    Returns:
        A column per frame, (B treatments, C, h, w), and the captions below the cells, with the treatment in the first column.
    """
    frames = columns[0][1].shape[2]
    count = min(STRIP, frames)
    chosen = [(2 * i + 1) * frames // (2 * count) for i in range(count)]  # the centres of equal parts
    rows = torch.stack([clips for _, clips in columns], dim=1).flatten(0, 1)  # (B treatments, C, T, H, W)
    names = [name for name, _ in columns] * len(columns[0][1])
    return [(f"frame {number + 1} of {frames}", _small(rows[:, :, number])) for number in chosen], [names]


def animate(columns: Columns, path: Path, *, title: str, groups: int = 1) -> tuple[Path, Path]:
    """Writes the clips as an animated WebP and as an MP4, with the treatments side by side.

    Args:
        columns: as in `strip_of`.
        path: path of the still picture. The new files get the same name with other suffixes.

    Returns:
        Their paths.
    """
    frames = [
        paint_grid([(name, clips[:, :, number]) for name, clips in columns], title=title, groups=groups)
        for number in range(columns[0][1].shape[2])
    ]
    moving, video = path.with_suffix(".webp"), path.with_suffix(".mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(moving, save_all=True, append_images=frames[1:], duration=round(1000 / FPS), loop=0, quality=QUALITY)
    write_video(video, (np.asarray(frame) for frame in frames), fps=FPS, config=ENCODING)
    return moving, video


def _small(frames: Tensor) -> Tensor:
    """Reduces frames to at most SIDE pixels per side. Empty (NaN) areas keep sharp edges."""
    side = max(frames.shape[2:])
    if side <= SIDE:
        return frames
    size = [round(length * SIDE / side) for length in frames.shape[2:]]
    small = F.interpolate(frames.nan_to_num(), size, mode="bilinear", antialias=True)
    nothing = F.interpolate(frames.isnan().float(), size, mode="nearest-exact") > 0.5
    return small.masked_fill(nothing, torch.nan)
