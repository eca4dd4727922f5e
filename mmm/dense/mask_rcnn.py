"""torchvision's Mask R-CNN with the layers of ViTDet (Li et al., ECCV 2022), on a pyramid of maps.

The single map of a plain vision transformer is the input of ViTDet's simple pyramid. The stages of a hierarchical encoder are the
inputs of a feature pyramid network (Lin et al., CVPR 2017).

Shapes: B samples, D width of a map, (h, w) its grid, C channels of the pyramid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmm.core.checks import Positive
from mmm.dense.detector_layers import DetectorConfig, DetectorLayers, Target, detectors

LEVELS = ("0", "1", "2", "3", "pool")  # torchvision's names of the maps; boxes and masks are read from the first four
ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels, one per level, for tokens of 16 pixels
RATIOS = (0.5, 1.0, 2.0)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SimplePyramid(nn.Module):
    """Makes five maps from one, at 4, 2, 1, 1/2 and 1/4 times its size (ViTDet)."""

    def __init__(self, width: int, channels: int) -> None:
        """Builds layers from maps of this width to maps of this number of channels."""
        super().__init__()
        half, quarter = max(1, width // 2), max(1, width // 4)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, half, 2, 2), ChannelNorm(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)
                ),
                nn.ConvTranspose2d(width, half, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2),
            ]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, channels, 1, bias=False),
                ChannelNorm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                ChannelNorm(channels),
            )
            for inputs in (quarter, half, width, width)
        )

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """One map (B, D, h, w) -> five with the pyramid's channels, from fine to coarse."""
        (x,) = maps
        found = [output(scale(x)) for scale, output in zip(self.scales, self.outputs, strict=True)]
        return dict(zip(LEVELS, [*found, found[-1][:, :, ::2, ::2]], strict=True))


class StagePyramid(nn.Module):
    """Makes five maps from four, whose sides halve from one to the next: coarse maps are added to finer ones."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        """Builds layers from maps of these widths to maps of this number of channels."""
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.network = FeaturePyramidNetwork(list(widths), channels, LastLevelMaxPool(), norm_layer=ChannelNorm)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """(B, D, h, w) each -> five maps with the pyramid's channels, from fine to coarse."""
        found: dict[str, Tensor] = self.network(OrderedDict(zip(LEVELS, maps, strict=False)))
        return found


@detectors.register("mask_rcnn")
class MaskRCNN(DetectorLayers):
    """Mask R-CNN (He et al., ICCV 2017): proposals, then a class, a box and a mask for each."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DetectorConfig):
        masks: bool = True
        """Predict a mask for each box."""
        channels: Positive = 256
        """Width of the pyramid and of the convolutions of the heads."""
        hidden: Positive = 1024
        """Width of the box head's linear layer."""
        convolutions: Positive = 4
        """Number of convolutions of the box head and of the mask head."""
        proposals: Positive = 1000
        """Number of region proposals that are kept for the heads; twice as many in training."""

        @property
        def predicts_masks(self) -> bool:
            """True if objects have masks."""
            return self.masks

    def __init__(self, config: Config, *, widths: tuple[int, ...], token: int, classes: int) -> None:
        super().__init__()
        if token & (token - 1):
            raise ValueError(f"tokenizer.size {token}: detector.name mask_rcnn needs a power of 2 (torchvision's RoIAlign)")
        if len(widths) not in (1, 4):
            raise ValueError(f"encoder.stages: detector.name mask_rcnn reads four stages, and this encoder has {len(widths)}")
        pyramid = SimplePyramid(widths[0], config.channels) if len(widths) == 1 else StagePyramid(widths, config.channels)
        self.pyramid: nn.Module = pyramid
        self.rpn, self.roi_heads = _heads(config, classes, token)

    def forward(self, maps: list[Tensor], size: tuple[int, int], targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        from torchvision.models.detection.image_list import ImageList

        features, count = self.pyramid(maps), len(maps[0])
        sizes = [size] * count
        images: Any = ImageList(maps[0].new_empty(count, 1, 1, 1).expand(-1, -1, *size), sizes)  # only its sizes are read
        proposals, losses = self.rpn(images, features, targets)
        found, more = self.roi_heads(features, proposals, sizes, targets)
        return losses | more if self.training else found


def _heads(config: MaskRCNN.Config, classes: int, token: int) -> tuple[nn.Module, nn.Module]:
    """Builds the region proposals and the heads of torchvision's Mask R-CNN, with ViTDet's layers."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
    from torchvision.ops import MultiScaleRoIAlign

    channels, factor = config.channels, token / 16
    convolutions, norm = [channels] * config.convolutions, ChannelNorm
    anchors = AnchorGenerator(tuple((max(1, round(side * factor)),) for side in ANCHORS), (RATIOS,) * len(ANCHORS))
    kept = {"training": 2 * config.proposals, "testing": config.proposals}
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, len(RATIOS), conv_depth=2),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=kept,
        post_nms_top_n=kept,
        nms_thresh=0.7,
    )

    def pool(side: int) -> nn.Module:
        levels, level = list(LEVELS[:4]), round(4 + math.log2(factor))
        return MultiScaleRoIAlign(levels, side, 2, canonical_scale=round(224 * factor), canonical_level=level)

    heads = RoIHeads(
        pool(7),
        FastRCNNConvFCHead((channels, 7, 7), convolutions, [config.hidden], norm_layer=norm),
        FastRCNNPredictor(config.hidden, classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=512,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=config.detections,
    )
    if config.masks:
        heads.mask_roi_pool = pool(14)
        heads.mask_head = MaskRCNNHeads(channels, convolutions, 1, norm_layer=norm)
        heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)
    return rpn, heads
