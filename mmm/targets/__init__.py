"""Targets: what is predicted, and how far off a prediction is."""

from mmm.targets.base import Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.clusters import ClusterTarget
from mmm.targets.hog import HogTarget
from mmm.targets.latent import LatentTarget
from mmm.targets.losses import LOSSES, ValueLoss
from mmm.targets.pixels import PixelTarget

__all__ = [
    "LOSSES",
    "ClusterTarget",
    "HogTarget",
    "LatentTarget",
    "PixelTarget",
    "Target",
    "TargetConfig",
    "TokenTargets",
    "ValueLoss",
    "TargetValues",
    "targets",
]
