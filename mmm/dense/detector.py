"""A detector: a plain vision transformer with attention in windows (ViTDet, Li et al., ECCV 2022), or an unchanged hierarchical
encoder, followed by layers that find objects.

Shapes: B samples, C channels, (H, W) pixels, n objects.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmm.core.pretrained import Pretrained, checked_labels
from mmm.core.types import Input
from mmm.dense.detector_layers import DetectorConfig, Target, detectors
from mmm.dense.detr import Detr
from mmm.dense.maps import stage_maps
from mmm.dense.mask_rcnn import MaskRCNN
from mmm.dense.windows import WindowedEncoder, default_global_blocks
from mmm.encoders import Encoder
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.tokenizers import GridTokenizer

__all__ = ["Detector", "DetectorConfig", "Detr", "MaskRCNN"]


class Detector(Pretrained, nn.Module):
    """Finds objects in images: boxes, classes and masks. The weights of the encoder keep their names.

    Example:
        model = mmm.load("runs/pretrain-1")
        detector = Detector.build(model.tokenizer, model.encoder, MaskRCNN.Config(), classes=80, data=model.data)
        losses = detector.train()(x, targets)       # x: normalised (B, C, H, W); targets as torchvision takes them
        found = detector.eval()(x)                  # boxes, labels from 1, scores and masks of 28 x 28 pixels of each image
        found = detector.predict("street.jpg")      # the objects of the image by name, with boxes and masks in its pixels
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
        """Builds the layers after an encoder, which becomes part of the detector, with relative positions if the config has them.

        Args:
            classes: number of classes, without the background.
            data: size and normalisation of the images; with relative positions, images must have this size.
            labels: names of the classes. None: they have no names.

        Raises:
            ValueError: the encoder or the size cannot be used.
        """
        super().__init__()
        self.tokenizer, self.encoder, self.config, self.classes = tokenizer, encoder, config, classes
        self.data, self.labels = data, checked_labels(labels, classes)
        side = tokenizer.size[-1]
        if len(tokenizer.size) != 2 or tokenizer.size[0] != side:
            raise ValueError(f"tokenizer.size {tokenizer.size}: detection needs square patches")
        grid = tokenizer.grid_of(data.size)
        if any(length % 2 for length in grid):
            raise ValueError(
                f"data.image_size {data.size} gives {grid} tokens; detection needs even numbers, so that a map can be halved"
            )
        stages = encoder.shape.stages
        self.windows: WindowedEncoder | None = None
        if not stages:
            blocks = config.global_blocks or default_global_blocks(encoder.shape.depth)
            self.windows = WindowedEncoder(encoder, grid, window=config.window, global_blocks=blocks, relative=config.relative)
        widths = tuple(stage.width for stage in stages) or (encoder.shape.width,)
        scale = 4 * side // stages[0].inner[-1] if stages else side
        self.layers = detectors.build(config, widths=widths, token=scale, classes=classes)
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
        """Builds a detector with a copy of the encoder, which it changes (attention in windows, relative positions).

        With a seed, the new weights depend on the seed alone, and torch's generator does not change.
        """
        with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            return cls(tokenizer, deepcopy(encoder), config, classes=classes, data=data, labels=labels)

    def forward(self, x: Tensor, targets: list[Target] | None = None) -> Any:
        """Computes losses by name in training, and the objects of each image in evaluation.

        Args:
            x: normalised (B, C, H, W).
            targets: in training, for each image `boxes` (n, 4), `labels` (n,), from 1, and `masks` (n, H, W).

        Returns:
            In training, losses by name. In evaluation, for each image `boxes` float32 (m, 4), `labels` (m,), `scores` (m,) and, if
            the layers predict them, `masks`, (m, 1, 28, 28) in [0, 1].
        """
        patches, size = self.tokenizer.split(x), (x.shape[-2], x.shape[-1])
        if self.windows is not None:
            return self.layers([self.windows(self.encoder, patches)], size, targets)
        grid, stages = self.tokenizer.grid(x), self.encoder.shape.stages
        features = self.encoder(patches, grid, None, blocks=tuple(stage.block for stage in stages))
        return self.layers(stage_maps(features, grid, stages), size, targets)

    def predict(self, x: Any, *, least: float = 0.5) -> list[list[dict[str, Any]]]:
        """Finds the objects in images.

        Args:
            x: normalised (B, C, H, W), or images in any form that `transform` takes.
            least: smallest score of an object.

        Returns:
            For each image its objects in falling order of their scores: `class`, its name (without names, its number), `score`,
            `box`, (left, top, right, bottom) in pixels of the image, and, if the model predicts masks, `mask`, bool (H, W) on the
            CPU.

        Raises:
            ValueError: an image has a form that the model does not accept.
        """
        from mmm.evaluate.dense.predict import predict_objects

        return predict_objects(self, x, least=least)
