"""Targets: the values that are predicted, and their losses."""

from mmm.targets.base import Samples, Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.clusters import ClusterTarget
from mmm.targets.codes import CodeTarget
from mmm.targets.hog import HogTarget
from mmm.targets.latent import LatentTarget
from mmm.targets.losses import LOSSES, ValueLoss
from mmm.targets.pair import PairTarget
from mmm.targets.pixels import PixelTarget
from mmm.targets.prototypes import PrototypeTarget

__all__ = [
    "LOSSES",
    "ClusterTarget",
    "CodeTarget",
    "HogTarget",
    "LatentTarget",
    "PairTarget",
    "PixelTarget",
    "PrototypeTarget",
    "Samples",
    "Target",
    "TargetConfig",
    "TokenTargets",
    "ValueLoss",
    "TargetValues",
    "targets",
]
