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

from benchmarks.reliability.corpus import Action, Workspace, hostile, shell_pickle
from benchmarks.reliability.corpus_weights import object_array
from mmm.data import ClipsConfig, DataConfig, ImagesConfig, open_data


def read_all(config: DataConfig) -> Action:
    """Returns a call that opens a source and reads all readable samples."""

    def action() -> list[str]:
        samples = open_data(config, "train")
        _, failed = samples.eval_views(torch.arange(len(samples)))
        names = [samples.name(index) for index in range(len(samples))]
        return [f"{names[row]}: {reason}" for row, reason in failed.items()]

    return action


def _images(source: Path | str, **options: Any) -> Action:
    return read_all(ImagesConfig(source=str(source), holdout=0.0, image_size=8, workers=0, **options))


def _clips(source: Path | str) -> Action:
    return read_all(ClipsConfig(source=str(source), holdout=0.0, image_size=8, frames=2, stride=1, workers=0))


@hostile
def image_that_is_an_array_of_objects(workspace: Workspace) -> Action:
    """Contains an array of objects, which numpy stores as a pickle."""
    workspace.write_image("good.png")
    workspace.write("bad.npy", object_array(workspace))
    workspace.write("bad.png", object_array(workspace))
    return _images(workspace.root)


@hostile
def image_that_is_a_pickle(workspace: Workspace) -> Action:
    """Contains a pickle with the file name of an image."""
    workspace.write_image("good.png")
    workspace.write("bad.jpg", shell_pickle(workspace))
    return _images(workspace.root)


@hostile
def image_that_is_postscript(workspace: Workspace) -> Action:
    """Contains EPS, for which Pillow starts Ghostscript."""
    workspace.write_image("good.png")
    text = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%{workspace.command}) (w) file\nshowpage\n%%EOF\n"
    )
    workspace.write("bad.jpg", text)
    return _images(workspace.root)


@hostile
def image_that_includes_another(workspace: Workspace) -> Action:
    """Contains SVG with an external entity and a reference to an image in another folder."""
    workspace.write_image("good.png")
    canary = workspace.canaries / "image.png"
    head = f'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file://{workspace.canaries}/text.txt">]>'
    workspace.write("bad.png", f'{head}<svg><image href="file://{canary}"/>&x;</svg>')
    return _images(workspace.root)


@hostile
def tiff_with_external_planes(workspace: Workspace) -> Action:
    """Contains a microscope's TIFF that names the files of its planes."""
    workspace.write_image("good.png")
    import tifffile

    name = f"../{workspace.canaries.name}/image.png"
    data = f'<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>'
    pixels = f'<Pixels ID="P" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="8" SizeC="5" SizeZ="1" SizeT="1">{data}</Pixels>'
    text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:2"><Image ID="I">{pixels}</Image></OME>'
    tifffile.imwrite(workspace.root / "bad.ome.tif", np.zeros((8, 8), np.uint8), description=text, metadata=None)
    return _images(workspace.root, channels=5, mean=(0.5,) * 5, std=(0.2,) * 5)


@hostile
def image_that_is_a_decompression_bomb(workspace: Workspace) -> Action:
    """Contains a decompression bomb: an image of 100,000 x 100,000 pixels in few bytes."""
    workspace.write_image("good.png")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b""))
    )
    workspace.write("bad.png", b"\x89PNG\r\n\x1a\n" + chunks)
    return _images(workspace.root)


@hostile
def file_names_with_formats_and_commands(workspace: Workspace) -> Action:
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
        workspace.write(f"class/{name}", b"x")
    workspace.write_image("class/good.png")
    return _images(workspace.root)


@hostile
def folder_with_a_loading_script(workspace: Workspace) -> Action:
    """Contains the loading script of a dataset, which older versions of the hub's library executed."""
    workspace.write_image("good.png")
    workspace.write(f"{workspace.root.name}.py", workspace.code)
    workspace.write("hostile_loader.py", workspace.code)
    workspace.write("README.md", "---\nconfigs:\n- config_name: default\n  script: hostile_loader.py\n---\n")
    workspace.write("dataset_infos.json", json.dumps({"default": {"builder_name": "hostile_loader"}}))
    return _images(workspace.root)


@hostile
def source_that_is_a_command(workspace: Workspace) -> Action:
    """Names a command, which WebDataset accepts as a source."""
    return _images(f"pipe:touch {workspace.marker}")


@hostile
def source_that_is_a_file_url(workspace: Workspace) -> Action:
    """Names a file by a URL with a scheme."""
    return _images(f"file://{workspace.canaries}/image.png")


@hostile
def source_that_chains_schemes(workspace: Workspace) -> Action:
    """Names a source with chained schemes, which fsspec accepts."""
    return _images(f"zip://x.parquet::file://{workspace.canaries}/text.txt")


@hostile
def source_pattern_with_a_parent_folder(workspace: Workspace) -> Action:
    """Leaves the folder with a pattern; only parquet files are read."""
    workspace.write_image("good.png")
    return _images(f"{workspace.root}/../{workspace.canaries.name}/*")


@hostile
def list_of_commands_and_urls(workspace: Workspace) -> Action:
    """Lists entries that a video reader could interpret as commands or URLs instead of paths."""
    video = workspace.canaries / "video.mp4"
    lines = (
        "pipe:0",
        "http://127.0.0.1:9/x.mp4",
        f"concat:{video}",
        f"file:{video}",
        f"subfile,,start,0,end,9,,:{video}",
        "$(id).mp4",
    )
    return _clips(
        workspace.write("train.txt", "".join(f'"{line}" 0\n' for line in (*lines, "crypto://x", "/dev/zero", "/dev/stdin")))
    )


@hostile
def list_of_a_pipe_and_a_folder(workspace: Workspace) -> Action:
    """Lists a named pipe, on which a reader would wait, and a folder."""
    os.mkfifo(workspace.root / "pipe.mp4")
    return _clips(workspace.write("train.csv", "pipe.mp4,0\n.,0\n../,1\n\x00.mp4,1\n"))


@hostile
def video_that_is_a_playlist(workspace: Workspace) -> Action:
    """Contains text files with names of videos, which refer to other files and URLs."""
    video = workspace.canaries / "video.mp4"
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    workspace.write("class/one.mp4", f"{head}{video}\n#EXT-X-ENDLIST\n")
    workspace.write("class/two.mp4", f"{head}http://127.0.0.1:9/x.ts\n")
    workspace.write("class/three.mp4", f"ffconcat version 1.0\nfile '{video}'\n")
    workspace.write("class/four.mp4", f'<?xml version="1.0"?><MPD><BaseURL>file://{video}</BaseURL></MPD>')
    workspace.write("class/five.mp4", "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n")
    return _clips(workspace.root)


@hostile
def video_with_external_data(workspace: Workspace) -> Action:
    """Contains a movie atom with a reference to another file."""
    alias = b"\0" * 150 + str(workspace.canaries / "video.mp4").encode()
    reference = struct.pack(">I", 12 + len(alias)) + b"alis" + bytes(4) + alias
    workspace.write("class/one.mov", struct.pack(">I", 16 + len(reference)) + b"dref" + bytes(4) + struct.pack(">I", 1) + reference)
    return _clips(workspace.root)


def _parquet(workspace: Workspace, column: Any, metadata: dict[bytes, bytes] | None = None) -> Action:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = arrow.table({"image": column})
    field = table.schema.field("image").with_metadata(metadata) if metadata else table.schema.field("image")
    path = workspace.root / "train.parquet"
    parquet.write_table(table.cast(arrow.schema([field])), path)
    return _images(path, image_column="image")


@hostile
def table_that_names_files_outside(workspace: Workspace) -> Action:
    """Names outside files by an absolute and a relative path."""
    workspace.write_image("good.png")
    names = [str(workspace.canaries / "image.png"), f"../{workspace.canaries.name}/image.png", "good.png"]
    return _parquet(workspace, [{"bytes": None, "path": name} for name in names])


@hostile
def table_with_a_type_that_is_a_pickle(workspace: Workspace) -> Action:
    """Contains one of Arrow's Python extension types (CVE-2023-47248)."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": shell_pickle(workspace)}
    return _parquet(workspace, [b"x", b"y"], metadata)


@hostile
def table_that_is_a_pickle(workspace: Workspace) -> Action:
    """Contains a pickle with the file name of a table."""
    return _images(workspace.write("train.parquet", shell_pickle(workspace)))


def _tar(workspace: Workspace, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return workspace.write("train.tar", buffer.getvalue())


@hostile
def tar_with_paths_outside(workspace: Workspace) -> Action:
    """Contains members with paths outside the folder; members are never extracted."""
    good = workspace.write_image("good.png").read_bytes()
    names = ("../../escaped.png", f"{workspace.canaries}/image2.png", "./../escaped.png", "good.png")
    return _images(_tar(workspace, [(tarfile.TarInfo(name), good) for name in names]))


@hostile
def tar_of_links(workspace: Workspace) -> Action:
    """Contains symbolic and hard links to an outside file, and a named pipe."""
    good = workspace.write_image("good.png").read_bytes()
    members = [(tarfile.TarInfo("good.png"), good)]
    for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("pipe.png", tarfile.FIFOTYPE)):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, str(workspace.canaries / "image.png")
        members.append((member, b""))
    return _images(_tar(workspace, members))


@hostile
def tar_of_pickles(workspace: Workspace) -> Action:
    """Contains members with file names that WebDataset unpickles."""
    good = workspace.write_image("good.png").read_bytes()
    bad = [f"good.{ending}" for ending in ("pyd", "pickle", "pkl", "pth", "npz", "cls", "json", "txt")]
    return _images(
        _tar(workspace, [(tarfile.TarInfo("good.png"), good), *((tarfile.TarInfo(name), shell_pickle(workspace)) for name in bad)])
    )
