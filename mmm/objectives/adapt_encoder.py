"""Adapts a pretrained encoder for fine-tuning: to other sizes of samples, with drop path, and without unused weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmm.config.serialize import from_dict, read_yaml
from mmm.core.types import Input, RequiredFeatures
from mmm.data import DataConfig
from mmm.encoders import Encoder, encoders
from mmm.model import MaskedModel
from mmm.weights.formats.run import CONFIG, read_parts, run_of
from mmm.weights.load import load_masked

logger = logging.getLogger(__name__)

# weights that the encoder of a classifier does not have
UNUSED = {"mask_token", "norm.weight", "norm.bias", "expand.weight", "expand.bias"}


def load_pretrained(path: str | Path, data: Input) -> MaskedModel:
    """Loads the model with the initial weights.

    Args:
        path: see `mmm.load`.
        data: properties of the samples to fine-tune on.

    Raises:
        ValueError: the model cannot be read, or its run had another normalisation of pixels.
    """
    run = run_of(Path(path).expanduser())
    if run is not None:
        own = read_parts(run / CONFIG)[1]
        for name in ("channels", "mean", "std"):
            given, expected = getattr(data, name), getattr(own, name)
            if given != expected:
                value = " ".join(map(str, expected)) if isinstance(expected, tuple) else expected
                raise ValueError(f"data.{name} {given} is not what {run} was trained with; give --data.{name} {value}")
    model = load_masked(path)
    own = model.data or data
    if (own.mean, own.std) != (data.mean, data.std):
        logger.warning("data.mean %s and data.std %s are not those of %s, %s and %s", data.mean, data.std, path, own.mean, own.std)
    if model.tokenizer.channels != data.channels:
        raise ValueError(f"data.channels {data.channels}: {path} is a model of {model.tokenizer.channels} channels")
    return model


def run_data(path: str | Path) -> DataConfig | None:
    """Returns the data of the run at a path: source, sizes and normalisation. None: the path is not in a run.

    Raises:
        ValueError: the run's config.yaml cannot be read.
    """
    run = run_of(Path(path).expanduser())
    if run is None:
        return None
    read_parts(run / CONFIG)  # refuses anything else
    tree = read_yaml((run / CONFIG).read_text(encoding="utf-8"))["data"]
    return from_dict(DataConfig.variant(set(tree)), tree, "data.")


def adapt_encoder(model: MaskedModel, data: Input, *, drop_path: float, last_norm: bool) -> Encoder:
    """Returns an adapted encoder with the weights of a model.

    Its grid is that of the samples. Positions are resized once by `encoder.resize_positions`, so that they can be trained.

    Args:
        model: the pretrained model.
        data: properties of the samples to fine-tune on. Their size may differ from that of pretraining.
        drop_path: rate of stochastic depth in the last block.
        last_norm: whether there is a norm after the last block. If the model has none, it is initialised.

    Raises:
        ValueError: the size of a token does not divide that of the samples.
    """
    source: Any = model.encoder
    grid = model.tokenizer.grid_of(data.size)
    if not hasattr(source.config, "drop_path"):
        raise ValueError(f"an encoder {type(source).__name__} is not trained here, only evaluated; use a probe of its features")
    config = replace(source.config, drop_path=drop_path)
    token, channels = model.tokenizer.size, model.tokenizer.channels
    encoder = encoders.build(config, token=token, channels=channels, grid=grid, required=RequiredFeatures(last=last_norm))
    found: dict[str, Tensor] = source.state_at(grid)
    own = encoder.state_dict()
    assert own.keys() ^ found.keys() <= UNUSED, f"{own.keys() ^ found.keys()}"
    encoder.load_state_dict(own | {name: found[name] for name in own.keys() & found.keys()})
    if fresh := own.keys() - found.keys():
        logger.warning("the pretrained encoder has no %s; it is newly initialised", " and ".join(sorted(fresh)))
    if grid != source.home:
        logger.info("positions of the tokens: from a grid of %s to one of %s", source.home, grid)
    return encoder


def train_positions(encoder: Encoder) -> None:
    """Makes fixed positions trainable. An encoder without a table of positions is not changed."""
    for name, table in encoder.named_parameters():
        if name == "pos_embed":
            table.requires_grad_(True)
