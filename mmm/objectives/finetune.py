"""Fine-tuning: options, a classifier with pretrained weights, and the forward with its loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mmm.classifier import Classifier, HeadConfig
from mmm.core.checks import Rate
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.data import Batch, DataConfig, ImagesConfig
from mmm.data.loading.loader import prepare
from mmm.data.transforms.augment import erase
from mmm.model import MaskedModel
from mmm.objectives.adapt_encoder import AdaptConfig, start_encoder
from mmm.pools import MeanPool
from mmm.train.config import TrainConfig
from mmm.train.mixup import SoftConfig, SoftTargets, soft_cross_entropy


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(AdaptConfig):
    """Options of a classifier, its samples, and its training."""

    data: DataConfig = field(default_factory=ImagesConfig)
    pool: PartConfig = MeanPool.Config()
    head: HeadConfig = HeadConfig(norm="layer")
    soft: SoftConfig = SoftConfig()
    train: TrainConfig = TrainConfig(epochs=10, batch_size=64, learning_rate=1e-3)
    """Options of the training."""
    held_back: Rate = 0.0
    """Share of the training samples that is held back. The weights with the best accuracy on them are scored at the end. 0: the
    last weights are scored."""


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
        tokenizer, encoder = start_encoder(config, pretrained, data, RequiredFeatures(last=last_norm))
        return Classifier.build(tokenizer, encoder, classes=classes, pool=config.pool, head=head, data=data)


class FineTuneObjective:
    """The cross-entropy of a classifier. All random numbers come from the keys of the samples.

    Args:
        data: options of reading the samples.
        soft: options of label smoothing and mixing.
        classes: K.
        device: device of the computation.
    """

    def __init__(self, data: DataConfig, soft: SoftConfig, classes: int, device: torch.device) -> None:
        self.data, self.soft, self.device = data, soft, device
        self.targets = SoftTargets(soft, classes)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Returns the mean loss of a micro-batch, ()."""
        keys, batch = batch.keys, batch.to(self.device)  # seeds are read from the copy of the keys on the CPU
        assert batch.labels is not None
        x = prepare(batch, self.data, train=True)  # (B, C, ..., h, w)
        x, target = self.targets(erase(x, keys, self.soft.erase), batch.labels, keys[0])
        return soft_cross_entropy(model(x), target)
