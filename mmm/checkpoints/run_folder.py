"""Models from our own run folders: the parts that config.yaml names, with the weights of a checkpoint.

What reading needs of config.yaml is the five parts and the shape of the data; the rest belongs to the task that wrote it, which
need not be here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mmm.checkpoints.account import refuse_mismatch, shapes_of
from mmm.checkpoints.files import read_weights
from mmm.config import from_dict
from mmm.data import DataConfig
from mmm.interfaces import Input
from mmm.model import MaskedModel, ModelConfig
from mmm.registry import REGISTRIES
from mmm.train.checkpoint import damage, newest

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, AVERAGE = "config.yaml", "model.safetensors", "ema.safetensors"
SHAPE = ("image_size", "channels", "mean", "std")
CLIP = "frames"  # what the shape of a clip has beside


def run_of(path: Path) -> Path | None:
    """The run folder that a path means: the folder itself, its `checkpoints`, one of these, or a file of weights in one."""
    place = _place(path)
    depth = 3 if place.name in (WEIGHTS, AVERAGE) else 0 if path.is_file() else 2
    run = next((folder for folder in (place, *place.parents[:depth]) if (folder / CONFIG).is_file()), None)
    if run is None or place.relative_to(run).parts[:1] not in ((), ("checkpoints",)):
        return None
    return run


def load_run(path: Path, run: Path) -> MaskedModel:
    """The model of a run, with the weights that `path` means: the newest whole checkpoint's, or those that it names.

    Raises:
        ValueError: where there is no whole checkpoint, config.yaml cannot be read, or the weights are not of its parts.
    """
    file = _weights(path, run)
    parts, data = read_config(run / CONFIG)
    model = MaskedModel.build(parts, data, seed=0)  # any seed: all weights are overwritten
    weights = read_weights(file)
    refuse_mismatch(weights, shapes_of(model.state_dict()), f"{file}, beside {run / CONFIG},")
    model.load_state_dict(weights)
    average = file.with_name(AVERAGE)
    other = f"; their moving average is in {average}" if average.is_file() and file != average else ""
    kind = "the moving average of the weights" if file == average else "the weights as they were trained"
    logger.info("%s: %s, all %d used%s", file, kind, len(weights), other)
    return model


def read_config(path: Path) -> tuple[ModelConfig, Input]:
    """The parts, and what the data dictates to them, of a run's config.yaml.

    Raises:
        ValueError: naming the file and the field.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = _only(tree, tuple(field.name for field in fields(ModelConfig)), "")
        _refuse_unknown(parts)
        shape = (*SHAPE, CLIP) if CLIP in (tree.get("data") or ()) else SHAPE
        data = _only(tree.get("data"), shape, "data.")
        return from_dict(ModelConfig, parts), from_dict(DataConfig.variant(set(data)), data, "data.").input()
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _only(tree: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """These values of a tree; all must be there, for a default could be another than the run's."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the config'}: expected names and values, not {tree!r}")
    for name in names:
        if name not in tree:
            raise ValueError(f"{where}{name} is missing")
    return {name: tree[name] for name in names}


def _refuse_unknown(parts: Mapping[str, Any]) -> None:
    for kind, part in parts.items():
        if isinstance(part, Mapping) and part.get("name") not in REGISTRIES[kind].parts:
            known = ", ".join(sorted(REGISTRIES[kind].parts))
            raise ValueError(f"{kind}.name {part.get('name')!r} is none of {known}; a part of your own must be imported first")


def _place(path: Path) -> Path:
    """Where it is; a link to a checkpoint means what it points to, a file stays among its neighbours."""
    return path.absolute() if path.is_file() else path.resolve()


def _weights(path: Path, run: Path) -> Path:
    """The file of weights that a path into a run means; whole, as its manifest says."""
    place = _place(path)
    if place in (run, run / "checkpoints"):
        found = newest(run / "checkpoints")
        if found is None:
            raise ValueError(f"{run} holds no checkpoint yet")
        return found / WEIGHTS
    checkpoint, file = (place.parent, place) if place.is_file() else (place, place / WEIGHTS)
    reason = damage(checkpoint)
    if reason is not None:
        raise ValueError(f"{checkpoint} is damaged: {reason}; give {run} for the newest whole checkpoint")
    return file
