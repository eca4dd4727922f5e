"""Models from our own run folders: the parts that config.yaml names, with the weights of a checkpoint.

A folder that `mmm export` wrote is one too, whose weights lie beside its config.yaml; they may be the encoder's alone. Of a
fine-tuned classifier the encoder is read.

What reading needs of config.yaml is the five parts and the shape of the data; the rest belongs to the task that wrote it, which
need not be here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mmm.config.cli import from_dict
from mmm.config.reading import read_yaml
from mmm.core.registry import REGISTRIES
from mmm.core.types import Input, Reads
from mmm.data import DataConfig
from mmm.encoders import encoders
from mmm.maskers import maskers
from mmm.model import MaskedModel, ModelConfig
from mmm.targets import targets
from mmm.tokenizers import tokenizers
from mmm.train.checkpoint.shards import stem_of
from mmm.train.checkpoint.writer import damage, newest, read
from mmm.weights.matching import refuse_mismatch, shapes_of
from mmm.weights.safe_load import read_weights

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, AVERAGE = "config.yaml", "model.safetensors", "ema.safetensors"
SHAPE = ("image_size", "channels", "mean", "std")
PARTS = ("tokenizer", "masker", "encoder", "decoder", "target")
CLIP = "frames"  # what the shape of a clip has beside
PLAIN = {"masker": {"name": "random"}, "decoder": {"name": "linear"}, "target": {"name": "pixels"}}  # where a run has none


def run_of(path: Path) -> Path | None:
    """The run folder that a path means: the folder itself, its `checkpoints`, one of these, or a file of weights in one."""
    place = _place(path)
    depth = 3 if f"{stem_of(place)}.safetensors" in (WEIGHTS, AVERAGE) else 0 if path.is_file() else 2
    run = next((folder for folder in (place, *place.parents[:depth]) if (folder / CONFIG).is_file()), None)
    if run is None or place.relative_to(run).parts[:1] not in ((), ("checkpoints",), (WEIGHTS,)):
        return None
    return run


def load_run(path: Path, run: Path) -> MaskedModel:
    """The model of a run, with the weights that `path` means: the newest whole checkpoint's, or those that it names.

    Raises:
        ValueError: where there is no whole checkpoint, config.yaml cannot be read, or the weights are not of its parts.
    """
    file = _weights(path, run)
    parts, data = read_config(run / CONFIG)
    weights = read_weights(file) if file.is_file() else dict(read(file.parent)[0][file.stem])  # sharded over several files
    if any(name.startswith("head.") for name in weights):
        return _load_encoder(parts, data, weights, f"{file}, beside {run / CONFIG},")
    model = MaskedModel.build(parts, data, seed=0)  # any seed: all weights are overwritten
    if file.parent == run and not any(name.startswith("decoder.") for name in weights):
        model.decoder = None  # exported without it
    refuse_mismatch(weights, shapes_of(model.state_dict()), f"{file}, beside {run / CONFIG},")
    model.load_state_dict(weights)
    average = file.with_name(AVERAGE)
    other = f"; their moving average is in {average}" if list(file.parent.glob("ema*.safetensors")) and file != average else ""
    kind = "the moving average of the weights" if file == average else "the weights as they were trained"
    logger.info("%s: %s, all %d used%s", file, kind, len(weights), other)
    return model


def _is_classifier(tree: Any) -> bool:
    """Whether a config is of a run that trained an encoder and a head, and no decoder."""
    return isinstance(tree, Mapping) and {"encoder", "head"} <= tree.keys() and "decoder" not in tree


def _load_encoder(parts: ModelConfig, data: Input, weights: dict[str, Tensor], what: str) -> MaskedModel:
    """The encoder of a classifier, without its head: a model that has features and no loss."""
    own = {name: value for name, value in weights.items() if name.startswith("encoder.")}
    tokenizer = tokenizers.build(parts.tokenizer, channels=data.channels)
    encoder = encoders.build(
        parts.encoder,
        token=tokenizer.size,
        channels=data.channels,
        grid=tokenizer.grid_of(data.size),
        reads=Reads(last="encoder.norm.weight" in own),
    )
    target = targets.build(parts.target, token=tokenizer.size, data=data, encoder=encoder)
    model = MaskedModel(tokenizer, maskers.build(parts.masker), encoder, None, target)
    refuse_mismatch(own, shapes_of(model.state_dict()), what)
    model.load_state_dict(own)
    left = ", ".join(sorted(weights.keys() - own.keys()))
    logger.info("%s the encoder of a fine-tuned classifier, all its %d weights used; left out: %s", what, len(own), left)
    return model


def read_config(path: Path) -> tuple[ModelConfig, Input]:
    """The parts, and what the data dictates to them, of a run's config.yaml; what a classifier has none of is the plainest.

    Raises:
        ValueError: naming the file and the field.
    """
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
        parts = PLAIN | _only(tree, tuple(part for part in PARTS if part not in PLAIN or not _is_classifier(tree)), "")
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
            raise ValueError(
                f"{kind}.name {part.get('name')!r} is none of {known}; one of your own: --use FILE (in Python, import it)"
            )


def _place(path: Path) -> Path:
    """Where it is; a link to a checkpoint means what it points to, a file stays among its neighbours."""
    return path.absolute() if path.is_file() else path.resolve()


def _weights(path: Path, run: Path) -> Path:
    """The file of weights that a path into a run means; of a checkpoint whole, as its manifest says."""
    place = _place(path)
    if place in (run, run / WEIGHTS) and (run / WEIGHTS).is_file():
        return run / WEIGHTS
    if place in (run, run / "checkpoints"):
        found = newest(run / "checkpoints")
        if found is None:
            raise ValueError(f"{run} holds no checkpoint yet")
        return found / WEIGHTS
    checkpoint = place.parent if place.is_file() else place
    file = checkpoint / (f"{stem_of(place)}.safetensors" if place.is_file() else WEIGHTS)
    reason = damage(checkpoint)
    if reason is not None:
        raise ValueError(f"{checkpoint} is damaged: {reason}; give {run} for the newest whole checkpoint")
    return file
