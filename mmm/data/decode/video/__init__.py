"""Videos: read exactly, by any of several backends."""

from mmm.data.decode.video.backends import require
from mmm.data.decode.video.info import VideoInfo, probe
from mmm.data.decode.video.reader import BACKENDS, FrameRange, OpenVideo, Video, backend, read_clip

__all__ = [
    "BACKENDS",
    "FrameRange",
    "OpenVideo",
    "Video",
    "VideoInfo",
    "backend",
    "probe",
    "read_clip",
    "require",
]
