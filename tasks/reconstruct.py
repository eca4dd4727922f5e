"""Draw the predictions of a model for hidden tokens in a PNG grid, and measure their PSNR.

For clips the grid shows frames over time, and the clips are also written as an animated WebP and as an MP4.

mmm reconstruct runs/pretrain-1
mmm reconstruct runs/pretrain-1 --source my_photographs --ratio 0.9 --samples 4
mmm reconstruct runs/pretrain-1 --hide painted.png
mmm reconstruct mae_visualize_vit_base.pth --source /data/imagenet --norm_pix false
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmm.data.decode.image import decode_image
from mmm.data.errors import Unreadable
from mmm.evaluate.loaded_model import LoadedModelConfig, load_model, open_shown
from mmm.evaluate.reconstruction.gallery import GalleryConfig, format_gallery, make_gallery
from mmm.evaluate.reconstruction.reconstruct import remasked

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(GalleryConfig, LoadedModelConfig):
    """Draw and measure reconstructions."""

    batch_size: int = 64
    """Samples that the model processes at once."""

    ratio: float | None = None
    """Fraction of tokens to hide. None: as in training."""

    hide: str | None = None
    """Image file of any size whose bright pixels are hidden. None: random masks."""

    norm_pix: bool | None = None
    """State that published weights predict standardised patches (true) or not (false); their file does not contain it."""

    out: str | None = None
    """PNG file to write; for clips also .webp and .mp4 files. None: a file in `pictures` of the run folder, or in the working
    directory for weights without a run. Its name contains changed options."""


def run(config: Config) -> dict[str, Any]:
    """Draws the grid, prints the results and records them."""
    loaded = load_model(config, norm_pix=config.norm_pix)
    model = loaded.model
    model.masker = remasked(model.masker, config.ratio, None if config.hide is None else read_painted(config.hide))
    asked = {"ratio": config.ratio, "hide": None if config.hide is None else Path(config.hide).stem}
    changes = config.changes | {name: value for name, value in asked.items() if value is not None}
    shown = open_shown(config, loaded.data)
    logger.info("%s on %s (%s)", loaded.name, loaded.data.source, shown.where)
    found = make_gallery(
        model,
        shown,
        config,
        path=Path(config.out) if config.out is not None else loaded.output("reconstruction", changes),
        title=f"{loaded.name}: hidden tokens, predicted",
        dtype=config.dtype,
        batch_size=config.batch_size,
    )
    print(format_gallery(found))
    loaded.record("reconstruction", found | {"figures": {"psnr": found["psnr"]["model"]}}, changes)
    return found


def read_painted(path: str) -> Tensor:
    """Reads an image and marks its bright pixels, bool (H, W).

    Raises:
        ValueError: the image cannot be read.
    """
    try:
        pixels = torch.from_numpy(decode_image(path, channels=1))  # (H, W, 1)
    except (Unreadable, OSError) as error:
        raise ValueError(f"--hide {path}: {error}") from error
    return pixels[..., 0] > 127
