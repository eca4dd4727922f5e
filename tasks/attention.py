"""Look at a decoder: how much of its attention goes to visible and to hidden tokens, and what each block reads of the encoder.

    mmm attention runs/pretrain-1
    mmm attention runs/pretrain-1/checkpoints/step_00000500 --samples 1000
    mmm attention crossmae_vit_base.pth --source /data/imagenet --out views

Writes pictures and numbers, attention_STEP.png and .json, and where blocks are mixed fusion_STEP.png.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.attention.plot import AttentionConfig, describe_attention, draw_attention, draw_fusion, measure_attention
from mmm.evaluate.loaded_model import Subject, SubjectConfig, describe_data, open_subject, open_test

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(AttentionConfig, SubjectConfig):
    """Look at a decoder."""

    batch_size: int = 32
    """Images that the model gets at once."""

    out: str | None = None
    """Folder for pictures and numbers; None: the run's pictures, or this folder where the model is no run's."""


def run(config: Config) -> dict[str, Any]:
    """Measures, draws, prints the means and writes everything."""
    subject = open_subject(config)
    test = open_test(subject.data, config.test_split)
    logger.info("%s on %s (%s)", subject.name, subject.data.source, test.where)
    model = subject.trained or subject.untrained
    found = measure_attention(model, test, config, dtype=config.dtype, batch_size=config.batch_size)
    _draw(found, config, subject, f"{subject.name} on {describe_data(test)}")
    print("\n".join([describe_attention(found), *(f"picture: {picture}" for picture in found["pictures"])]))
    subject.record("attention", found, config.changes)
    return found


def _draw(found: dict[str, Any], config: Config, subject: Subject, title: str) -> None:
    """Draws the pictures, names them in what was found, and writes the numbers beside them."""

    def path(kind: str, suffix: str = ".png") -> Path:
        if config.out is None:
            return subject.output(kind, config.changes, suffix)
        return Path(config.out) / subject.output(kind, {}, suffix).name

    pictures = [draw_attention(found, path("attention"), f"{title}: attention of the decoder")]
    if found["fusion"] is not None:
        pictures.append(draw_fusion(found["fusion"], path("fusion"), f"{title}: encoder maps that each decoder block reads"))
    found["pictures"] = [str(picture) for picture in pictures]
    path("attention", ".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
