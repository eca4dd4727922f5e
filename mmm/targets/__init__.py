"""Targets: what is predicted, and how far off a prediction is."""

from mmm.targets.base import Target, targets
from mmm.targets.losses import LOSSES, Loss
from mmm.targets.pixels import PixelTarget

__all__ = ["LOSSES", "Loss", "PixelTarget", "Target", "targets"]
