"""From a batch of uint8 pixels to what the model gets, on the device."""

from __future__ import annotations

from torch import Tensor

from mmm.data.config import DataConfig
from mmm.data.loading.loader import Batch
from mmm.data.transforms.crop import flip, lighting, normalise


def prepare(batch: Batch, config: DataConfig, *, train: bool) -> Tensor:
    """Mirrors and relights training samples, each as its key says, and normalises all. float32 (B, C, ..., h, w)."""
    x = batch.pixels
    if train:
        x = flip(x, batch.keys, config.flip)
        if config.lighting:
            x = lighting(x.float(), batch.keys, config.lighting)
    return normalise(x, config.mean, config.std)
