"""Measure the attention of a decoder to visible and hidden tokens, and the encoder blocks that each of its blocks reads.

    mmm attention runs/pretrain-1
    mmm attention runs/pretrain-1/checkpoints/step_00000500 --samples 1000
    mmm attention crossmae_vit_base.pth --source /data/imagenet --out views

Writes attention_STEP.png and attention_STEP.json, and fusion_STEP.png if the decoder reads several encoder blocks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.attention.plot import AttentionConfig, draw_attention, draw_fusion, format_attention, measure_attention
from mmm.evaluate.loaded_model import LoadedModel, LoadedModelConfig, describe_data, load_model, open_test
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(AttentionConfig, LoadedModelConfig):
    """Measure the attention of a decoder."""

    batch_size: int = 32
    """Samples that the model processes at once."""

    out: str | None = None
    """Folder for pictures and numbers. None: `pictures` in the run folder, or the working directory for weights without a run."""


def run(config: Config) -> dict[str, Any]:
    """Measures the attention, draws it, prints the means and writes the numbers."""
    loaded = load_model(config)
    test = open_test(loaded.data, config.test_split)
    logger.info("%s on %s (%s)", loaded.name, loaded.data.source, test.where)
    model = loaded.model
    found = measure_attention(model, test, config, dtype=config.dtype, batch_size=config.batch_size)
    _draw(found, config, loaded, f"{loaded.name} on {describe_data(test)}")
    print("\n".join([format_attention(found), *(f"picture: {picture}" for picture in found["pictures"])]))
    loaded.record("attention", found, config.changes)
    return found


def _draw(found: dict[str, Any], config: Config, loaded: LoadedModel, title: str) -> None:
    """Draws the pictures, adds their paths to the results, and writes the numbers."""

    def path(kind: str, suffix: str = ".png") -> Path:
        if config.out is None:
            return loaded.output(kind, config.changes, suffix)
        return Path(config.out) / loaded.output(kind, {}, suffix).name

    pictures = [draw_attention(found, path("attention"), f"{title}: attention of the decoder")]
    if found["fusion"] is not None:
        pictures.append(draw_fusion(found["fusion"], path("fusion"), f"{title}: encoder maps that each decoder block reads"))
    found["pictures"] = [str(picture) for picture in pictures]
    write_json(path("attention", ".json"), found)
