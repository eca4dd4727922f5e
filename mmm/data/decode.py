"""One function from a file's bytes to pixels: uint8, (H, W, C), upright, with the channels that were asked for.

JPEGs take simplejpeg where it is installed (measured 1.9 times the usual Pillow pipeline, the same pixels); what it does not
do (CMYK, EXIF rotation, damaged but readable files) and every other format take Pillow; channels that are neither grey, RGB
nor RGBA come from .npy arrays and multi-channel TIFFs. Which decoder is meant is read from the bytes, not from the name.

The contract: 16-bit values are divided by 257, so that 65535 is 255 (Pillow divides those of RGB PNGs by 256); CMYK becomes RGB;
palettes are looked up; transparency is laid on white, unless 4 channels are wanted; EXIF rotation is applied; only the first
frame of an animation is read; floats are refused, for no range is agreed; nothing above MAX_PIXELS is decoded.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mmm.data.bad_inputs import Unreadable

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

Pixels = NDArray[np.uint8]

# from the header, before any pixel: a PNG of 100 KB can unfold to 1.6 GB (measured, 12 s in Pillow)
MAX_PIXELS = 50_000_000
JPEG, NUMPY, TIFF = b"\xff\xd8\xff", b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode_image(source: bytes | str | Path, channels: int, size_hint: int | None = None) -> Pixels:
    """Decodes one image.

    Args:
        source: the encoded bytes, or the path of a file.
        channels: C of the result.
        size_hint: a JPEG may come back at 1/2, 1/4 or 1/8 of its size, as long as neither side is below this many pixels.

    Returns:
        uint8 (H, W, C).

    Raises:
        Unreadable: whatever is wrong with the input.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise Unreadable("the file is empty")
        return np.ascontiguousarray(_decode(data, channels, size_hint))
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # its own text holds an address in memory
        raise Unreadable("not an image of a known format") from error
    except Exception as error:  # other people's decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise Unreadable(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]) from error


def _decode(data: bytes, channels: int, size_hint: int | None) -> NDArray[Any]:
    """(H, W, C) by the first decoder that can."""
    if data.startswith(NUMPY):
        return _from_array(np.load(io.BytesIO(data), allow_pickle=False), channels)
    if data.startswith(TIFF) and channels not in MODES:
        return _from_tiff(data, channels)
    if simplejpeg is not None and channels in (1, 3) and data.startswith(JPEG):
        try:
            return _from_jpeg(data, channels, size_hint)
        except ValueError:
            pass  # CMYK, a rotation, or damage: Pillow has the last word
    try:
        return _from_pillow(data, channels, size_hint)
    except UnidentifiedImageError:
        if data.startswith(TIFF):
            return _from_tiff(data, channels)
        raise


def _from_jpeg(data: bytes, channels: int, size_hint: int | None) -> NDArray[Any]:
    """By simplejpeg. Raises ValueError where it cannot; then nothing is lost but a millisecond."""
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    _refuse_bomb(height, width)
    if space in ("CMYK", "YCCK") or (data.find(b"Exif\0\0", 0, 1 << 16) >= 0 and _rotated(data)):
        raise ValueError("left to Pillow")
    factor = _factor(height, width, size_hint)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colorspace="GRAY" if channels == 1 else "RGB", **least)
    return pixels


def _rotated(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return int(image.getexif().get(0x0112, 1)) != 1


def _factor(height: int, width: int, size_hint: int | None) -> int:
    """The largest of 8, 4, 2, 1 that leaves both sides at or above the hint; libjpeg's fast scales."""
    if size_hint is None:
        return 1
    return next((f for f in (8, 4, 2) if min(height, width) // f >= size_hint), 1)


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{height} x {width} pixels, more than the {MAX_PIXELS:,} that are decoded")


def _from_pillow(data: bytes, channels: int, size_hint: int | None) -> NDArray[Any]:
    with Image.open(io.BytesIO(data)) as file:
        width, height = file.size
        _refuse_bomb(height, width)
        factor = _factor(height, width, size_hint)
        if factor > 1:
            file.draft(None, (width // factor, height // factor))  # only JPEGs heed it
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # I;16 and its kin, and I, as which older Pillows open a 16-bit PNG
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("32-bit integers: no range is agreed for them")
        return _from_array(values.astype(np.uint16), channels)
    if image.mode == "F":
        raise Unreadable("floating point pixels: no range is agreed for them")
    if channels not in MODES:
        raise Unreadable(f"has {len(image.getbands())} channels, data.channels is {channels}")
    if channels != 4 and image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    pixels = np.array(image.convert(MODES[channels]))  # a copy, for torch warns of what it may not write
    return pixels if pixels.ndim == 3 else pixels[:, :, None]  # (H, W, C)


def _from_tiff(data: bytes, channels: int) -> NDArray[Any]:
    """By tifffile: any number of channels, first or last, or one a page."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        rows, columns = series.axes.find("Y"), series.axes.find("X")
        if min(rows, columns) < 0 or len(series.shape) > 3:
            raise Unreadable(f"a TIFF with axes {series.axes}; rows, columns and channels are expected")
        _refuse_bomb(series.shape[rows], series.shape[columns])
        planes = math.prod(series.shape) // (series.shape[rows] * series.shape[columns])
        if planes not in (1, channels):
            raise Unreadable(f"has {planes} channels, data.channels is {channels}")
        return _from_array(np.moveaxis(series.asarray(), (rows, columns), (0, 1)), channels)


def _from_array(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """uint8 or uint16 (H, W) or (H, W, C) to uint8 (H, W, C)."""
    if values.dtype not in (np.uint8, np.uint16):
        raise Unreadable(f"holds {values.dtype}; uint8 or uint16 is expected")
    if values.ndim == 2:
        values = values[:, :, None]  # (H, W, 1)
    if values.ndim != 3 or 0 in values.shape:
        raise Unreadable(f"has shape {values.shape}; (height, width, channels) is expected")
    if values.shape[2] == 1 and channels == 3:
        values = values.repeat(3, axis=2)
    if values.shape[2] != channels:
        raise Unreadable(f"has {values.shape[2]} channels, data.channels is {channels}")
    _refuse_bomb(values.shape[0], values.shape[1])
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255
    return values
