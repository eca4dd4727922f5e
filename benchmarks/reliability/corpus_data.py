"""Hostile data, which are passed to --data.source, opened, and read completely."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reliability.corpus import Act, Place, hostile, system
from benchmarks.reliability.corpus_weights import object_array
from mmm.data import ClipsConfig, DataConfig, ImagesConfig, open_data


def read_all(config: DataConfig) -> Act:
    """Returns a call that opens a source and reads all readable samples."""

    def act() -> list[str]:
        samples = open_data(config, "train")
        _, failed = samples.eval_views(torch.arange(len(samples)))
        names = [samples.name(index) for index in range(len(samples))]
        return [f"{names[row]}: {reason}" for row, reason in failed.items()]

    return act


def _images(source: Path | str, **choices: Any) -> Act:
    return read_all(ImagesConfig(source=str(source), holdout=0.0, image_size=8, workers=0, **choices))


def _clips(source: Path | str) -> Act:
    return read_all(ClipsConfig(source=str(source), holdout=0.0, image_size=8, frames=2, stride=1, workers=0))


@hostile
def image_that_is_an_array_of_objects(place: Place) -> Act:
    """Contains an array of objects, which numpy stores as a pickle."""
    place.picture("good.png")
    place.put("bad.npy", object_array(place))
    place.put("bad.png", object_array(place))
    return _images(place.root)


@hostile
def image_that_is_a_pickle(place: Place) -> Act:
    """Contains a pickle with the file name of an image."""
    place.picture("good.png")
    place.put("bad.jpg", system(place))
    return _images(place.root)


@hostile
def image_that_is_a_program_for_a_printer(place: Place) -> Act:
    """Contains EPS, for which Pillow starts Ghostscript."""
    place.picture("good.png")
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%{place.command}) (w) file\nshowpage\n%%EOF\n"
    place.put("bad.jpg", text)
    return _images(place.root)


@hostile
def image_that_includes_another(place: Place) -> Act:
    """Contains SVG with an external entity and a reference to an image in another folder."""
    place.picture("good.png")
    bait = place.bait / "picture.png"
    head = f'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file://{place.bait}/text.txt">]>'
    place.put("bad.png", f'{head}<svg><image href="file://{bait}"/>&x;</svg>')
    return _images(place.root)


@hostile
def image_whose_planes_lie_elsewhere(place: Place) -> Act:
    """Contains a microscope's TIFF that names the files of its planes."""
    place.picture("good.png")
    import tifffile

    name = f"../{place.bait.name}/picture.png"
    data = f'<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>'
    pixels = f'<Pixels ID="P" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="8" SizeC="5" SizeZ="1" SizeT="1">{data}</Pixels>'
    text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:2"><Image ID="I">{pixels}</Image></OME>'
    tifffile.imwrite(place.root / "bad.ome.tif", np.zeros((8, 8), np.uint8), description=text, metadata=None)
    return _images(place.root, channels=5, mean=(0.5,) * 5, std=(0.2,) * 5)


@hostile
def image_that_unfolds_without_end(place: Place) -> Act:
    """Contains a decompression bomb: an image of 100,000 x 100,000 pixels in few bytes."""
    place.picture("good.png")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b""))
    )
    place.put("bad.png", b"\x89PNG\r\n\x1a\n" + chunks)
    return _images(place.root)


@hostile
def names_that_are_formats_and_commands(place: Place) -> Act:
    """Contains file names with line breaks, escapes, shell commands and formats; each bad file is still reported in one line."""
    for name in (
        "a\nb.png",
        "$(touch x).png",
        "`x`.png",
        "%s%n.png",
        "{0.__class__}.png",
        "\x1b[2J.png",
        "<script>.png",
        "'; --.png",
    ):
        place.put(f"class/{name}", b"x")
    place.picture("class/good.png")
    return _images(place.root)


@hostile
def folder_with_a_loading_script(place: Place) -> Act:
    """Contains the loading script of a dataset, which older versions of the hub's library executed."""
    place.picture("good.png")
    place.put(f"{place.root.name}.py", place.code)
    place.put("hostile_loader.py", place.code)
    place.put("README.md", "---\nconfigs:\n- config_name: default\n  script: hostile_loader.py\n---\n")
    place.put("dataset_infos.json", json.dumps({"default": {"builder_name": "hostile_loader"}}))
    return _images(place.root)


@hostile
def source_that_is_a_command(place: Place) -> Act:
    """Names a command, which WebDataset accepts as a source."""
    return _images(f"pipe:touch {place.canary}")


@hostile
def source_that_is_an_address_of_a_file(place: Place) -> Act:
    """Names a file by a URL with a scheme."""
    return _images(f"file://{place.bait}/picture.png")


@hostile
def source_that_chains_schemes(place: Place) -> Act:
    """Names a source with chained schemes, which fsspec accepts."""
    return _images(f"zip://x.parquet::file://{place.bait}/text.txt")


@hostile
def source_with_a_pattern_that_climbs(place: Place) -> Act:
    """Leaves the folder with a pattern; only parquet files are read."""
    place.picture("good.png")
    return _images(f"{place.root}/../{place.bait.name}/*")


@hostile
def list_of_commands_and_addresses(place: Place) -> Act:
    """Lists entries that a video reader could interpret as commands or URLs instead of paths."""
    film = place.bait / "film.mp4"
    lines = (
        "pipe:0",
        "http://127.0.0.1:9/x.mp4",
        f"concat:{film}",
        f"file:{film}",
        f"subfile,,start,0,end,9,,:{film}",
        "$(id).mp4",
    )
    return _clips(place.put("train.txt", "".join(f'"{line}" 0\n' for line in (*lines, "crypto://x", "/dev/zero", "/dev/stdin"))))


@hostile
def list_of_a_pipe_and_a_folder(place: Place) -> Act:
    """Lists a named pipe, on which a reader would wait, and a folder."""
    os.mkfifo(place.root / "pipe.mp4")
    return _clips(place.put("train.csv", "pipe.mp4,0\n.,0\n../,1\n\x00.mp4,1\n"))


@hostile
def video_that_is_a_playlist(place: Place) -> Act:
    """Contains text files with names of videos, which refer to other files and URLs."""
    film = place.bait / "film.mp4"
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    place.put("class/one.mp4", f"{head}{film}\n#EXT-X-ENDLIST\n")
    place.put("class/two.mp4", f"{head}http://127.0.0.1:9/x.ts\n")
    place.put("class/three.mp4", f"ffconcat version 1.0\nfile '{film}'\n")
    place.put("class/four.mp4", f'<?xml version="1.0"?><MPD><BaseURL>file://{film}</BaseURL></MPD>')
    place.put("class/five.mp4", "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n")
    return _clips(place.root)


@hostile
def video_whose_data_lie_elsewhere(place: Place) -> Act:
    """Contains a movie atom with a reference to another file."""
    alias = b"\0" * 150 + str(place.bait / "film.mp4").encode()
    reference = struct.pack(">I", 12 + len(alias)) + b"alis" + bytes(4) + alias
    place.put("class/one.mov", struct.pack(">I", 16 + len(reference)) + b"dref" + bytes(4) + struct.pack(">I", 1) + reference)
    return _clips(place.root)


def _parquet(place: Place, column: Any, metadata: dict[bytes, bytes] | None = None) -> Act:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = arrow.table({"image": column})
    field = table.schema.field("image").with_metadata(metadata) if metadata else table.schema.field("image")
    path = place.root / "train.parquet"
    parquet.write_table(table.cast(arrow.schema([field])), path)
    return _images(path, image_column="image")


@hostile
def table_that_names_files_outside(place: Place) -> Act:
    """Names outside files by an absolute and a relative path."""
    place.picture("good.png")
    names = [str(place.bait / "picture.png"), f"../{place.bait.name}/picture.png", "good.png"]
    return _parquet(place, [{"bytes": None, "path": name} for name in names])


@hostile
def table_with_a_type_that_is_a_pickle(place: Place) -> Act:
    """Contains one of Arrow's Python extension types (CVE-2023-47248)."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": system(place)}
    return _parquet(place, [b"x", b"y"], metadata)


@hostile
def table_that_is_a_pickle(place: Place) -> Act:
    """Contains a pickle with the file name of a table."""
    return _images(place.put("train.parquet", system(place)))


def _tar(place: Place, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return place.put("train.tar", whole.getvalue())


@hostile
def tar_that_climbs(place: Place) -> Act:
    """Contains members with paths outside the folder; members are never extracted."""
    good = place.picture("good.png").read_bytes()
    names = ("../../escaped.png", f"{place.bait}/picture2.png", "./../escaped.png", "good.png")
    return _images(_tar(place, [(tarfile.TarInfo(name), good) for name in names]))


@hostile
def tar_of_links(place: Place) -> Act:
    """Contains symbolic and hard links to an outside file, and a named pipe."""
    good = place.picture("good.png").read_bytes()
    members = [(tarfile.TarInfo("good.png"), good)]
    for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("pipe.png", tarfile.FIFOTYPE)):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, str(place.bait / "picture.png")
        members.append((member, b""))
    return _images(_tar(place, members))


@hostile
def tar_of_pickles(place: Place) -> Act:
    """Contains members with file names that WebDataset unpickles."""
    good = place.picture("good.png").read_bytes()
    bad = [f"good.{ending}" for ending in ("pyd", "pickle", "pkl", "pth", "npz", "cls", "json", "txt")]
    return _images(_tar(place, [(tarfile.TarInfo("good.png"), good), *((tarfile.TarInfo(name), system(place)) for name in bad)]))
