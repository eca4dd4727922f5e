"""Soft targets for classification: label smoothing, and mixup and CutMix by timm with random numbers from the samples' keys.

mixup: Zhang et al., ICLR 2018. CutMix: Yun et al., ICCV 2019. Label smoothing: Szegedy et al., CVPR 2016, section 7.
Shapes: B samples of a micro-batch, C channels, (..., h, w) of a sample, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mmm.core.checks import CheckedConfig, NonNegative, ZeroToOne
from mmm.core.rng import Stream, seeded, stream


@dataclass(frozen=True, kw_only=True)
class SoftConfig(CheckedConfig):
    """Options that soften labels and mix samples."""

    smoothing: ZeroToOne = 0.0
    """Share of a label that is spread over all classes."""
    mixup: NonNegative = 0.0
    """Alpha of mixup, which averages two samples with a weight from Beta(alpha, alpha). 0: no mixup."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix, which puts a box of one sample into another. 0: no CutMix. With both, each micro-batch draws one of
    them."""
    erase: ZeroToOne = 0.0
    """Probability that a box of a sample, before it is mixed, is filled with noise."""

    @property
    def flag(self) -> str:
        return "soft"

    @property
    def mixes(self) -> bool:
        """True if samples are mixed."""
        return self.mixup > 0 or self.cutmix > 0


def check_mixing(config: SoftConfig, micro_batch_size: int) -> None:
    """Raises ValueError if samples are mixed in pairs and their number is odd."""
    if config.mixes and micro_batch_size % 2:
        raise ValueError(
            f"soft.mixup and soft.cutmix mix the samples of a micro-batch in pairs, and a micro-batch has {micro_batch_size}; "
            "choose train.batch_size and train.micro_batch_size so that this number is even"
        )


class SoftTargets:
    """Mixes a micro-batch with the same samples in reverse order, and mixes its labels accordingly."""

    def __init__(self, config: SoftConfig, classes: int) -> None:
        """Makes the mixing for labels of this number of classes."""
        self.config, self.classes = config, classes
        self.mixing: Any = None
        if config.mixes:
            from timm.data.mixup import Mixup  # imported here, because it imports torchvision

            self.mixing = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=classes)

    def __call__(self, x: Tensor, labels: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mixed inputs and their soft targets.

        Args:
            x: normalised, (B, C, ..., h, w); may be changed in place.
            labels: int64 (B,).
            key: key of the micro-batch's first sample, int64 (), on the CPU. All random numbers come from it.

        Returns:
            (B, C, ..., h, w), and probabilities of the classes, fp32 (B, K).
        """
        if self.mixing is None:
            hard = F.one_hot(labels, self.classes).float()
            return x, hard * (1 - self.config.smoothing) + self.config.smoothing / self.classes
        with seeded(stream(key[None], Stream.MIX)[0]):
            mixed, targets = self.mixing(x.flatten(1, -3), labels)  # frames as channels: timm cuts boxes along the third axis
        return mixed.view(x.shape), targets


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the mean cross-entropy in fp32. (B, K) each -> ()."""
    return F.cross_entropy(logits.float(), targets)
