"""The backends that come with mmm; each imports its library when it first opens a file."""

from __future__ import annotations

import importlib.util

from mmm.data.decode.video.reader import Source, Video, backend

LIBRARIES = {
    "av": "pip install 'masked-modelling[video]'",
    "decord": "pip install 'masked-modelling[video]', where decord has a wheel (Linux on x86_64), or take data.backend av",
    "torchcodec": "pip install torchcodec, and FFmpeg's libraries, or take data.backend av",
}


@backend("av")
def _av(source: Source) -> Video:
    """Opens a video with PyAV, the default: exact on every kind of file that was tried, with wheels for all platforms."""
    from mmm.data.decode.video.pyav import AvVideo

    return AvVideo(source)


@backend("decord")
def _decord(source: Source) -> Video:
    """Opens a video with decord, for comparison. PyAV reads the files for which decord returns wrong frames."""
    from mmm.data.decode.video.decord import open_decord

    return open_decord(source)


@backend("torchcodec")
def _torchcodec(source: Source) -> Video:
    """Opens a video with torchcodec, which needs FFmpeg's libraries. PyAV reads the files for which it returns wrong frames."""
    from mmm.data.decode.video.torchcodec import open_torchcodec

    return open_torchcodec(source)


@backend("frames")
def _frames(source: Source) -> Video:
    """Opens a folder of images, one per frame; the backend of every source that is a folder."""
    from mmm.data.decode.video.frame_folder import FrameFolder

    return FrameFolder(source)


def require(name: str) -> None:
    """Raises ValueError if the library of a backend is not installed."""
    if name in LIBRARIES and importlib.util.find_spec(name) is None:
        raise ValueError(f"data.backend {name}: the library {name} is not installed; {LIBRARIES[name]}")
