"""Opens data of any kind: the one place that chooses between images and videos."""

from __future__ import annotations

from mmm.data.config import DataConfig, ImagesConfig
from mmm.data.images import Images, open_images
from mmm.data.video.clips import Clips, open_clips
from mmm.data.video.config import ClipsConfig


def open_data(config: DataConfig, split: str) -> Images | Clips:
    """Opens one part of the data; see `open_images` and `open_clips`."""
    if isinstance(config, ClipsConfig):
        return open_clips(config, split)
    assert isinstance(config, ImagesConfig)
    return open_images(config, split)
