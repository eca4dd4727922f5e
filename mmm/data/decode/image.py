"""Decodes one image, encoded or in memory, to uint8 pixels (H, W, C), upright, with the requested channels.

JPEGs are decoded by simplejpeg if it is installed (measured: 1.9 times as fast as the usual Pillow pipeline, with the same pixels;
mmm/data/decode/jpeg.py), and other formats by Pillow. Channels that are neither grey, RGB nor RGBA come from .npy arrays and from
multi-channel TIFFs. The format is read from the bytes and not from the name.

Rules:

- 16-bit values are divided by 257, so that 65535 becomes 255 (Pillow divides those of RGB PNGs and TIFFs by 256).
- Floating point values must go from 0 to 1. Arrays may have their channels last or first.
- CMYK becomes RGB, and palettes are looked up. Transparent pixels are blended with white, unless 4 channels are requested.
- EXIF orientation is applied. Colour profiles are not. The first frame of an animation is read.
- Images of more than MAX_PIXELS are refused before they are decoded.
- An image that a decoder reports as damaged is unreadable, even if a part of it could be shown. A PNG is complete if only data
  after its last pixel is missing.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from mmm.data.decode.files import MAX_PIXELS, check_pixels, read_file
from mmm.data.decode.jpeg import ORIENTATION, decode_jpeg, orientation, reduction, upright
from mmm.data.errors import Unreadable

Pixels = NDArray[np.uint8]

NUMPY, PNG, TIFF = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CHECKED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # chunks of a PNG that its pixels depend on
# the formats that Pillow may open; for some of the others it starts another program (EPS: Ghostscript)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 284, 339  # tags of a TIFF
MIN_IS_WHITE, RGB = 0, 2  # values of PHOTOMETRIC
INDIRECT = (3, 5, 6, 8, 9, 10)  # further ones, whose samples are not grey or RGB: palette, CMYK, YCbCr, CIELab, ICCLab, ITULab
UNSIGNED, SIGNED = 1, 2  # values of SAMPLE_FORMAT
ALPHA = 2  # the kind of an extra sample that is an alpha channel, by which the colours have not been multiplied


def decode_image(
    source: bytes | str | Path | Image.Image | NDArray[Any] | Tensor, channels: int, size_hint: int | None = None
) -> Pixels:
    """Decodes one image.

    Args:
        source: the encoded bytes, the path of a file, or an image in memory: Pillow's, or an array or tensor (H, W), (H, W, C) or
            (C, H, W).
        channels: C of the result.
        size_hint: a JPEG may be returned at 1/2, 1/4 or 1/8 of its size, as long as neither side is below this many pixels.

    Returns:
        uint8 (H, W, C).

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    try:
        return np.require(_decode(source, channels, size_hint), requirements=["C", "W"])  # torch warns about read-only arrays
    except Unreadable:
        raise
    except Exception as error:  # decoders raise errors of many kinds: OSError, SyntaxError, struct.error, ...
        raise Unreadable(_reason(error)) from error


def image_size(source: bytes | str | Path | Image.Image | NDArray[Any] | Tensor, channels: int) -> tuple[int, int]:
    """Returns the height and width of an upright image, from its header if it has one. Takes the same sources as `decode_image`.

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    if isinstance(source, (bytes, str, Path)):
        try:
            with Image.open(io.BytesIO(source if isinstance(source, bytes) else read_file(source)), formats=_formats()) as image:
                # the stored size; from version 11 on, Pillow's `size` of a TIFF is the upright one
                width, height = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
                return (width, height) if orientation(image) in (5, 6, 7, 8) else (height, width)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # not read by Pillow, or too large
            pass
    height, width, _ = decode_image(source, channels).shape
    return height, width


def _reason(error: Exception) -> str:
    """Converts an error to one line that is the same in every run. Pillow's message may contain an address in memory."""
    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit is higher, and is checked first
        return f"{int(re.findall(r'[0-9]+', text)[0]):,} pixels, more than the {MAX_PIXELS:,} that are decoded"
    return f"{type(error).__name__}: {text}"[:200]


def _decode(source: Any, channels: int, size_hint: int | None) -> NDArray[Any]:
    """Decodes an image in any form to (H, W, C)."""
    if isinstance(source, np.ndarray):
        return _from_array(source, channels)
    if isinstance(source, Tensor):
        values = source.detach().cpu()
        return _from_array((values.float() if values.is_floating_point() else values).numpy(), channels)
    if isinstance(source, Image.Image):
        check_pixels(source.height, source.width)
        if isinstance(source, TiffImageFile) and _is_garbled(source):
            raise Unreadable("a TIFF with planes of 16 bits, which Pillow misreads; store it with its channels last")
        return _upright(source, channels)
    if not isinstance(source, (bytes, str, Path)):
        raise Unreadable(f"is of type {type(source).__name__}; an image is Pillow's, a path, encoded bytes, an array or a tensor")
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise Unreadable("the file is empty")
    return _from_bytes(data, channels, size_hint)


def _from_bytes(data: bytes, channels: int, size_hint: int | None) -> NDArray[Any]:
    """Decodes with the first decoder that supports the format, to (H, W, C)."""
    if data.startswith(NUMPY):
        return _from_array(np.load(io.BytesIO(data), allow_pickle=False), channels)
    if data.startswith(TIFF) and channels not in MODES:
        return _from_tiff(data, channels)
    if data.startswith(PNG):
        check_png(data)
    photograph = decode_jpeg(data, channels, size_hint)
    if photograph is not None:
        return photograph
    try:
        return _from_pillow(data, channels, size_hint)
    except UnidentifiedImageError:
        if data.startswith(TIFF):
            return _from_tiff(data, channels)
        raise


@cache
def _formats() -> tuple[str, ...]:
    """Returns the formats of FORMATS that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _from_pillow(data: bytes, channels: int, size_hint: int | None) -> NDArray[Any]:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        width, height = image.size
        check_pixels(height, width)
        if isinstance(image, TiffImageFile) and _is_garbled(image):
            return _from_tiff(data, channels)
        factor = reduction(height, width, size_hint)
        if factor > 1:
            image.draft(None, (width // factor, height // factor))  # only JPEGs are reduced
        return _upright(image, channels)


def _is_garbled(image: TiffImageFile) -> bool:
    """Returns whether Pillow misreads the pixels: uncompressed planes of more than 8 bits."""
    tags = image.tag_v2
    return bool(tags.get(PLANAR, 1) == 2 and tags.get(COMPRESSION, 1) == 1 and max(tags.get(BITS, (1,))) > 8)


def _upright(image: Image.Image, channels: int) -> NDArray[Any]:
    """Reads the pixels of an open image, upright, (H, W, C)."""
    image.load()
    turned = orientation(image)  # after the pixels: a PNG may store it behind them, and TIFFs are turned while they are loaded
    return upright(_converted(image, channels), turned)


def _converted(image: Image.Image, channels: int) -> NDArray[Any]:
    """Converts a loaded image to (H, W, C), in its stored orientation."""
    if isinstance(image, TiffImageFile):
        bits, sample = max(image.tag_v2.get(BITS, (1,))), image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0]
        if sample == SIGNED or (sample == UNSIGNED and bits > 16):
            raise _not_expected(f"{'u' * (sample == UNSIGNED)}int{bits}")
    if image.mode.startswith("I") or image.mode == "F":
        image = _in_8_bits(image)
    if channels not in MODES:
        raise Unreadable(f"has {len(image.getbands())} channels, data.channels is {channels}")
    if channels != 4 and image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    pixels = np.array(image.convert(MODES[channels]))  # a copy, because torch warns about read-only arrays
    return pixels if pixels.ndim == 3 else pixels[:, :, None]  # (H, W, C)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Converts a grey image of 16 bits or floating point values to one of 8 bits, with the transparency it has."""
    values = np.asarray(image)
    if image.mode.startswith("I"):  # I;16 and its variants, and I, which older versions of Pillow use for a 16-bit PNG
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("32-bit integers have no defined range; store uint8, uint16 or floating point values from 0 to 1")
        values = values.astype(np.uint16)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if tags.get(BITS) == (12,):  # Pillow leaves these from 0 to 4095
        values = values / np.float32(4095)
    grey = _to_uint8(values)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:  # Pillow inverts those of 8 bits only
        grey = 255 - grey
    clear = image.info.get("transparency")  # the grey value of a PNG that is transparent, in 16 bits
    if clear is None:
        return Image.fromarray(grey)
    return Image.fromarray(np.stack([grey, np.where(values == clear, 0, 255).astype(np.uint8)], -1))


def _from_tiff(data: bytes, channels: int) -> NDArray[Any]:
    """Decodes with tifffile: any number of channels, first or last, or one per page; grey or RGB with or without alpha."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        rows, columns = series.axes.find("Y"), series.axes.find("X")
        if min(rows, columns) < 0 or len(series.shape) > 3:
            raise Unreadable(f"a TIFF with axes {series.axes}; rows, columns and channels are expected")
        check_pixels(series.shape[rows], series.shape[columns])
        planes = math.prod(series.shape) // (series.shape[rows] * series.shape[columns])
        page = series.keyframe
        if page.photometric in INDIRECT and channels in MODES:
            inks = tifffile.PHOTOMETRIC(page.photometric).name
            raise Unreadable(f"a TIFF of {series.dtype.name} with colours {inks}; grey and RGB are expected")
        colours = 3 if page.photometric == RGB else 1
        has_alpha = planes == colours + 1 and page.extrasamples == (ALPHA,)
        if planes != channels and not (channels in MODES and (planes in (1, colours) or has_alpha)):
            raise Unreadable(f"has {planes} channels, data.channels is {channels}")
        values = np.moveaxis(series.asarray(), (rows, columns), (0, 1))
        pixels = _to_uint8(values if planes > 1 else values.reshape(values.shape[:2]))
        turned = int(page.tags.valueof(ORIENTATION, default=1))
    if page.photometric == MIN_IS_WHITE:
        inverted = planes - len(page.extrasamples)
        pixels = 255 - pixels if inverted == planes else np.concatenate([255 - pixels[:, :, :inverted], pixels[:, :, inverted:]], 2)
    if channels in MODES:
        pixels = _converted(Image.fromarray(pixels), channels)
    return upright(pixels, turned)


def check_png(data: bytes) -> None:
    """Checks the checksums of a PNG's chunks, at 1 GB/s or more. A truncated last chunk is left to the decoder.

    Pillow checks those of the pixels only in part (it read 8 of 60 files with one flipped bit).

    Raises:
        Unreadable: a checksum is wrong.
    """
    view, start = memoryview(data), len(PNG)
    while start + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, start)
        end = start + 12 + size
        kind = data[start + 4 : start + 8]
        if end > len(data) or kind == b"IEND":
            return
        if kind in CHECKED and zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise Unreadable(f"is damaged: the checksum of a chunk {kind.decode()} is wrong")
        start = end


def _from_array(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Converts uint8, uint16 or floats from 0 to 1, (H, W), (H, W, C) or (C, H, W), to uint8 (H, W, C)."""
    if values.ndim == 2:
        values = values[:, :, None]  # (H, W, 1)
    if values.ndim != 3 or 0 in values.shape:
        raise Unreadable(f"has shape {values.shape}; (height, width, channels) or (channels, height, width) is expected")
    fits = accepted_channels(channels)
    if values.shape[2] not in fits and values.shape[0] in fits:
        values = np.moveaxis(values, 0, 2)
    if values.shape[2] not in fits:
        raise Unreadable(f"has {min(values.shape[0], values.shape[2])} channels, data.channels is {channels}")
    check_pixels(values.shape[0], values.shape[1])
    pixels = _to_uint8(values)
    if pixels.shape[2] == channels:
        return pixels
    return pixels.repeat(3, axis=2) if channels == 3 else np.array(Image.fromarray(pixels).convert("L"))[:, :, None]


def accepted_channels(channels: int) -> tuple[int, ...]:
    """Returns the numbers of channels of an array that can be converted to `channels` channels: grey is converted to RGB, and RGB
    to grey."""
    return (channels, 4 - channels) if channels in (1, 3) else (channels,)


def _not_expected(kind: str) -> Unreadable:
    return Unreadable(f"holds {kind}; uint8, uint16 or floating point values from 0 to 1 are expected: scale it to one of these")


def _to_uint8(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255
    if not np.issubdtype(values.dtype, np.floating):
        raise _not_expected(values.dtype.name)
    least, largest = values.min(), values.max()
    if not (least >= 0 and largest <= 1):  # also true for NaN
        raise Unreadable(f"floating point pixels from {least:g} to {largest:g}; they must go from 0 to 1")
    return (values.astype(np.float32) * 255).round().astype(np.uint8)
