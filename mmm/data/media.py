"""The kinds of data: images, videos, and videos as folders of frames."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".npy"}
    | {".avif", ".jp2", ".j2k", ".jpx"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".3gp"}
    | {".ogv", ".vob", ".mxf"}
)


@dataclass(frozen=True)
class Medium:
    """A kind of data.

    Attributes:
        noun: its name in messages, in the plural.
        suffixes: suffixes of its files.
        feature: its type in a table of `datasets`.
        flag: the flag that names its column in a table.
        is_folder: whether a sample is a folder of such files and not a file.
    """

    noun: str
    suffixes: frozenset[str]
    feature: str
    flag: str
    is_folder: bool = False


IMAGES = Medium("images", IMAGE_SUFFIXES, "Image", "data.image_column")
VIDEOS = Medium("videos", VIDEO_SUFFIXES, "Video", "data.video_column")
FRAMES = Medium("videos", IMAGE_SUFFIXES, "Video", "data.video_column", is_folder=True)
