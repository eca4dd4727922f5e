"""Pictures for the page: PNG files in `data:` addresses, strips of frames, and maps drawn over a picture.

Shapes: T frames, (H, W) of a frame, C channels, (T', H', W') the grid of tokens.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmm.core.tokens import Grid
from mmm.evaluate.plots.image_grid import to_rgb

Frames = NDArray[np.uint8]  # (T, H, W, 3)
WARM = (255, 106, 0)  # colour of the places that a map marks
FADED = 0.45  # share of the grey picture that shows through a map
SMALLEST = 96  # pixels; smaller pictures are enlarged to this side if their pixels need not be kept


def frames_of(pixels: Tensor) -> Frames:
    """Returns a sample (1, C, H, W) or (1, C, T, H, W) in [0, 1] as `mmm reconstruct` draws it; NaN is grey-blue."""
    frames = pixels[None] if pixels.dim() == 4 else pixels.movedim(2, 0)  # (T, 1, C, H, W)
    return to_rgb(frames[:, 0]).numpy()


def to_png(frames: Frames) -> str:
    """Returns frames, one below the other, as a PNG file in a `data:` address. The pixels are kept exactly."""
    file = io.BytesIO()
    Image.fromarray(frames.reshape(-1, *frames.shape[2:])).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def from_png(address: str) -> Frames:
    """Returns the pixels (H, W, 3) of a PNG file in a `data:` address."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def spread(values: Tensor, grid: Grid, size: tuple[int, ...]) -> Tensor:
    """Returns values of tokens, (N,) or (N, 3), at the pixels of a sample (T, H, W): (T, H, W) or (T, H, W, 3)."""
    planes = values.view(*(1, *grid)[-3:], -1).movedim(-1, 0)  # (c, T', H', W')
    fine = F.interpolate(planes[None], (1, *size)[-3:], mode="nearest-exact")[0]  # (c, T, H, W)
    return fine[0] if values.dim() == 1 else fine.movedim(0, -1)


def heat(frames: Frames, values: Tensor, grid: Grid, token: int | None = None) -> Frames:
    """Draws values of tokens, (N,) in [0, 1], in a warm colour over the grey picture, and a frame around one token."""
    size = frames.shape[:3]
    strength = spread(values.float().clamp(0, 1), grid, size).numpy()[..., None]
    grey = np.repeat(frames.astype(np.float32).mean(3, keepdims=True), 3, axis=3) * FADED
    drawn = (grey + strength * (np.asarray(WARM, np.float32) - grey)).round().astype(np.uint8)
    return drawn if token is None else outline(drawn, grid, token)


def colours(values: Tensor, grid: Grid, size: tuple[int, ...]) -> Frames:
    """Draws a colour for each token, (N, 3) in [0, 1]."""
    fine = spread(values.float(), grid, size)
    return (fine.clamp(0, 1) * 255).round().byte().numpy()


def outline(frames: Frames, grid: Grid, token: int) -> Frames:
    """Draws a white and black frame around one token."""
    deep, high, wide = (1, *grid)[-3:]
    t, rest = divmod(token, high * wide)
    row, column = divmod(rest, wide)
    count, height, width = frames.shape[:3]
    first, last = t * count // deep, (t + 1) * count // deep
    top, bottom, left, right = (
        row * height // high,
        (row + 1) * height // high,
        column * width // wide,
        (column + 1) * width // wide,
    )
    drawn = frames.copy()
    for inset, colour in ((0, 255), (1, 0)):
        box = drawn[first:last, top + inset : bottom - inset, left + inset : right - inset]
        if box.shape[1] > 2 and box.shape[2] > 2:
            box[:, [0, -1]] = colour
            box[:, :, [0, -1]] = colour
    return drawn


def enlarged(frames: Frames) -> Frames:
    """Enlarges small frames by a whole factor, so that each pixel stays a sharp square."""
    factor = -(-SMALLEST // max(frames.shape[1:3]))
    return frames if factor < 2 else frames.repeat(factor, 1).repeat(factor, 2)


def normalised(values: Tensor) -> Tensor:
    """Scales values so that the smallest is 0 and the largest is 1."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
