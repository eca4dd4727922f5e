"""Segmentation: options, a segmenter with pretrained weights, and the forward with its loss.

Shapes: B samples, C channels, (h, w) of a sample, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.data import Batch
from mmm.data.annotated.config import MasksConfig, PairsConfig
from mmm.data.annotated.maps import IGNORE, split_planes
from mmm.data.transforms.crop import flip, lighting, normalise
from mmm.data.transforms.photometric import distort
from mmm.dense.heads import DenseHeadConfig, LinearHead
from mmm.dense.segmenter import Segmenter
from mmm.model import MaskedModel
from mmm.objectives.adapt_encoder import AdaptConfig, DenseObjective, start_encoder
from mmm.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DenseConfig(AdaptConfig):
    """Options of a model with an output for each pixel, and of its training."""

    head: DenseHeadConfig = LinearHead.Config()
    frozen: bool = False
    """Train only the head, on the features of the frozen encoder."""
    relative_bias: bool = False
    """Learn an attention bias for each relative position, initialised with zero (BEiT; MAE on ADE20K)."""
    train: TrainConfig = TrainConfig(epochs=10, batch_size=16, learning_rate=1e-3, scale_learning_rate=None)
    """Options of the training."""

    @property
    def pixels(self) -> PairsConfig:
        """The data."""
        raise NotImplementedError

    def validate(self) -> None:
        if self.relative_bias and self.frozen:
            raise ValueError("relative_bias is trained in the encoder, and frozen does not train the encoder; leave one out")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseConfig):
    """Options of a segmenter, its images and masks, and its training."""

    data: MasksConfig = field(default_factory=MasksConfig)

    def validate(self) -> None:
        super().validate()
        if self.relative_bias and self.data.whole_maps:
            raise ValueError("relative_bias is trained for one image size, and data.whole_maps evaluates others; leave one out")

    @property
    def pixels(self) -> PairsConfig:
        """The data."""
        return self.data


def build_dense(config: DenseConfig, pretrained: MaskedModel | None, outputs: int, labels: tuple[str, ...] | None) -> Segmenter:
    """Builds the model of a config; new weights depend on the seed.

    Args:
        outputs: number of values that the head predicts for each place.
        labels: names of the classes.

    Raises:
        ValueError: the parts do not fit together.
    """
    data = config.pixels.input()
    shape = (config.encoder if pretrained is None else pretrained.encoder).shape
    required = replace(config.head.required_features(shape), blocks=())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        tokenizer, encoder = start_encoder(config, pretrained, data, required)
        return Segmenter.build(
            tokenizer,
            encoder,
            config.head,
            classes=outputs,
            frozen=config.frozen,
            relative_bias=config.relative_bias,
            data=data,
            labels=labels,
        )


def prepare_pixels(batch: Batch, data: PairsConfig) -> tuple[Tensor, Tensor]:
    """Flips images and maps together, changes colours, and normalises the pixels of a training batch on its device.

    Returns:
        Pixels, float32 (B, C, h, w), and the numbers of the maps, int64 (B, h, w).
    """
    image, numbers = split_planes(flip(batch.pixels, batch.keys, data.flip), data.channels)
    x = image.float() if data.lighting or data.photometric else image
    if data.photometric:
        x = distort(x, batch.keys)
    if data.lighting:
        x = lighting(x, batch.keys, data.lighting)
    return normalise(x, data.mean, data.std), numbers


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the cross-entropy of interpolated logits, summed over labelled pixels and divided by the number of all pixels.

    This is mmsegmentation's rule, which MAE's published segmentation uses. The loss of a sample does not depend on other samples.

    Args:
        logits: (B, K, h', w').
        labels: int64 (B, h, w); IGNORE is left out.
    """
    scores = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum") / labels.numel()


class SegmentObjective(DenseObjective[MasksConfig]):
    """The cross-entropy of a segmenter. All random numbers come from the keys of the samples.

    Args:
        data, device: see `DenseObjective`.
        weights: weights of the losses of the head's maps.
    """

    def __init__(self, data: MasksConfig, weights: tuple[float, ...], device: torch.device) -> None:
        super().__init__(data, device)
        self.weights = weights

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Returns the mean loss of a micro-batch, ()."""
        x, labels = prepare_pixels(batch.to(self.device), self.data)
        losses = [pixel_cross_entropy(logits, labels) for logits in model(x)]
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum()
