"""Export of models: weights in one of the formats, the preparation of pixels, and a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmm.classifier import Classifier
from mmm.core.types import Input
from mmm.data.transforms.crop import margin_of
from mmm.dense.detector import Detector
from mmm.dense.segmenter import Segmenter
from mmm.model import MaskedModel
from mmm.system.files import write_json
from mmm.weights.formats import Model, find_format
from mmm.weights.formats.base import PROCESSOR
from mmm.weights.model_card import CARD, LOAD, Origin, model_card


def export(model: Model, to: str, out: Path, origin: Origin) -> list[str]:
    """Writes a folder with a model in a format, preprocessor_config.json and a card. After a failure, no files remain.

    Args:
        to: the name of the format.
        out: the folder, which must be new or empty.
        origin: source of the model, for the card.

    Returns:
        Lines of Python that load the model.

    Raises:
        ValueError: the folder is not empty, or the format does not support the model.
    """
    refuse_full(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    try:
        lines = write_files(model, to, aside)
        public = [line.replace(str(aside), out.name) for line in lines]  # a card contains no path of this machine
        model_card(model, origin, [*public, *find_format(to).usage(model)]).save(aside / CARD)
        if out.exists():
            out.rmdir()  # succeeds only if it is empty
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [line.replace(str(aside), str(out)) for line in lines]


def save(model: Model, folder: Path, *, license: str, results: Mapping[str, float]) -> None:
    """Writes a model to a folder in the format of mmm; see `save_pretrained`. The folder may exist."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(model, "folder", folder)
    if not (folder / CARD).exists():
        lines = [*LOAD, *find_format("folder").usage(model)]
        model_card(model, Origin(license=license, results=results), lines).save(folder / CARD)


def write_files(model: Model, to: str, folder: Path) -> list[str]:
    """Writes a model's weights and configs into an existing folder, and returns the lines of Python that load it.

    Raises:
        ValueError: the format does not support the model.
    """
    if not find_format(to).dense and not isinstance(model, (MaskedModel, Classifier)):
        raise ValueError(f"--to {to} does not support a {type(model).__name__.lower()}; use --to folder")
    lines = find_format(to).write(model, folder)
    if model.data is not None:
        write_json(folder / PROCESSOR, processor_config(model, model.data))
    return lines


def refuse_full(folder: Path) -> None:
    """Refuses a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder} exists already; give another, or delete it")


def processor_config(model: Model, data: Input) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json, with which transformers prepares samples as in evaluation.

    Samples are resized to cover the crop (images with a margin), cropped at the centre, scaled to [0, 1] and normalised. For a
    detector, the whole image is fitted into the top left of the canvas; transformers rounds its size down, and `mmm` to the
    nearest. For a segmenter, images keep their size, because `Segmenter.segment` resizes them and scores them in windows.
    """
    *frames, height, width = data.size
    pixels = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }
    if isinstance(model, Segmenter):
        return {"image_processor_type": "BitImageProcessor", "do_resize": False, "do_center_crop": False} | pixels
    if isinstance(model, Detector):
        size = {"size": {"max_height": height, "max_width": width}, "pad_size": {"height": height, "width": width}}
        return {"image_processor_type": "DetrImageProcessor", "do_resize": True, "do_pad": True, "resample": 3} | size | pixels
    margin = 1.0 if frames else margin_of((height, width))
    kind = {"video_processor_type": "VideoMAEVideoProcessor"} if frames else {}
    shape = {
        "image_processor_type": "VideoMAEImageProcessor" if frames else "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(max(height, width) * margin)},
        "resample": 2 if frames else 3,  # clips are resized bilinear, images bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }
    return kind | shape | pixels
