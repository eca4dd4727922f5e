"""Data for the tests of probes: scanned digits as a tree of files, and the config of a small untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from mmm.config.serialize import save
from mmm.data import ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from tasks import pretrain

TRAIN, TEST = 12, 5  # images per digit


def write_digits(folder: Path) -> Path:
    """Writes real digits of 8 x 8 pixels, scanned by hand (UCI), to folder/{train,test}/DIGIT/N.npy."""
    images, labels = load_digits().images, load_digits().target
    for digit in range(10):
        own = images[labels == digit]
        for split, chosen in (("train", own[:TRAIN]), ("test", own[TRAIN : TRAIN + TEST])):
            (folder / split / str(digit)).mkdir(parents=True)
            for number, image in enumerate(chosen):
                np.save(folder / split / str(digit) / f"{number}.npy", (image * 15.9).astype(np.uint8)[..., None])
    return folder


def digits_data(folder: Path) -> ImagesConfig:
    """Returns the config that reads these files, with a crop and no flip."""
    pixels: dict[str, Any] = {"image_size": 8, "channels": 1, "mean": (0.3,), "std": (0.4,)}
    return ImagesConfig(source=str(folder), crop_scale=(0.8, 1.0), flip=0.0, workers=0, **pixels)


def write_config(folder: Path, data: ImagesConfig) -> str:
    """Writes a config.yaml, which loads as its model with random weights."""
    folder.mkdir(exist_ok=True)
    config = pretrain.Config(
        data=data,
        tokenizer=Patches.Config(size=4),
        encoder=VisionTransformer.Config(width=24, depth=1, heads=2),
        decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
        train=TrainConfig(steps=2, batch_size=8, learning_rate=1e-3),
    )
    save(config, folder / "config.yaml")
    return str(folder / "config.yaml")
