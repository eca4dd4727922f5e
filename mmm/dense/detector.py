"""A detector: a plain vision transformer with a simple feature pyramid in torchvision's Mask R-CNN (ViTDet, Li et al., ECCV 2022).

Shapes: B samples, C channels, (H, W) pixels, (h, w) the encoder's grid, D width, n objects.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmm.core.checks import Positive, check_fields
from mmm.core.pretrained import Pretrained
from mmm.core.types import Input
from mmm.dense.windows import WindowedEncoder, default_global_blocks
from mmm.encoders import Encoder
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.tokenizers import GridTokenizer

Target = dict[str, Tensor]
LEVELS = ("0", "1", "2", "3", "pool")  # torchvision's names of the maps; boxes and masks are read from the first four
ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels, one a level, for tokens of 16 pixels
RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The layers behind the encoder, and the encoder's attention."""

    window: Positive | None = 14
    """Side of the windows of attention in tokens. None: all attention is global."""
    global_blocks: tuple[int, ...] = ()
    """Blocks whose attention is global, counted from 1. Empty: four, at the ends of quarters of the depth."""
    relative: bool = True
    """Learn biases of relative rows and columns in every block's attention, zero at first."""
    masks: bool = True
    """Predict a mask for each box."""
    channels: Positive = 256
    """Width of the pyramid and of the convolutions of the heads."""
    hidden: Positive = 1024
    """Width of the box head's linear layer."""
    convolutions: Positive = 4
    """Convolutions of the box head and of the mask head."""
    proposals: Positive = 1000
    """Regions that are kept for the heads; twice as many in training."""
    detections: Positive = 100
    """Objects of an image at most."""

    def __post_init__(self) -> None:
        check_fields(self, "detector")


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SimplePyramid(nn.Module):
    """Five maps of one, at 4, 2, 1, 1/2 and 1/4 times its size."""

    def __init__(self, width: int, channels: int) -> None:
        """From maps of this width to maps of so many channels."""
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

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D, h, w) -> five maps with the pyramid's channels, from fine to coarse."""
        maps = [output(scale(x)) for scale, output in zip(self.scales, self.outputs, strict=True)]
        return [*maps, maps[-1][:, :, ::2, ::2]]


class Detector(Pretrained, nn.Module):
    """Finds objects in images: boxes, classes and masks. Its encoder keeps its names.

    Example:
        model = mmm.load("runs/pretrain-1")
        detector = Detector.build(model.tokenizer, model.encoder, DetectorConfig(), classes=80, data=model.data)
        losses = detector.train()(x, targets)       # x: normalised (B, C, H, W); targets as torchvision takes them
        found = detector.eval()(x)                  # boxes, labels from 1, scores and masks of 28 x 28 pixels of each image
    """

    __call__: Callable[..., Any]

    def __init__(
        self,
        tokenizer: GridTokenizer,
        encoder: Encoder,
        config: DetectorConfig,
        *,
        classes: int,
        data: Input,
        labels: tuple[str, ...] | None = None,
    ) -> None:
        """Builds the layers behind an encoder, which is taken over, with relative positions where the config has them.

        Args:
            classes: K, without the background.
            data: size and normalisation of the images; the size is fixed by relative positions.
            labels: names of the K classes. None: they have no names.

        Raises:
            ValueError: the encoder or the size cannot be used.
        """
        super().__init__()
        self.tokenizer, self.encoder, self.config, self.classes = tokenizer, encoder, config, classes
        self.data, self.labels = data, labels
        side = tokenizer.size[-1]
        if len(tokenizer.size) != 2 or tokenizer.size[0] != side or side & (side - 1):
            raise ValueError(
                f"tokenizer.size {tokenizer.size}: detection needs square patches, and a power of 2 (torchvision's RoIAlign)"
            )
        grid = tokenizer.grid_of(data.size)
        if any(length % 2 for length in grid):
            raise ValueError(
                f"data.image_size {data.size} gives {grid} tokens; detection needs even numbers, so that a map can be halved"
            )
        blocks = config.global_blocks or default_global_blocks(encoder.shape.depth)
        self.windows = WindowedEncoder(encoder, grid, window=config.window, global_blocks=blocks, relative=config.relative)
        self.pyramid = SimplePyramid(encoder.shape.width, config.channels)
        self.rpn, self.roi_heads = _heads(config, classes, side)
        use_cpu_bf16_kernels(self)

    @classmethod
    def build(
        cls,
        tokenizer: GridTokenizer,
        encoder: Encoder,
        config: DetectorConfig,
        *,
        classes: int,
        data: Input,
        labels: tuple[str, ...] | None = None,
        seed: int | None = None,
    ) -> Self:
        """As `__init__`; with a seed, the new weights depend on nothing else, and torch's generator stays as it was."""
        with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            return cls(tokenizer, encoder, config, classes=classes, data=data, labels=labels)

    def forward(self, x: Tensor, targets: list[Target] | None = None) -> Any:
        """Losses by name in training; in evaluation the objects of each image.

        Args:
            x: normalised (B, C, H, W).
            targets: in training, of each image `boxes` (n, 4), `labels` (n,), from 1, and `masks` (n, H, W).

        Returns:
            In evaluation, of each image `boxes` float32 (m, 4), `labels` (m,), `scores` (m,) and `masks`, (m, 1, 28, 28) in [0, 1].
        """
        from torchvision.models.detection.image_list import ImageList

        maps = self.pyramid(self.windows(self.encoder, self.tokenizer.split(x)))
        features = OrderedDict(zip(LEVELS, maps, strict=True))
        size = (x.shape[-2], x.shape[-1])
        proposals, losses = self.rpn(ImageList(x, [size] * len(x)), features, targets)
        found, more = self.roi_heads(features, proposals, [size] * len(x), targets)
        return losses | more if self.training else found


def _heads(config: DetectorConfig, classes: int, token: int) -> tuple[nn.Module, nn.Module]:
    """The region proposals and the heads of torchvision's Mask R-CNN, with ViTDet's layers."""
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
