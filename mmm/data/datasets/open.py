"""Opens images or videos, depending on the config."""

from __future__ import annotations

from mmm.data.clip_config import ClipsConfig
from mmm.data.config import DataConfig, ImagesConfig
from mmm.data.datasets.clips import Clips, open_clips
from mmm.data.datasets.images import Images, open_images


def open_data(config: DataConfig, split: str) -> Images | Clips:
    """Opens one split; see `open_images` and `open_clips`."""
    if isinstance(config, ClipsConfig):
        return open_clips(config, split)
    assert isinstance(config, ImagesConfig)
    return open_images(config, split)
