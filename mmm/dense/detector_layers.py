"""The interface of the layers that find objects in an encoder's map, and their common options.

Shapes: B samples, D width of the map, (h, w) its grid, (H, W) pixels, n objects.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from mmm.core.checks import Positive
from mmm.core.registry import PartConfig, Registry

Target = dict[str, Tensor]

detectors: Registry[DetectorLayers] = Registry("detector")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(PartConfig):
    """Base of the `Config` of every detector: the encoder's attention, and the number of objects."""

    window: Positive | None = 14
    """Side of the windows of attention in tokens. None: all attention is global."""
    global_blocks: tuple[int, ...] = ()
    """Blocks whose attention is global, counted from 1. Empty: four, at the ends of quarters of the depth."""
    relative: bool = True
    """Learn biases of relative rows and columns in the attention of every block, which start at zero."""
    detections: Positive = 100
    """Largest number of objects of an image."""

    @property
    def predicts_masks(self) -> bool:
        """True if objects have masks."""
        return False


class DetectorLayers(nn.Module):
    """Finds objects in a map. Built with the `width` of the map, the side of a `token` in pixels, and the number of `classes`."""

    @abstractmethod
    def forward(self, x: Tensor, size: tuple[int, int], targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        """Losses by name in training; in evaluation the objects of each image. See `Detector.forward`.

        Args:
            x: the map, (B, D, h, w).
            size: (H, W).
            targets: in training, the targets of each image.
        """
