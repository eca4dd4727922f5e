"""Models from folders that transformers saved: ViTMAE and VideoMAE, with or without a decoder or a classifier.

config.json says what no weight does. Dropout, which published models do not use, is not read from it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmm.model import MaskedModel
from mmm.weights.formats.official import is_fixed, refuse_odd
from mmm.weights.formats.transformers_config import Choices, read_choices
from mmm.weights.formats.transformers_names import BASE, CLASSIFIER, Kind, hub_name, their_names
from mmm.weights.matching import listed, refuse_mismatch
from mmm.weights.safe_load import read_weights

logger = logging.getLogger(__name__)

CONFIG, FILES = "config.json", ("model.safetensors", "pytorch_model.bin")


def is_transformers(path: Path) -> bool:
    """Whether a path means a folder (or the file of weights in one) whose config.json is ViTMAE's or VideoMAE's."""
    folder = path if path.is_dir() else path.parent
    if (path.is_file() and path.name not in FILES) or not (folder / CONFIG).is_file():
        return False
    try:
        return _config(folder).get("model_type") in BASE
    except ValueError:
        return False


def load_transformers(path: Path) -> MaskedModel:
    """The model in such a folder.

    Raises:
        ValueError: where there are no weights in one file, config.json asks for what is not known here, or naming the weights (as
            the hub's files name them) that are missing, extra or misshapen.
    """
    folder = path if path.is_dir() else path.parent
    file = next((folder / name for name in FILES if (folder / name).is_file()), None) if path.is_dir() else path
    if file is None:
        raise ValueError(f"{folder} holds neither {' nor '.join(FILES)}; save the model in one file")
    config = _config(folder)
    kind: Kind = config["model_type"]
    found = _hub_names(read_weights(file), kind, file)
    alone = not any(name.startswith(BASE[kind]) for name in found)
    decoded = any(name.startswith("decoder.") for name in found)
    choices = read_choices(config, decoded, str(folder / CONFIG))
    left = [] if decoded else [name for name in found if name.startswith(CLASSIFIER)]
    kept = {name: value for name, value in found.items() if name not in left}
    model = _filled(kept, choices, kind, alone, str(file))
    if left:
        unnormed = "" if choices.normed else "; its encoder ends without a norm"
        logger.warning("%s is a classifier; left out: %s%s", file, listed(left), unnormed)
    logger.info("%s: transformers' %s, all %d weights used", file, kind, len(kept))
    return model


def _filled(kept: dict[str, Tensor], choices: Choices, kind: Kind, alone: bool, source: str) -> MaskedModel:
    """The model of these choices with these weights, all accounted for."""
    table = kept.get("embeddings.position_embeddings" if alone else f"{BASE[kind]}embeddings.position_embeddings")
    learned = table is not None and table.dim() == 3 and not is_fixed(table, choices.grid)
    model = choices.build(learned)
    names = {ours: their_names(ours, kind, alone) or () for ours in model.state_dict()}
    wanted = {}
    for ours, value in model.state_dict().items():
        for part in names[ours]:
            wanted[part] = (len(value) // len(names[ours]), *value.shape[1:])
    refuse_mismatch(kept, wanted, source)
    refuse_odd(kept, source)
    weights = {ours: torch.cat([kept[part] for part in parts]) for ours, parts in names.items() if parts}
    model.load_state_dict(model.state_dict() | weights)
    return model


def _hub_names(weights: dict[str, Tensor], kind: Kind, file: Path) -> dict[str, Tensor]:
    found = {hub_name(name, kind): value for name, value in weights.items()}
    if len(found) < len(weights):
        raise ValueError(f"{file} holds the same weights under two names; save it again")
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds no names and values")
    return config
