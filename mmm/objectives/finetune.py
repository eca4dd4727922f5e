"""Fine-tuning: options, a classifier with pretrained weights, and the forward with its loss."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmm.classifier import Classifier, HeadConfig
from mmm.core.checks import Rate, Share
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.data import Batch, DataConfig, ImagesConfig
from mmm.data.loading.loader import prepare
from mmm.data.transforms.augment import erase
from mmm.encoders import EncoderConfig, VisionTransformer, encoders
from mmm.model import MaskedModel
from mmm.objectives.adapt_encoder import adapt_encoder, train_positions
from mmm.pools import MeanPool
from mmm.tokenizers import Patches, tokenizers
from mmm.train.config import RunConfig, TrainConfig
from mmm.train.mixup import SoftConfig, SoftTargets, soft_cross_entropy

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(RunConfig):
    """Options of a classifier, its samples, and its training."""

    model: str | None = None
    """Weights to start from: a run folder, a checkpoint or a file of weights in one, or published weights. Tokenizer and encoder
    then come from the model, and only drop_path of `encoder` is used. None: from scratch."""
    data: DataConfig = field(default_factory=ImagesConfig)
    tokenizer: PartConfig = Patches.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    pool: PartConfig = MeanPool.Config()
    head: HeadConfig = HeadConfig(norm="layer")
    soft: SoftConfig = SoftConfig()
    layer_decay: Share = 1.0
    """Ratio of the learning rates of successive layers: the head has the full rate, and the embedding the smallest."""
    train_positions: bool = False
    """Train fixed positions too; learned positions are always trained."""
    train: TrainConfig = TrainConfig(epochs=10, batch_size=64, learning_rate=1e-3)
    """Options of the training."""
    held_back: Rate = 0.0
    """Share of the training samples that is held back. The weights with the best accuracy on them are scored at the end. 0: the
    last weights are scored."""
    test_split: str | None = None
    """Split of the source to score. None: the evaluation split, as in pretraining."""


def build_classifier(config: FineTuneConfig, pretrained: MaskedModel | None, classes: int) -> Classifier:
    """Builds the classifier of a config; new weights depend on the seed.

    As in MAE's fine-tuning, a layer norm in the head replaces the last norm of the encoder if tokens are pooled. With a class
    token, the pretrained norm of the encoder is used, and the head has none.
    """
    data, head = config.data.input(), config.head
    last_norm = head.norm != "layer" or config.pool.name == "class"
    if config.pool.name == "class" and head.norm == "layer":
        head = replace(head, norm="none")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if pretrained is None:
            tokenizer = tokenizers.build(config.tokenizer, channels=data.channels)
            grid = tokenizer.grid_of(data.size)
            context: Any = {
                "token": tokenizer.size,
                "channels": data.channels,
                "grid": grid,
                "required": RequiredFeatures(last=last_norm),
            }
            encoder = encoders.build(config.encoder, **context)
        else:
            tokenizer = pretrained.tokenizer
            encoder = adapt_encoder(pretrained, data, drop_path=_drop_path(config.encoder), last_norm=last_norm)
        if config.train_positions:
            train_positions(encoder)
        return Classifier.build(tokenizer, encoder, classes=classes, pool=config.pool, head=head, data=data)


def with_pretrained(config: C, model: MaskedModel) -> C:
    """Returns the config with the tokenizer and the encoder of the weights, so that it describes the trained model."""
    own: Any = model.encoder.config
    tokenizer: Any = model.tokenizer
    choices: Any = config
    chosen: EncoderConfig = choices.encoder
    if (own.shape.width, own.shape.depth) != (chosen.shape.width, chosen.shape.depth):
        logger.warning(
            "the weights are %d wide and %d deep, this preset's encoder %d and %d: its drop path, layer decay and learning rate "
            "may be meant for the other size",
            *(own.shape.width, own.shape.depth, chosen.shape.width, chosen.shape.depth),
        )
    changed: C = replace(choices, tokenizer=tokenizer.config, encoder=replace(own, drop_path=_drop_path(chosen)))
    return changed


class FineTuneObjective:
    """The cross-entropy of a classifier. All random numbers come from the keys of the samples.

    Args:
        data: how samples are read.
        soft: options of label smoothing and mixing.
        classes: K.
        device: device of the computation.
    """

    def __init__(self, data: DataConfig, soft: SoftConfig, classes: int, device: torch.device) -> None:
        self.data, self.soft, self.device = data, soft, device
        self.targets = SoftTargets(soft, classes)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Returns the mean loss of a micro-batch, ()."""
        keys, batch = batch.keys, batch.to(self.device)  # the keys also stay on the CPU, where seeds are read from them
        assert batch.labels is not None
        x = prepare(batch, self.data, train=True)  # (B, C, ..., h, w)
        x, target = self.targets(erase(x, keys, self.soft.erase), batch.labels, keys[0])
        return soft_cross_entropy(model(x), target)


def _drop_path(config: EncoderConfig) -> float:
    return float(getattr(config, "drop_path", 0.0))
