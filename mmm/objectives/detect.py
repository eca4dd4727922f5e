"""Detection: options, a detector with pretrained weights, and the forward with its loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmm.core.types import RequiredFeatures
from mmm.data import Batch
from mmm.data.annotated.config import ObjectsConfig
from mmm.data.transforms.crop import flip, lighting, normalise
from mmm.data.transforms.photometric import distort
from mmm.dense.detector import Detector, DetectorConfig, MaskRCNN
from mmm.model import MaskedModel
from mmm.objectives.adapt_encoder import AdaptConfig, DenseObjective, start_encoder
from mmm.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DetectConfig(AdaptConfig):
    """Options of a detector, its images and objects, and its training."""

    data: ObjectsConfig = field(default_factory=ObjectsConfig)
    detector: DetectorConfig = MaskRCNN.Config()
    train: TrainConfig = TrainConfig(epochs=10, batch_size=16, learning_rate=1e-4, scale_learning_rate=None)
    """Options of the training."""


def build_detector(config: DetectConfig, pretrained: MaskedModel | None, classes: int, labels: tuple[str, ...] | None) -> Detector:
    """Builds the detector of a config; new weights depend on the seed.

    Raises:
        ValueError: the parts do not fit together.
    """
    data = config.data.input()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        tokenizer, encoder = start_encoder(config, pretrained, data, RequiredFeatures(last=False))
        return Detector.build(tokenizer, encoder, config.detector, classes=classes, data=data, labels=labels)


class DetectObjective(DenseObjective[ObjectsConfig]):
    """The sum of a detector's losses. All random numbers come from the keys of the samples."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Returns the mean loss of a micro-batch, (). Pixels are flipped here; the objects of the batch are flipped already."""
        batch, data = batch.to(self.device), self.data
        targets = [{name: value.to(self.device) for name, value in one.items()} for one in batch.targets]
        x = flip(batch.pixels, batch.keys, data.flip)
        x = x.float() if data.photometric or data.lighting else x
        x = distort(x, batch.keys) if data.photometric else x
        x = lighting(x, batch.keys, data.lighting) if data.lighting else x
        losses = model(normalise(x, data.mean, data.std), targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()
