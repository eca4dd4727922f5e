"""A model as a folder to give away: model.safetensors, config.yaml and a card. `mmm.load` takes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from mmm.config.serialize import to_dict
from mmm.core.types import Input
from mmm.model import MaskedModel, ModelConfig
from mmm.weights.formats.run import CLIP, CONFIG, SHAPE, WEIGHTS, load_run

TIMES = ("stride", "fps", "sampling")  # of a run of clips, how far apart their frames were
CARD = "README.md"


def write_folder(model: MaskedModel, parts: ModelConfig, data: Mapping[str, Any], card: str, folder: Path) -> None:
    """Writes the folder, whole or not at all: it is read back first, and must give the same model bit for bit.

    Args:
        model: with or without a decoder.
        parts: its choices. The decoder's stay where the decoder itself is left out, for they say what is built of the encoder.
        data: the data's choices by name, of which size, normalisation and the distance of frames are kept.
        card: the text of README.md.
        folder: to write; new, or empty.

    Raises:
        ValueError: where something is there, or config.yaml cannot say what the model is.
    """
    refuse_full(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    try:
        _write(model, parts, data, card, aside)
        _check(model, aside)
        if folder.exists():
            folder.rmdir()  # empty
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_full(folder: Path) -> None:
    """Refuses a place where something is."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder} exists already; give another, or delete it")


def data_of(model: MaskedModel) -> dict[str, Any]:
    """The data's choices of published weights: the size at which they are at home, and the usual normalisation."""
    encoder: Any = model.encoder
    *frames, height, width = (tokens * token for tokens, token in zip(encoder.home, model.tokenizer.size, strict=True))
    usual = Input(size=(height, width))
    found: dict[str, Any] = {"image_size": [height, width], "channels": model.tokenizer.channels}
    found |= {"mean": list(usual.mean), "std": list(usual.std)}
    return found | ({CLIP: frames[0]} if frames else {})


def _write(model: MaskedModel, parts: ModelConfig, data: Mapping[str, Any], card: str, folder: Path) -> None:
    said = {name: data[name] for name in (*SHAPE, CLIP, *TIMES) if name in data}
    text = yaml.safe_dump({"data": said, **to_dict(parts)}, sort_keys=False, width=120)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CARD).write_text(card, encoding="utf-8")


def _check(model: MaskedModel, folder: Path) -> None:
    """Refuses a folder that gives another model."""
    folder = folder.resolve()  # as `run_of` finds it
    try:
        again = load_run(folder, folder).state_dict()
    except ValueError as error:
        raise ValueError(f"config.yaml cannot say what this model is: {str(error).replace(str(folder), 'the folder')}") from error
    assert all(torch.equal(again[name], value.cpu()) for name, value in model.state_dict().items())
