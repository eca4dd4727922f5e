"""Decoding of images: unusual files are decoded correctly, and unreadable ones give a reason of one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mmm.data.decode import jpeg
from mmm.data.decode.image import MAX_PIXELS, decode_image
from mmm.data.errors import Unreadable

GENERATOR = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    """Returns an image that JPEG preserves well and that has a different colour at every corner."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * y / height, 255 * x / width, 255 * (x + y) / (height + width)]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def png_header(height: int, width: int) -> bytes:
    """Returns a PNG whose header announces pixels that the file does not contain."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_cut(channels: int) -> None:
    values = np.arange(0, 65536, 31, dtype=np.uint16)[:2000].reshape(40, 50)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG"), channels)
    assert pixels.shape == (40, 50, channels)
    for plane in np.moveaxis(pixels, 2, 0):
        np.testing.assert_array_equal(plane, np.rint(values / 257))


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode_image(encoded(red, "JPEG", quality=95), 3)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth()), "JPEG", quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data, 3), upright)
    assert upright.shape[:2] == ((40, 60) if orientation == 3 else (60, 40))


@pytest.mark.parametrize("filled", [b"", b"\xff\xff"])
def test_exif_rotation_behind_other_large_segments_is_applied(filled: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(smooth()), "JPEG", quality=95, exif=exif)
    segment = filled + b"\xff\xed" + struct.pack(">H", 60002) + bytes(60000)  # APP13, where Photoshop stores its data
    assert decode_image(data[:2] + 3 * segment + data[2:], 3).shape == (60, 40, 3)
    np.testing.assert_array_equal(decode_image(data[:2] + 3 * segment + data[2:], 3), decode_image(data, 3))


def test_transparency_is_laid_on_white_unless_wanted() -> None:
    clear = np.concatenate([smooth(), np.zeros((40, 60, 1), np.uint8)], -1)
    data = encoded(Image.fromarray(clear), "PNG")
    assert (decode_image(data, 3) == 255).all()
    assert (decode_image(data, 1) == 255).all()
    np.testing.assert_array_equal(decode_image(data, 4), clear)


def test_a_clear_colour_of_16_bit_grey_is_laid_on_white_unless_wanted() -> None:
    values = np.array([[2570, 2571], [0, 65535]], np.uint16)  # the first two are 10 of 255 in 8 bits, and only one of them is clear
    data = encoded(Image.fromarray(values), "PNG", transparency=2570)
    assert decode_image(data, 1)[:, :, 0].tolist() == [[255, 10], [0, 255]]
    assert decode_image(data, 3).tolist() == [[[255] * 3, [10] * 3], [[0] * 3, [255] * 3]]
    np.testing.assert_array_equal(decode_image(data, 4)[:, :, 3], [[0, 255], [255, 255]])
    opaque = decode_image(encoded(Image.fromarray(values), "PNG"), 4)
    assert opaque.tolist() == [[[10, 10, 10, 255]] * 2, [[0, 0, 0, 255], [255] * 4]]


def test_palette_is_looked_up() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), 3), np.full((8, 8, 3), [10, 200, 30]))
    assert (decode_image(encoded(image, "PNG", transparency=1), 3) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_grey_and_colour(kind: str) -> None:
    grey, colour = Image.fromarray(smooth()[:, :, 0]), Image.fromarray(smooth())
    pixels = decode_image(encoded(grey, kind), 3)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(np.diff(pixels.astype(int), axis=2)).max() <= 2
    assert decode_image(encoded(colour, kind), 1).shape == (40, 60, 1)
    assert decode_image(encoded(colour, kind), 3).dtype == np.uint8


def test_photographs_are_as_pillow_has_them(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((real_data / "images").rglob("*.JPEG"))[:12]
    fast = [decode_image(path, 3) for path in paths]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    for path, pixels in zip(paths, fast, strict=True):
        np.testing.assert_array_equal(pixels, decode_image(path, 3), err_msg=path.name)


@pytest.mark.parametrize("library", ["fast", "pillow"])
def test_the_hint_allows_a_smaller_jpeg(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    data = encoded(Image.fromarray(smooth(241, 320)), "JPEG", quality=95)
    whole = decode_image(data, 3)
    shapes = {hint: decode_image(data, 3, hint).shape[:2] for hint in (30, 31, 60, 120, 121, 1000)}
    assert shapes == {30: (31, 40), 31: (61, 80), 60: (61, 80), 120: (121, 160), 121: (241, 320), 1000: (241, 320)}
    half = decode_image(data, 3, 120)[:120]
    assert np.abs(half - whole[:240].reshape(120, 2, 160, 2, 3).mean((1, 3))).mean() < 1
    assert decode_image(encoded(Image.fromarray(smooth(240, 320)), "PNG"), 3, 30).shape == (240, 320, 3)


def test_many_channels_from_arrays_and_tiffs(tmp_path: Path) -> None:
    import tifffile

    wide = GENERATOR.integers(0, 65536, (20, 30, 5), dtype=np.uint16)
    want = np.rint(wide / 257).astype(np.uint8)
    np.save(tmp_path / "wide.npy", wide)
    tifffile.imwrite(tmp_path / "wide.tif", wide, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(wide, 2, 0), photometric="minisblack")
    for name in ("wide.npy", "wide.tif", "pages.tif"):
        np.testing.assert_array_equal(decode_image(tmp_path / name, 5), want)
    with pytest.raises(Unreadable, match=r"has 5 channels, data\.channels is 3"):
        decode_image(tmp_path / "wide.npy", 3)
    with pytest.raises(Unreadable, match=r"has 3 channels, data\.channels is 5"):
        decode_image(encoded(Image.fromarray(smooth()), "PNG"), 5)


def tiff(values: np.ndarray, orientation: int = 1, **options: Any) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, values, extratags=[(274, 3, 1, orientation, False)], **options)
    return file.getvalue()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
def test_tiffs_have_the_pixels_that_were_written(kind: str, compression: str | None) -> None:
    """Planes, white at 0, alpha and orientation, in every kind of value."""
    want = GENERATOR.integers(0, 256, (20, 30, 5), dtype=np.uint8)
    scale = {"uint8": 1, "uint16": 257}.get(kind, 1 / 255)
    values, white = (want * np.float64(scale)).astype(kind), 255 * scale
    rgb, grey, alpha = values[:, :, :3], values[:, :, 0], {"extrasamples": ["unassalpha"], "compression": compression}
    grey_want = want[:, :, :1].repeat(3, 2)
    flat = tiff(rgb, photometric="rgb", compression=compression)
    planes = tiff(np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate", compression=compression)
    inverted = tiff((white - grey).astype(kind), photometric="miniswhite", compression=compression)
    for data, pixels in [(flat, want[:, :, :3]), (planes, want[:, :, :3]), (inverted, grey_want)]:
        np.testing.assert_array_equal(decode_image(data, 3), pixels)
        np.testing.assert_array_equal(decode_image(data, 4)[:, :, :3], pixels)
    grey_alpha, rgb_alpha = values[:, :, [0, 3]], values[:, :, :4]
    for samples, photometric, colours in [(grey_alpha, "minisblack", grey_want), (rgb_alpha, "rgb", want[:, :, :3])]:
        data, opacity = tiff(samples, photometric=photometric, **alpha), want[:, :, 3:4]
        np.testing.assert_array_equal(decode_image(data, 4), np.concatenate([colours, opacity], 2))
        on_white = 255 - (255 - colours.astype(float)) * opacity / 255
        assert np.abs(decode_image(data, 3) - on_white).max() <= 1
    for channels, options in [(1, {}), (3, {"photometric": "rgb"}), (5, {"photometric": "minisblack", "planarconfig": "contig"})]:
        samples = values[:, :, :channels] if channels > 1 else grey
        data = tiff(samples, 6, compression=compression, **options)
        np.testing.assert_array_equal(decode_image(data, channels), np.rot90(want[:, :, :channels], -1))


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32"])
def test_tiffs_of_other_integers_are_refused_by_name(kind: str) -> None:
    grey, rgb = (smooth()[:, :, 0] // 2).astype(kind), (smooth() // 2).astype(kind)
    for source in (data := tiff(grey), Image.open(io.BytesIO(data)), grey, tiff(rgb, photometric="rgb")):
        with pytest.raises(Unreadable, match=f"holds {kind}; uint8, uint16 or .*: scale it"):
            decode_image(source, 3)


def test_tiffs_of_12_bits_are_scaled() -> None:
    values = bytes([0xFF, 0xF0, 0x00, 0x80, 0x07, 0xFF])  # rows of 4095, 0 and of 2048, 2047
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: len(values)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 14) + values + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode_image(data, 1)[:, :, 0].tolist() == [[255, 0], [128, 127]]


def test_tiffs_that_no_decoder_has_right_are_refused() -> None:
    planes = tiff(np.zeros((3, 8, 9), np.uint16), photometric="rgb", planarconfig="separate")
    with pytest.raises(Unreadable, match="planes of 16 bits"):
        decode_image(Image.open(io.BytesIO(planes)), 3)
    inks = tiff(np.zeros((4, 8, 9), np.uint16), photometric="separated", planarconfig="separate")
    for channels in (3, 4):
        with pytest.raises(Unreadable, match="a TIFF of uint16 with colours SEPARATED"):
            decode_image(inks, channels)


def test_images_in_memory_are_decoded_in_every_form(tmp_path: Path) -> None:
    """The forms are channels last or first, whole numbers or floats from 0 to 1, arrays, tensors and Pillow images."""
    want = smooth(9, 12)
    floats, turned = (want / 255).astype(np.float32), Image.fromarray(want).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be rotated by a quarter turn
    np.save(tmp_path / "first.npy", floats.transpose(2, 0, 1))
    forms: list[Any] = [want, want.transpose(2, 0, 1), want.astype(np.uint16) * 257, floats, floats.astype(np.float64)]
    forms += [torch.from_numpy(want), torch.from_numpy(floats).permute(2, 0, 1), torch.from_numpy(floats.transpose(2, 0, 1))]
    forms += [Image.fromarray(want), turned, tmp_path / "first.npy"]
    for form in forms:
        np.testing.assert_array_equal(decode_image(form, 3), want)
    grey = want[:, :, 0]
    for form in (grey, grey[None], grey[:, :, None], torch.from_numpy(grey[None] / 255), Image.fromarray(grey)):
        np.testing.assert_array_equal(decode_image(form, 1)[:, :, 0], grey)
        np.testing.assert_array_equal(decode_image(form, 3), grey[:, :, None].repeat(3, 2))
    luma = np.asarray(Image.fromarray(want).convert("L"))
    for form in (want, floats.transpose(2, 0, 1), Image.fromarray(want)):
        np.testing.assert_array_equal(decode_image(form, 1)[:, :, 0], luma)
    assert decode_image(torch.ones(3, 2, 2, dtype=torch.bfloat16), 3).tolist() == [[[255] * 3] * 2] * 2
    square = GENERATOR.integers(0, 256, (3, 3, 3), dtype=np.uint8)  # the channel axis is ambiguous: the last one is taken
    np.testing.assert_array_equal(decode_image(square, 3), square)


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    photograph = encoded(Image.fromarray(GENERATOR.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    npy, pickled = io.BytesIO(), io.BytesIO()
    np.save(npy, np.full((4, 4, 3), 1.5, np.float32))
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    cases = {
        b"": "the file is empty",
        b"<html>not found</html>": "not an image of a known format",
        photograph[: len(photograph) // 2]: "is damaged: Premature end of JPEG file",
        npy.getvalue(): "floating point pixels from 1.5 to 1.5; they must go from 0 to 1",
        pickled.getvalue(): "ValueError: Object arrays cannot be loaded",
        png_header(6000, 10000): f"6000 x 10000 pixels, more than the {MAX_PIXELS:,}",
        png_header(20000, 20000): f"400,000,000 pixels, more than the {MAX_PIXELS:,}",
        encoded(Image.new("F", (4, 4), -1), "TIFF"): "floating point pixels from -1 to -1",
    }
    arrays = [
        (np.full((4, 4, 3), np.nan), "floating point pixels from nan to nan"),
        (np.zeros((4, 4, 3), np.int64), "holds int64; uint8, uint16 or floating point values"),
        (np.zeros((2, 4, 4, 3), np.uint8), "has shape (2, 4, 4, 3)"),
        (np.zeros((2, 4, 4), np.uint8), "has 2 channels"),
    ]
    for data, reason in [*cases.items(), *arrays]:
        with pytest.raises(Unreadable) as caught:
            decode_image(data, 3)
        assert str(caught.value).startswith(reason)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)
    with pytest.raises(Unreadable, match="there is no such file"):
        decode_image(tmp_path / "gone.jpg", 3)


def test_a_damaged_jpeg_that_can_be_read_is_read() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG", quality=95)
    noisy = data[:-2] + b"\0\0\0" + data[-2:]  # bytes before the end marker: libjpeg warns and decodes
    assert decode_image(noisy, 3).shape == (40, 60, 3)
