"""Folders that mmm writes: runs, with weights in checkpoints, and saved models, with weights beside config.yaml.

Only the parts and the shape of the data are read from config.yaml. The other values belong to the task that wrote it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mmm.classifier import Classifier, HeadConfig
from mmm.config.serialize import from_dict, read_yaml, to_dict
from mmm.core.registry import REGISTRIES, PartConfig
from mmm.core.types import Input, RequiredFeatures
from mmm.data import DataConfig
from mmm.decoders import DecoderConfig, LinearDecoder
from mmm.dense.detector import Detector
from mmm.dense.segmenter import Segmenter
from mmm.encoders import EncoderConfig, encoders
from mmm.maskers import MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel, ModelConfig
from mmm.pools import MeanPool
from mmm.targets import PixelTarget, TargetConfig, targets
from mmm.tokenizers import tokenizers
from mmm.train.checkpoint.reader import BEST, CHECKPOINTS, checkpoint_of, damage, read
from mmm.train.checkpoint.shards import stem_of
from mmm.train.run.folder import RESULT
from mmm.weights.dense_parts import DenseParts, build_stored, dense_tree, is_dense, read_dense
from mmm.weights.formats.base import WEIGHTS, Format, Model, Options, Stored, data_of, public_config, register, shape_of
from mmm.weights.matching import fill
from mmm.weights.safe_load import read_weights

logger = logging.getLogger(__name__)

CONFIG, AVERAGE = "config.yaml", "ema.safetensors"
MASKED, HEADED = ("tokenizer", "masker", "encoder", "decoder", "target"), ("tokenizer", "encoder", "pool", "head")
SHAPE = ("image_size", "channels", "mean", "std")
SAMPLING = ("stride", "fps", "sampling")  # further options, for the choice of the frames of clips, if they are known
HUB_CONFIG = "config.json"  # file by which the hub counts downloads


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a stored model.

    Attributes:
        decoded: whether there is a decoder. A masked model may consist of only its encoder.
        headed: whether the model is a classifier, with pool and head.
        dense: the head of a model with an output for each pixel or object, or None.
    """

    tokenizer: PartConfig
    encoder: EncoderConfig
    masker: MaskerConfig = RandomMasker.Config()
    decoder: DecoderConfig = LinearDecoder.Config()
    target: TargetConfig = PixelTarget.Config()
    pool: PartConfig = MeanPool.Config()
    head: HeadConfig = HeadConfig()
    decoded: bool = False
    headed: bool = False
    dense: DenseParts | None = None

    @property
    def model(self) -> ModelConfig:
        """The config of a masked model with its decoder."""
        return ModelConfig(**{name: getattr(self, name) for name in MASKED})


@register("folder")
class RunFolder(Format):
    """A run folder, a checkpoint in it, or a folder that `save_pretrained` or `mmm export` wrote."""

    title = "a folder of mmm's"
    dense = True

    def detect(self, stored: Stored) -> bool:
        """Returns whether there is a config.yaml of mmm."""
        return run_of(stored.path) is not None

    def read(self, stored: Stored, options: Options) -> Model:
        model, source = _read(stored.path)
        logger.info("%s", source)
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        text = yaml.safe_dump(_tree(model), sort_keys=False, width=120)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        (folder / HUB_CONFIG).write_text(json.dumps({"library_name": "mmm", "architectures": [type(model).__name__]}) + "\n")
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        _check(model, folder)
        return ["import mmm", f"model = mmm.load({str(folder)!r})"]

    def usage(self, model: Model) -> list[str]:
        pixels = f"x: normalised pixels, {shape_of(model)}"
        if isinstance(model, Classifier):
            return [f"logits = model(x)  # {pixels}"]
        if isinstance(model, Detector):
            return [f"objects = model(x)  # boxes, labels from 1, scores and masks of each image; {pixels}"]
        if isinstance(model, Segmenter):
            return [f"labels = model.segment(x).argmax(1)  # {pixels}"]
        loss = ["loss = model(x).loss  # of hidden tokens"] if model.decoder is not None else []
        return [f"features = model.encode(x).tokens  # {pixels}", *loss]


def run_of(path: Path) -> Path | None:
    """Returns the run folder of a path to a run folder, a checkpoint or a file of weights. None: the path is not in a run."""
    place = _place(path)
    depth = 3 if f"{stem_of(place)}.safetensors" in (WEIGHTS, AVERAGE) else 0 if path.is_file() else 2
    run = next((folder for folder in (place, *place.parents[:depth]) if (folder / CONFIG).is_file()), None)
    if run is None or place.relative_to(run).parts[:1] not in ((), (CHECKPOINTS,), (BEST,), (WEIGHTS,)):
        return None
    return run


def is_average(path: Path) -> bool:
    """Returns whether a path in a run folder is that of the moving average of the weights."""
    return path.is_file() and f"{stem_of(path)}.safetensors" == AVERAGE


def read_config(path: Path) -> tuple[ModelConfig, Input]:
    """Returns the parts of a masked model and the size and normalisation of its samples, from a config.yaml.

    Raises:
        ValueError: a value is invalid, which the message names, or the config is that of a classifier.
    """
    parts, data = read_parts(path)
    if not parts.decoded:
        raise ValueError(f"{path} names no decoder: its model is a classifier or only an encoder")
    return parts.model, data


def read_data(path: Path) -> DataConfig:
    """Returns the options of the data from the config.yaml of a run."""
    tree = read_yaml(path.read_text(encoding="utf-8"))["data"]
    return from_dict(DataConfig.variant(set(tree)), tree, "data.")


def read_parts(path: Path) -> tuple[Parts, Input]:
    """Returns the parts of a model and the size and normalisation of its samples, from a config.yaml.

    Raises:
        ValueError: a value is invalid; the message names the file and the field.
    """
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
        dense = read_dense(tree) if is_dense(tree) else None
        headed = dense is None and isinstance(tree, Mapping) and "head" in tree and "decoder" not in tree
        required = ("tokenizer", "encoder") if dense is not None else HEADED if headed else MASKED
        parts = {name: value for name, value in _only(tree, required, "").items() if name != "decoder" or value}
        _refuse_unknown(parts)
        given = tree.get("data")
        data = _only(given, SHAPE, "data.") | {name: given[name] for name in ("frames", *SAMPLING) if name in given}
        unknown: dict[str, Any] = {name: None for name in SAMPLING if name not in data}
        parts |= {"decoded": "decoder" in parts, "headed": headed}
        shape = replace(from_dict(DataConfig.variant(set(data)), data, "data.").input(), **unknown)
        return replace(from_dict(Parts, parts), dense=dense), shape
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> tuple[Model, str]:
    """Returns the model at a path in a run folder, and a line about the source of its weights."""
    run = run_of(path)
    assert run is not None
    file = _weights(path, run)
    parts, data = read_parts(run / CONFIG)
    weights = read_weights(file) if file.is_file() else dict(read(file.parent)[0][file.stem])  # sharded over several files
    model = _build(parts, data, weights, _labels(run))
    fill(model, weights, lambda name: (name,), f"{file}, beside {run / CONFIG},")
    average = file.with_name(AVERAGE)
    other = f"; their moving average is in {average}" if list(file.parent.glob("ema*.safetensors")) and file != average else ""
    kind = "the moving average of the weights" if file == average else "the weights as they were trained"
    if file.parent.parent.name == BEST:
        kind = "the weights with the best score on held-back samples"
    return model, f"{file}: {kind}, all {len(weights)} used{other}"


def _build(parts: Parts, data: Input, weights: Mapping[str, Tensor], labels: tuple[str, ...] | None) -> Model:
    """Returns a model of these parts whose weights will be overwritten. torch's generator does not change."""
    if parts.decoded:
        return MaskedModel.build(parts.model, data, seed=0)
    stored = {name.removeprefix("encoder.") for name in weights if name.startswith("encoder.")}
    with torch.random.fork_rng(devices=[]):
        tokenizer = tokenizers.build(parts.tokenizer, channels=data.channels)
        for last in (True, False):  # the names of the weights show whether the encoder ends with a norm
            encoder = encoders.build(
                parts.encoder,
                token=tokenizer.size,
                channels=data.channels,
                grid=tokenizer.grid_of(data.size),
                required=RequiredFeatures(last=last),
                blanks="mask_token" in stored,
            )
            if encoder.state_dict().keys() <= stored:
                break
        if parts.dense is not None:
            return build_stored(parts.dense, tokenizer, encoder, data, labels)
        if parts.headed:
            classes = len(weights.get("head.linear.weight", (None,)))
            pool, head = parts.pool, parts.head
            if "head.fc_norm.weight" not in weights and head.norm == "layer":  # see `build_classifier`
                head = replace(head, norm="none")
            return Classifier.build(tokenizer, encoder, classes=classes, pool=pool, head=head, data=data, labels=labels)
        target = targets.build(parts.target, token=tokenizer.size, data=data, encoder=encoder)
        return MaskedModel(tokenizer, maskers.build(parts.masker), encoder, None, target, data=data)


def _labels(run: Path) -> tuple[str, ...] | None:
    """Returns the names of a classifier's classes, from the config.yaml of a saved model or the result of a run."""
    found = read_yaml((run / CONFIG).read_text(encoding="utf-8")).get("labels")
    found = read_result(run).get("classes") if found is None else found
    return tuple(map(str, found)) if isinstance(found, list) else None


def read_result(run: Path) -> dict[str, Any]:
    """Returns the content of result.json of a run, its scores. Empty: there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    file = run / RESULT
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _tree(model: Model) -> dict[str, Any]:
    """Returns the content of config.yaml for a model.

    Raises:
        ValueError: a part has no config, or the model does not have the properties of its data.
    """
    given = {name: to_dict(value) for name, value in asdict(data_of(model)).items() if value is not None}
    *frames, height, width = given.pop("size")
    data = {"image_size": [height, width], **({"frames": frames[0]} if frames else {}), **given}
    tree: dict[str, Any] = {"data": data}
    dense = isinstance(model, (Segmenter, Detector))
    for name in ("tokenizer", "encoder") if dense else HEADED if isinstance(model, Classifier) else MASKED:
        part: Any = getattr(model, name)
        config = getattr(part, "config", None)
        if part is not None and config is None:
            raise ValueError(f"the {name} {type(part).__name__} has no `config`, so that it cannot be saved")
        tree[name] = None if part is None else public_config(part)
    if isinstance(model, (Segmenter, Detector)):
        tree |= dense_tree(model)
    return tree if isinstance(model, MaskedModel) or model.labels is None else tree | {"labels": list(model.labels)}


def _check(model: Model, folder: Path) -> None:
    """Raises ValueError if a written folder does not contain the same model."""
    try:
        again = _read(folder)[0].state_dict()
    except ValueError as error:
        raise ValueError(f"config.yaml cannot describe this model: {str(error).replace(str(folder), 'the folder')}") from error
    assert all(torch.equal(again[name], value.cpu()) for name, value in model.state_dict().items())


def _only(tree: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """Returns the named values of a tree. All must be present, because a default may differ from the value of the run."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the config'}: expected names and values, not {tree!r}")
    for name in names:
        if name not in tree:
            raise ValueError(f"{where}{name} is missing")
    return {name: tree[name] for name in names}


def _refuse_unknown(parts: Mapping[str, Any]) -> None:
    for kind, part in parts.items():
        if kind in REGISTRIES and isinstance(part, Mapping) and part.get("name") not in REGISTRIES[kind].parts:
            known = ", ".join(sorted(REGISTRIES[kind].parts))
            raise ValueError(
                f"{kind}.name {part.get('name')!r} is not one of {known}; for a part of your own: --use FILE (in Python, import it)"
            )


def _place(path: Path) -> Path:
    """Returns an absolute path. Links to folders are resolved, but a link to a file is not followed."""
    return path.absolute() if path.is_file() else path.resolve()


def _weights(path: Path, run: Path) -> Path:
    """Returns the file of weights for a path in a run folder, after verifying its checkpoint."""
    place = _place(path)
    if place in (run, run / WEIGHTS) and (run / WEIGHTS).is_file():
        return run / WEIGHTS
    if place in (run, run / CHECKPOINTS, run / BEST):
        found = checkpoint_of(place, run)
        if found is None:
            raise ValueError(f"{run} holds no checkpoint yet")
        return found / WEIGHTS
    checkpoint = place.parent if place.is_file() else place
    file = checkpoint / (f"{stem_of(place)}.safetensors" if place.is_file() else WEIGHTS)
    reason = damage(checkpoint)
    if reason is not None:
        raise ValueError(f"{checkpoint} is damaged: {reason}; give {run} for the newest whole checkpoint")
    return file
