"""Targets: what is predicted, and how far off a prediction is."""

from mmm.targets.base import Target, TargetConfig, Taught, Wanted, targets
from mmm.targets.clusters import ClusterTarget
from mmm.targets.hog import HogTarget
from mmm.targets.latent import LatentTarget
from mmm.targets.losses import LOSSES, Loss
from mmm.targets.pixels import PixelTarget

__all__ = [
    "LOSSES",
    "ClusterTarget",
    "HogTarget",
    "LatentTarget",
    "Loss",
    "PixelTarget",
    "Target",
    "TargetConfig",
    "Taught",
    "Wanted",
    "targets",
]
