"""Detection: options, a detector with pretrained weights, and the forward with its loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.checks import Share
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.data import Batch
from mmm.data.annotated.config import ObjectsConfig
from mmm.data.transforms.crop import flip, lighting, normalise
from mmm.data.transforms.photometric import distort
from mmm.dense.detector import Detector, DetectorConfig, MaskRCNN
from mmm.encoders import EncoderConfig, VisionTransformer, encoders
from mmm.model import MaskedModel
from mmm.objectives.adapt_encoder import adapt_encoder, train_positions
from mmm.tokenizers import Patches, tokenizers
from mmm.train.config import RunConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class DetectConfig(RunConfig):
    """Options of a detector, its images and objects, and its training."""

    model: str | None = None
    """Weights to start from: a run folder, a checkpoint or a file of weights in one, or published weights. Tokenizer and
    encoder then come from the model, and only drop_path of `encoder` is used. None: from scratch."""
    data: ObjectsConfig = field(default_factory=ObjectsConfig)
    tokenizer: PartConfig = Patches.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    detector: DetectorConfig = MaskRCNN.Config()
    layer_decay: Share = 1.0
    """Ratio of the learning rates of successive layers: new layers have the full rate, and the embedding the smallest."""
    train_positions: bool = False
    """Train fixed positions too; learned positions are always trained."""
    train: TrainConfig = TrainConfig(epochs=10, batch_size=16, learning_rate=1e-4, scale_learning_rate=None)
    """Options of the training."""
    test_split: str | None = None
    """Split of the source to score. None: the evaluation split, as in training."""


def build_detector(config: DetectConfig, pretrained: MaskedModel | None, classes: int, labels: tuple[str, ...] | None) -> Detector:
    """Builds the detector of a config; new weights depend on the seed.

    Raises:
        ValueError: the parts do not fit together.
    """
    data = config.data.input()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if pretrained is None:
            tokenizer = tokenizers.build(config.tokenizer, channels=data.channels)
            context: Any = {"token": tokenizer.size, "channels": data.channels, "grid": tokenizer.grid_of(data.size)}
            encoder = encoders.build(config.encoder, **context, required=RequiredFeatures(last=False))
        else:
            tokenizer = pretrained.tokenizer
            rate = float(getattr(config.encoder, "drop_path", 0.0))
            encoder = adapt_encoder(pretrained, data, drop_path=rate, last_norm=False)
        if config.train_positions:
            train_positions(encoder)
        return Detector.build(tokenizer, encoder, config.detector, classes=classes, data=data, labels=labels)


class DetectObjective:
    """The sum of a detector's losses. All random numbers come from the keys of the samples.

    Args:
        data: options of the samples.
        device: device of the computation.
    """

    def __init__(self, data: ObjectsConfig, device: torch.device) -> None:
        self.data, self.device = data, device

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
