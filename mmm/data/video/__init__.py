"""Videos: read exactly, cut into clips, listed from folders, lists and tables."""

from mmm.data.video.backends import require
from mmm.data.video.clips import Clips, open_clips
from mmm.data.video.config import ClipsConfig
from mmm.data.video.probe import VideoInfo, probe
from mmm.data.video.reader import BACKENDS, OpenVideo, Video, backend, read_clip

__all__ = [
    "BACKENDS",
    "Clips",
    "ClipsConfig",
    "OpenVideo",
    "Video",
    "VideoInfo",
    "backend",
    "open_clips",
    "probe",
    "read_clip",
    "require",
]
