"""The interface of the layers that find objects in an encoder's maps, and their common options.

Shapes: B samples, D width of a map, (h, w) its grid, (H, W) pixels, n objects.
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
    """Side of the windows of attention in tokens. None: all attention is global. Like the next two options, this is for a plain
    vision transformer: hierarchical encoders (hiera, swin) keep their own attention."""
    global_blocks: tuple[int, ...] = ()
    """Blocks whose attention is global, counted from 1. Empty: four blocks, the last one of each quarter of the depth."""
    relative: bool = True
    """Learn biases of relative rows and columns in the attention of every block, which start at zero."""
    detections: Positive = 100
    """Largest number of objects of an image."""

    @property
    def predicts_masks(self) -> bool:
        """True if objects have masks."""
        return False


class DetectorLayers(nn.Module):
    """Finds objects in the maps of an encoder.

    Built with the `widths` of the maps, `token`, and the number of `classes`. A plain vision transformer has one map, and `token`
    is the side of its places in pixels. A hierarchical encoder has one map for each stage, and `token` is four times the side of
    the finest map's places.
    """

    @abstractmethod
    def forward(self, maps: list[Tensor], size: tuple[int, int], targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        """Returns losses by name in training, and the objects of each image in evaluation. See `Detector.forward`.

        Args:
            maps: (B, D, h, w) each, from fine to coarse.
            size: (H, W).
            targets: in training, the targets of each image.
        """
