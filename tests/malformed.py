"""Images that are damaged, unusual, or no images, made when needed, with the expected result of reading each.

A kind is a function of a seed. The expected pixels are computed from the photograph's own pixels, never by a decoder.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
BUNDLED = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg")
TOLERANCE = 2.0  # mean difference to the true pixels, out of 255
HEIGHT, WIDTH = 72, 96
DAMAGED = "is damaged|truncated"


@dataclass(frozen=True)
class Case:
    """A malformed file and the expected result of reading it.

    Attributes:
        write: writes the file to a path.
        reason: pattern of the expected error message; None: the file can be read.
        pixels: expected pixels, (H, W, 3), or (T, H, W, 3) of a video.
        name: name of the file.
    """

    write: Callable[[Path], object]
    reason: str | None
    pixels: Pixels | None
    name: str


Kind = Callable[[int], Case]
IMAGES: dict[str, Kind] = {}


def image(function: Callable[[int], tuple[bytes, str | Pixels]]) -> Callable[[int], tuple[bytes, str | Pixels]]:
    """Registers a function from a seed to bytes, and to a reason or to pixels, as a kind."""

    def kind(seed: int) -> Case:
        data, what = function(seed)
        reason, pixels = (what, None) if isinstance(what, str) else (None, what)
        return Case(lambda path: path.write_bytes(data), reason, pixels, f"{function.__name__}_{seed}.jpg")

    IMAGES[function.__name__] = kind
    return function


def special_file(name: str, write: Callable[[Path], object], reason: str) -> None:
    """Registers a kind that is not a regular file."""
    IMAGES[name] = lambda seed: Case(write, reason, None, f"{name}_{seed}.jpg")


@cache
def _bundled(name: str) -> Image.Image:
    """Returns a photograph, blurred a little, so that JPEG preserves it."""
    path = Path(skimage.__file__).parent / "data" / name
    return Image.open(path).convert("RGB").resize((480, 360)).filter(ImageFilter.GaussianBlur(1.5))


def photograph(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Returns a crop of a real photograph, (H, W, 3)."""
    draw = np.random.default_rng(seed)
    pixels = np.asarray(_bundled(BUNDLED[seed % len(BUNDLED)]))
    top, left = (int(draw.integers(0, whole - side)) for whole, side in zip(pixels.shape, (height, width), strict=False))
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def encoded(pixels: Pixels | Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def jpeg(pixels: Pixels | Image.Image, **options: object) -> bytes:
    return encoded(pixels, "JPEG", quality=97, subsampling=0, **options)


def grey(pixels: Pixels) -> Pixels:
    """Converts to grey by ITU-R 601; (H, W, 3) -> (H, W)."""
    return np.rint(pixels @ [0.299, 0.587, 0.114]).astype(np.uint8)


def three(plane: Pixels) -> Pixels:
    """Repeats a plane for three channels; (H, W) -> (H, W, 3)."""
    return plane[:, :, None].repeat(3, 2)


def on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Blends pixels with white; (H, W, 3), (H, W) -> (H, W, 3)."""
    share = alpha[:, :, None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


def ramp(height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Returns an alpha channel that increases from left to right."""
    return np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, 0)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Returns a PNG with any depth and any header, written without a library."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_16(values: NDArray[np.uint16]) -> bytes:
    """Returns a PNG with 16 bits per channel, from (H, W) or (H, W, 3)."""
    rows = values.reshape(len(values), -1).astype(">u2")
    return png(*values.shape[:2], b"".join(b"\0" + row.tobytes() for row in rows), 16, 0 if values.ndim == 2 else 2)


def where_pixels_start(data: bytes) -> int:
    """Returns the position behind the last header of a JPEG."""
    return data.rindex(b"\xff\xda") + 14


def overwritten(data: bytes, start: int, end: int, seed: int) -> bytes:
    """Sets an eighth of the bytes between two positions to random values, as a bad disk does."""
    draw, found = np.random.default_rng(seed), bytearray(data)
    for position in draw.integers(start, end, max(1, (end - start) // 8)):
        found[position] = int(draw.integers(256))
    return bytes(found)


def scattered(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


# not an image


@image
def empty(seed: int) -> tuple[bytes, str]:
    return b"", "the file is empty"


@image
def text(seed: int) -> tuple[bytes, str]:
    return f"photograph number {seed}\n".encode() * 40, "not an image"


@image
def web_page(seed: int) -> tuple[bytes, str]:
    return b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>", "not an image"


@image
def noise(seed: int) -> tuple[bytes, str]:
    return b"\x01" + scattered(5000, seed), "not an image"


@image
def zeros(seed: int) -> tuple[bytes, str]:
    return bytes(4096), "not an image"


@image
def postscript(seed: int) -> tuple[bytes, str]:
    """A file for which Pillow would start Ghostscript."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not an image"


# truncated and damaged


@image
def jpeg_header_only(seed: int) -> tuple[bytes, str]:
    data = jpeg(photograph(seed))
    return data[: where_pixels_start(data)], f"{DAMAGED}|broken"


@image
def jpeg_first_bytes(seed: int) -> tuple[bytes, str]:
    return jpeg(photograph(seed))[: 4 + seed % 16], f"{DAMAGED}|not an image|Truncated File Read"


@image
def jpeg_half(seed: int) -> tuple[bytes, str]:
    data = jpeg(photograph(seed))
    return data[: (where_pixels_start(data) + len(data)) // 2], DAMAGED


@image
def jpeg_last_bytes(seed: int) -> tuple[bytes, str]:
    return jpeg(photograph(seed))[: -2 - seed % 40], DAMAGED


@image
def jpeg_overwritten(seed: int) -> tuple[bytes, str]:
    data = jpeg(photograph(seed))
    return overwritten(data, where_pixels_start(data), len(data) - 2, seed), f"{DAMAGED}|broken|nsupported"


@image
def jpeg_with_a_hole(seed: int) -> tuple[bytes, str]:
    """A file with blocks that were never written to the disk."""
    data = jpeg(photograph(seed))
    start = where_pixels_start(data) + 500
    return data[:start] + bytes((len(data) - start) // 2) + data[start + (len(data) - start) // 2 :], DAMAGED


@image
def png_half(seed: int) -> tuple[bytes, str]:
    data = encoded(photograph(seed), "PNG")
    return data[: len(data) // 2], "truncated"


@image
def png_flipped(seed: int) -> tuple[bytes, str]:
    data, draw = bytearray(encoded(photograph(seed), "PNG")), np.random.default_rng(seed)
    data[int(draw.integers(60, len(data) - 30))] ^= 1 << int(draw.integers(8))
    return bytes(data), "checksum of a chunk IDAT is wrong"


@image
def png_without_its_end(seed: int) -> tuple[bytes, Pixels]:
    """A file that contains every pixel."""
    pixels = photograph(seed)
    return encoded(pixels, "PNG")[:-12], pixels


@image
def gif_half(seed: int) -> tuple[bytes, str]:
    data = encoded(photograph(seed), "GIF")
    return data[: (800 + len(data)) // 2], "truncated"


@image
def webp_half(seed: int) -> tuple[bytes, str]:
    data = encoded(photograph(seed), "WEBP", quality=90)
    return data[: len(data) // 2], "could not create decoder"


@image
def tiff_half(seed: int) -> tuple[bytes, str]:
    data = encoded(photograph(seed), "TIFF")
    return data[:8] + data[8 : len(data) // 2], "truncated|not an image|TIFF"


@image
def bmp_half(seed: int) -> tuple[bytes, str]:
    data = encoded(photograph(seed), "BMP")
    return data[: len(data) // 2], "truncated"


# too large


@image
def bomb_png(seed: int) -> tuple[bytes, str]:
    """A file that contains all its pixels: 100 megapixels in 12 KB."""
    side = 10_000 + seed
    return png(side, side, bytes((side + 7) // 8 + 1) * side, 1, 0), "more than the 50,000,000"


@image
def bomb_png_header(seed: int) -> tuple[bytes, str]:
    return png(20_000 + seed, 20_000, b""), "more than the 50,000,000"


@image
def bomb_jpeg(seed: int) -> tuple[bytes, str]:
    """A file with a changed height and width in its header."""
    data = bytearray(jpeg(photograph(seed)))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 20_000, 20_000 + seed)
    return bytes(data), "more than the 50,000,000"


@image
def bomb_gif(seed: int) -> tuple[bytes, str]:
    data = bytearray(encoded(photograph(seed), "GIF"))
    struct.pack_into("<HH", data, 6, 60_000, 60_000 - seed)
    return bytes(data), "more than the 50,000,000"


@image
def bomb_tiff(seed: int) -> tuple[bytes, str]:
    data = bytearray(encoded(photograph(seed), "TIFF"))
    for tag, side in ((256, 20_000), (257, 20_000 + seed)):  # tags of width and height: number, type, count, value
        position = max(data.find(struct.pack("<HHI", tag, kind, 1)) for kind in (3, 4))
        struct.pack_into("<HHII", data, position, tag, 4, 1, side)
    return bytes(data), "more than the 50,000,000"


@image
def bomb_webp(seed: int) -> tuple[bytes, str]:
    """A file whose extended header has a changed canvas of 16,384 x 16,384."""
    draw = Image.fromarray(np.dstack([photograph(seed), ramp()]))
    data = bytearray(encoded(draw, "WEBP", quality=80, save_all=True, append_images=[draw.rotate(90)]))
    position = data.index(b"VP8X") + 12
    data[position : position + 6] = b"\xff\x3f\0\xff\x3f\0"
    return bytes(data), "more than the 50,000,000|could not create decoder|not an image"


@image
def bomb_array(seed: int) -> tuple[bytes, str]:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (90_000, 90_000, 3)})
    return file.getvalue(), "ValueError|more than the 50,000,000|MemoryError"


# with a wrong suffix


def _renamed(kind: str, **options: object) -> None:
    def function(seed: int) -> tuple[bytes, Pixels]:
        pixels = photograph(seed)
        return encoded(pixels, kind, **options), pixels

    function.__name__ = f"{kind.lower()}_called_jpg"
    image(function)


for _kind in ("PNG", "BMP", "TIFF"):
    _renamed(_kind)
_renamed("WEBP", lossless=True)


@image
def gif_called_jpg(seed: int) -> tuple[bytes, Pixels]:
    plane = grey(photograph(seed))
    return encoded(plane, "GIF"), three(plane)


# decoded, but often incorrectly


@image
def jpeg_cmyk(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed)
    inks = np.dstack([255 - pixels, np.zeros_like(pixels[:, :, 0])])
    return jpeg(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes())), pixels


@image
def jpeg_ycck(seed: int) -> tuple[bytes, Pixels]:
    """Writes a JPEG as Photoshop does: inverted inks, stored as luminance and colour, and an Adobe header."""
    pixels = photograph(seed)
    import simplejpeg

    inks = np.ascontiguousarray(np.dstack([pixels, np.full_like(pixels[:, :, :1], 255)]))
    return simplejpeg.encode_jpeg(inks, quality=97, colorspace="CMYK", colorsubsampling="444"), pixels


@image
def jpeg_grey(seed: int) -> tuple[bytes, Pixels]:
    plane = grey(photograph(seed))
    return jpeg(plane), three(plane)


@image
def jpeg_progressive(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed)
    return jpeg(pixels, progressive=True), pixels


@image
def jpeg_with_profile(seed: int) -> tuple[bytes, Pixels]:
    """A file with a colour profile, which is not applied."""
    from PIL import ImageCms

    pixels = photograph(seed)
    return jpeg(pixels, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), pixels


@image
def jpeg_with_broken_exif(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed)
    return jpeg(pixels, exif=b"Exif\0\0" + scattered(60, seed)), pixels


@image
def jpeg_with_a_tail(seed: int) -> tuple[bytes, Pixels]:
    """A file with other data behind the image, like videos in files of phones."""
    pixels = photograph(seed)
    return jpeg(pixels) + scattered(3000, seed), pixels


# the stored image for each EXIF orientation, computed from the upright one
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: np.rot90(shown, -1),
}


def _turned(lies: int) -> None:
    def function(seed: int) -> tuple[bytes, Pixels]:
        pixels, exif = photograph(seed), Image.Exif()
        exif[0x0112] = lies
        stored = np.ascontiguousarray(STORED[lies](pixels))
        return (encoded(stored, "PNG", exif=exif) if seed % 3 == 2 else jpeg(stored, exif=exif)), pixels

    function.__name__ = f"exif_{lies}"
    image(function)


for _lies in STORED:
    _turned(_lies)


@image
def png_16_bits_grey(seed: int) -> tuple[bytes, Pixels]:
    plane = grey(photograph(seed)).astype(np.uint16) * 257
    return png_16(plane), three((plane // 257).astype(np.uint8))


@image
def png_16_bits_colour(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed)
    return png_16(pixels.astype(np.uint16) * 257), pixels


@image
def png_palette(seed: int) -> tuple[bytes, Pixels]:
    plane, table = grey(photograph(seed)) // 8, photograph(seed + 1).reshape(-1, 3)[:32]
    picture = Image.fromarray(plane, "L")
    picture.putpalette(table.tobytes())
    return encoded(picture, "PNG"), table[plane]


@image
def png_palette_with_a_clear_colour(seed: int) -> tuple[bytes, Pixels]:
    plane, table = grey(photograph(seed)) // 8, photograph(seed + 1).reshape(-1, 3)[:32].copy()
    picture = Image.fromarray(plane, "L")
    picture.putpalette(table.tobytes())
    clear = int(plane[0, 0])
    data = encoded(picture, "PNG", transparency=clear)
    table[clear] = 255
    return data, table[plane]


@image
def png_1_bit(seed: int) -> tuple[bytes, Pixels]:
    plane = grey(photograph(seed)) > 128
    return encoded(Image.fromarray(plane), "PNG"), three(plane.astype(np.uint8) * 255)


@image
def png_grey_with_alpha(seed: int) -> tuple[bytes, Pixels]:
    plane = grey(photograph(seed))
    return encoded(Image.fromarray(np.dstack([plane, ramp()]), "LA"), "PNG"), on_white(three(plane), ramp())


@image
def png_with_alpha(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed)
    return encoded(np.dstack([pixels, ramp()]), "PNG"), on_white(pixels, ramp())


@image
def tiff_16_bits(seed: int) -> tuple[bytes, Pixels]:
    plane = grey(photograph(seed)).astype(np.uint16) * 257
    return encoded(Image.fromarray(plane), "TIFF"), three((plane // 257).astype(np.uint8))


@image
def tiff_float(seed: int) -> tuple[bytes, str]:
    return encoded(Image.fromarray(photograph(seed)[:, :, 0].astype(np.float32)), "TIFF"), "floating point"


@image
def one_pixel(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed, 1, 1)
    return encoded(pixels, "PNG"), pixels


@image
def strip(seed: int) -> tuple[bytes, Pixels]:
    pixels = photograph(seed, 1, 300)
    return encoded(pixels, "PNG"), pixels


def _animated(kind: str, **options: object) -> None:
    def function(seed: int) -> tuple[bytes, Pixels]:
        plane = three(grey(photograph(seed)))
        more = [Image.fromarray(255 - plane)]
        first = Image.fromarray(plane[:, :, 0] if kind == "GIF" else plane)
        return encoded(first, kind, save_all=True, append_images=more, duration=40, **options), plane

    function.__name__ = f"animated_{kind.lower()}"
    image(function)


_animated("GIF")
_animated("PNG")
_animated("WEBP", lossless=True)


@image
def array_of_floats(seed: int) -> tuple[bytes, Pixels]:
    pixels, file = photograph(seed), io.BytesIO()
    np.save(file, (pixels / 255).transpose(2, 0, 1))
    return file.getvalue(), pixels


@image
def array_of_large_floats(seed: int) -> tuple[bytes, str]:
    file = io.BytesIO()
    np.save(file, photograph(seed).astype(np.float32))
    return file.getvalue(), "floating point"


@image
def array_with_a_pickle(seed: int) -> tuple[bytes, str]:
    file = io.BytesIO()
    np.save(file, np.array([{"a": seed}], dtype=object), allow_pickle=True)
    return file.getvalue(), "Object arrays cannot be loaded"


# not regular files

special_file("pipe", os.mkfifo, "is not a regular file")
special_file("link_to_nothing", lambda path: path.symlink_to("nowhere.jpg"), "there is no such file")
special_file("link_to_itself", lambda path: path.symlink_to(path.name), "leads to itself")
special_file("link_to_a_device", lambda path: path.symlink_to("/dev/zero"), "is not a regular file")


def sparse(path: Path) -> None:
    """Writes a file of a terabyte that takes no space on the disk."""
    with path.open("wb") as file:
        file.truncate(2**40)


special_file("terabyte", sparse, "more than the 1,073,741,824 that are read")

NAMES = (
    "with spaces {}.jpg",
    "line\nbreak {}.jpg",
    "sm\N{GRINNING FACE}le {}.jpg",
    'quote"d, {}.jpg',
    "UPPER {}.JPG",
    "latin \udce9 {}.jpg",
)


def odd_name(seed: int) -> Case:
    pixels = photograph(seed)
    return Case(lambda path: path.write_bytes(jpeg(pixels)), None, pixels, NAMES[seed % len(NAMES)].format(seed))


def damaged_with_an_odd_name(seed: int) -> Case:
    return Case(lambda path: path.write_bytes(b""), "the file is empty", None, "empty " + NAMES[seed % len(NAMES)].format(seed))


IMAGES |= {"odd_name": odd_name, "damaged_with_an_odd_name": damaged_with_an_odd_name}
