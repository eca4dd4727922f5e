"""Adapts a pretrained encoder for fine-tuning: to other sizes of samples, with drop path, and without unused weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mmm.core.checks import Share
from mmm.core.registry import PartConfig
from mmm.core.types import Input, RequiredFeatures
from mmm.data import DataConfig
from mmm.encoders import Encoder, EncoderConfig, VisionTransformer, encoders
from mmm.model import MaskedModel
from mmm.tokenizers import GridTokenizer, Patches, tokenizers
from mmm.train.config import RunConfig
from mmm.weights.formats.run import CONFIG, read_data, read_parts, run_of
from mmm.weights.load import compare_pixels, load_masked

logger = logging.getLogger(__name__)

C = TypeVar("C", bound="AdaptConfig")
D = TypeVar("D", bound=DataConfig)

# weights that the encoder of a classifier does not have
UNUSED = {"mask_token", "norm.weight", "norm.bias", "expand.weight", "expand.bias"}


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(RunConfig):
    """An encoder to start from, and options for training its layers."""

    model: str | None = None
    """Weights to start from: a run folder, a checkpoint or a file of weights in one, or published weights. Tokenizer and encoder
    then come from the model, and only drop_path of `encoder` is used. None: from scratch."""
    tokenizer: PartConfig = Patches.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    layer_decay: Share = 1.0
    """Ratio of the learning rates of successive layers: new layers have the full rate, and the embedding the smallest."""
    train_positions: bool = False
    """Train fixed positions too; learned positions are always trained."""
    test_split: str | None = None
    """Split of the source to score. None: the evaluation split, as in pretraining."""


def start_from(config: C, data: Input) -> tuple[C, MaskedModel | None]:
    """Loads the model to start from, if the config names one, and returns the config with its tokenizer and encoder, so that it
    describes the model that is trained."""
    if config.model is None:
        return config, None
    pretrained = load_pretrained(config.model, data)
    own: Any = pretrained.encoder.config
    if (own.shape.width, own.shape.depth) != (config.encoder.shape.width, config.encoder.shape.depth):
        logger.warning(
            "the weights are %d wide and %d deep, this preset's encoder %d and %d: its drop path, layer decay and learning rate "
            "may be meant for the other size",
            *(own.shape.width, own.shape.depth, config.encoder.shape.width, config.encoder.shape.depth),
        )
    encoder = replace(own, drop_path=_drop_path(config.encoder))
    tokenizer: Any = pretrained.tokenizer
    return replace(config, tokenizer=tokenizer.config, encoder=encoder), pretrained


def start_encoder(
    config: AdaptConfig, pretrained: MaskedModel | None, data: Input, required: RequiredFeatures
) -> tuple[GridTokenizer, Encoder]:
    """Returns the tokenizer and the encoder of a config: with new weights, or with those of a pretrained model.

    Args:
        required: the features of the encoder that the model uses.
    """
    if pretrained is None:
        tokenizer = tokenizers.build(config.tokenizer, channels=data.channels)
        context: Any = {"token": tokenizer.size, "channels": data.channels, "grid": tokenizer.grid_of(data.size)}
        encoder = encoders.build(config.encoder, **context, required=required)
    else:
        tokenizer = pretrained.tokenizer
        encoder = adapt_encoder(pretrained, data, drop_path=_drop_path(config.encoder), last_norm=required.last)
    if config.train_positions:
        train_positions(encoder)
    return tokenizer, encoder


def _drop_path(config: EncoderConfig) -> float:
    return float(getattr(config, "drop_path", 0.0))


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
        data.check_trained_with(read_parts(run / CONFIG)[1], str(run))
    model = load_masked(path)
    compare_pixels(model, data, str(path))
    return model


def run_data(flags: Mapping[str, list[str]]) -> DataConfig | None:
    """Returns the data of the run that --model names, as the default of a task that trains on labelled samples. None: --model names
    no run.

    With --data.source, the splits and columns of the run are left out, because another source has its own. Samples are not packed.

    Raises:
        ValueError: the run's config.yaml cannot be read.
    """
    model = flags.get("model")
    if not model:
        return None
    path = Path(model[-1]).expanduser()
    run = run_of(path.parent if path.name == CONFIG else path)
    if run is None:
        return None
    read_parts(run / CONFIG)  # raises an error if it is not the config of a run
    data = replace(read_data(run / CONFIG), pack=False, keep_aspect=False)
    if "data.source" in flags:
        data = replace(data, **type(data)().source_options() | {"holdout": data.holdout})
    return data


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


class DenseObjective(Generic[D]):
    """Base of the losses of models with an output for each pixel or object.

    Args:
        data: options of reading the samples.
        device: device of the model.
    """

    def __init__(self, data: D, device: torch.device) -> None:
        self.data, self.device = data, device
