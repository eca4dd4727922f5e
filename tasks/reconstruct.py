"""Draw what a model makes of the tokens that it does not see, and measure it: a PNG grid and the PSNR of hidden tokens.

Of clips the grid shows frames over time, and beside it lie the same clips as an animated WebP and as an MP4.

mmm reconstruct runs/pretrain-1
mmm reconstruct runs/pretrain-1 --source my_photographs --ratio 0.9 --samples 4
mmm reconstruct mae_visualize_vit_base.pth --source /data/imagenet --norm_pix false
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.loaded_model import LoadedModelConfig, load_model, open_shown
from mmm.evaluate.reconstruction.gallery import GalleryConfig, format_gallery, make_gallery
from mmm.model import MaskedModel

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(GalleryConfig, LoadedModelConfig):
    """Show reconstructions."""

    batch_size: int = 64
    """Images that the model gets at once."""

    ratio: float | None = None
    """Fraction of tokens to hide; None: as in training."""

    norm_pix: bool | None = None
    """For published weights, whether they predict standardised patches, which their file does not say."""

    out: str | None = None
    """PNG file to draw, of clips with .webp and .mp4 beside it; None: in the run's pictures, named by what of the data or
    the ratio is not the run's own; in this folder where the model is no run's."""


def run(config: Config) -> dict[str, Any]:
    """Draws the grid, prints the figures and records them."""
    loaded = load_model(config, norm_pix=config.norm_pix)
    model = _remasked(loaded.trained or loaded.untrained, config.ratio)
    shown, changes = open_shown(config, loaded.data), config.changes | ({} if config.ratio is None else {"ratio": config.ratio})
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


def _remasked(model: MaskedModel, ratio: float | None) -> MaskedModel:
    """The model with another share of its tokens hidden, and all of these predicted."""
    if ratio is not None:
        model.masker = model.masker.with_ratio(ratio)
    return model
