"""Reads maps (a number for each pixel) exactly as stored: without colours, interpolation or silent changes of values.

Shapes: (H, W) of a map, C channels of its image, (h, w) of a sample.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmm.data.annotated.config import DepthConfig, MasksConfig
from mmm.data.decode.files import check_pixels, read_file
from mmm.data.decode.image import FORMATS, NUMPY, PNG, check_png
from mmm.data.errors import Unreadable

IGNORE = 65535  # number of a pixel that is neither trained on nor evaluated
STEPS = 65534  # depths are numbered from 0 to this, evenly spread over `data.range`
SHOWN = 3  # largest number of labels in a message

Numbers = NDArray[np.uint16]


def decode_map(source: Any) -> NDArray[Any]:
    """Decodes a map to its stored numbers, (H, W).

    Args:
        source: encoded bytes, a path, or an array (H, W). A palette image is decoded to the indices of its colours.

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    try:
        if isinstance(source, np.ndarray):
            values = source
        else:
            values = _decode(source if isinstance(source, bytes) else _bytes_of(source))
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # its message contains an address in memory
        raise Unreadable("its map is not an image of a known format") from error
    except Exception as error:  # decoders raise errors of many kinds
        raise Unreadable(f"its map cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"[:200]) from error
    if values.ndim != 2 or 0 in values.shape:
        raise Unreadable(f"its map has shape {values.shape}; one number for each pixel, (height, width), is expected")
    return values


def _bytes_of(path: Any) -> bytes:
    try:
        return read_file(path)
    except Unreadable as error:
        raise Unreadable(f"its map cannot be read: {error}") from error


def _decode(data: bytes) -> NDArray[Any]:
    if not data:
        raise Unreadable("its map is empty")
    if data.startswith(NUMPY):
        values = np.load(io.BytesIO(data), allow_pickle=False)
        return values[0] if values.ndim == 3 and len(values) == 1 else values
    if data.startswith(PNG):
        check_png(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_pixels(image.height, image.width)
        if image.format == "JPEG":
            raise Unreadable("its map is a JPEG, which changes labels at edges; store maps as PNG")
        image.load()
        values = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA") and (values[..., :1] == values[..., : 3 if values.shape[-1] > 2 else 1]).all():
        return np.asarray(values[..., 0])
    if values.ndim == 3:
        raise Unreadable(f"its map has colours ({image.mode}); one number for each pixel is expected")
    return values.astype(np.uint8) if values.dtype == bool else values


def class_numbers(values: NDArray[Any], config: MasksConfig, classes: int) -> Numbers:
    """Numbers the classes of a mask from 0; ignored pixels become IGNORE.

    Args:
        values: whole numbers, as stored.
        classes: number of classes.

    Raises:
        Unreadable: a label is neither a class nor ignored.
    """
    if not np.issubdtype(values.dtype, np.integer):
        raise Unreadable(f"its mask holds {values.dtype}; whole numbers are expected")
    labels = values.astype(np.int64)
    ignored = labels == config.ignore
    if config.zero_is_ignored:
        ignored |= labels == 0
        labels -= 1
    wrong = np.unique(labels[~ignored & ((labels < 0) | (labels >= classes))])
    if len(wrong):
        shift = int(config.zero_is_ignored)
        found = ", ".join(str(label + shift) for label in wrong[:SHOWN].tolist()) + (", ..." if len(wrong) > SHOWN else "")
        raise Unreadable(
            f"its mask has the label {found}; the labels of {classes} classes are {shift} to {classes - 1 + shift}, and "
            f"{config.ignore} is ignored (data.classes, data.ignore, data.zero_is_ignored)"
        )
    return np.where(ignored, IGNORE, labels).astype(np.uint16)


def depth_numbers(values: NDArray[Any], config: DepthConfig) -> Numbers:
    """Numbers depths evenly over `data.range`; other depths, 0 among them, become IGNORE.

    Args:
        values: floating point numbers are metres, whole numbers are multiples of `data.unit`.
    """
    metres = values.astype(np.float64) * (1.0 if np.issubdtype(values.dtype, np.floating) else config.unit)
    low, high = config.range
    with np.errstate(invalid="ignore"):
        fine = (metres >= low) & (metres <= high)
        numbers = ((metres - low) / (high - low) * STEPS).round()
    return np.where(fine, np.nan_to_num(numbers, nan=0, posinf=0, neginf=0).clip(0, STEPS), IGNORE).astype(np.uint16)


def metres_of(numbers: Tensor, range: tuple[float, float]) -> Tensor:
    """Converts the numbers of `depth_numbers` to metres, float32; NaN for ignored pixels."""
    metres = range[0] + numbers.float() / STEPS * (range[1] - range[0])
    return metres.where(numbers != IGNORE, float("nan"))


def to_planes(numbers: Numbers) -> Tensor:
    """Splits each number into two bytes, as two more channels of an image: uint16 (H, W) -> uint8 (2, H, W)."""
    return torch.from_numpy(np.stack([numbers & 255, numbers >> 8]).astype(np.uint8))


def split_planes(pixels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Inverts `to_planes`: uint8 (B, C + 2, h, w) -> an image (B, C, h, w) and numbers int64 (B, h, w)."""
    low, high = pixels[:, channels].long(), pixels[:, channels + 1].long()
    return pixels[:, :channels], low + 256 * high
