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
from mmm.evaluate.loaded_model import Subject, SubjectConfig, open_subject, open_test
from mmm.evaluate.run_results import record

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(AttentionConfig, SubjectConfig):
    """Look at a decoder."""

    batch_size: int = 32
    """Images that the model gets at once."""

    out: str | None = None
    """Folder for pictures and numbers; none: the run's pictures, or this folder where the model is no run's."""


def run(config: Config) -> dict[str, Any]:
    """Measures, draws, prints the means and writes everything."""
    subject = open_subject(config)
    test = open_test(subject.data, config.test_split)
    logger.info("%s on %s (%s)", subject.name, subject.data.source, test.where)
    model = subject.trained or subject.untrained
    found = measure_attention(model, test, config, dtype=config.dtype, batch_size=config.batch_size)
    _draw(found, subject, _folder(config, subject))
    print("\n".join([describe_attention(found), *(f"picture: {picture}" for picture in found["pictures"])]))
    if subject.run and subject.trained and subject.step is not None and config.source is None:
        record(subject.run, "attention", subject.step, found)
    return found


def _draw(found: dict[str, Any], subject: Subject, folder: Path) -> None:
    """The pictures, named in what was found, and the numbers beside them."""
    end = "" if subject.step is None else f"_{subject.step:08d}"
    pictures = [draw_attention(found, folder / f"attention{end}.png", f"{subject.name}: where the decoder looks")]
    if found["fusion"] is not None:
        pictures.append(draw_fusion(found["fusion"], folder / f"fusion{end}.png", f"{subject.name}: what each decoder block reads"))
    found["pictures"] = [str(picture) for picture in pictures]
    (folder / f"attention{end}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _folder(config: Config, subject: Subject) -> Path:
    """Of pictures and numbers."""
    if config.out is not None:
        return Path(config.out)
    return Path() if subject.run is None else subject.run / "pictures"
