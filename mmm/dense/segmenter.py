"""A segmenter: tokenizer -> encoder, without a mask -> head -> scores of classes at each pixel.

Shapes: B samples, C channels, (H, W) pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.modes import evaluating
from mmm.core.pretrained import Pretrained, checked_labels, like_weights
from mmm.core.types import Input
from mmm.dense.heads import DenseHead, DenseHeadConfig, heads
from mmm.dense.relative_bias import add_relative_bias
from mmm.dense.sliding import score_image
from mmm.encoders import Encoder
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.tokenizers import GridTokenizer


class Segmenter(Pretrained, nn.Module):
    """Scores classes at each pixel of images. The weights of the encoder keep their names.

    Example:
        model = mmm.load("runs/pretrain-1")
        segmenter = Segmenter.build(model.tokenizer, model.encoder, LinearHead.Config(), classes=150, frozen=True, data=model.data)
        scores = segmenter.segment(x)               # x: normalised (B, C, H, W) of any size -> (B, K, H, W)
        labels = scores.argmax(1)
        found = segmenter.predict("street.jpg")     # the class of each pixel of the image, and the classes by name
    """

    __call__: Callable[..., tuple[Tensor, ...]]

    def __init__(
        self,
        tokenizer: GridTokenizer,
        encoder: Encoder,
        head: DenseHead,
        *,
        classes: int,
        frozen: bool = False,
        relative_bias: bool = False,
        data: Input | None = None,
        labels: tuple[str, ...] | None = None,
    ) -> None:
        """Joins an encoder and a head for it; `build` also makes the head.

        Args:
            classes: number of classes.
            frozen: whether the encoder stays in evaluation mode and gets no gradient.
            relative_bias: whether the encoder's attention has a bias of relative positions.
            data: size of the windows and normalisation of pixels.
            labels: names of the classes. None: they have no names.
        """
        super().__init__()
        self.tokenizer, self.encoder, self.head, self.frozen = tokenizer, encoder, head, frozen
        self.classes, self.relative_bias, self.data, self.labels = classes, relative_bias, data, checked_labels(labels, classes)
        use_cpu_bf16_kernels(self)
        if frozen:
            encoder.requires_grad_(False).eval()

    @classmethod
    def build(
        cls,
        tokenizer: GridTokenizer,
        encoder: Encoder,
        head: DenseHeadConfig,
        *,
        classes: int,
        frozen: bool = False,
        relative_bias: bool = False,
        data: Input | None = None,
        labels: tuple[str, ...] | None = None,
        seed: int | None = None,
    ) -> Self:
        """Builds the head for an encoder, and adds a bias of relative positions to the encoder if requested.

        Args:
            classes: see `__init__`.
            frozen: see `__init__`.
            relative_bias: see `__init__`.
            data: see `__init__`.
            labels: see `__init__`.
            seed: random seed of the new weights, which does not change torch's generator. None: torch's generator is used.
        """
        with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            built = heads.build(head, shape=encoder.shape, classes=classes)
        if relative_bias:
            add_relative_bias(encoder, encoder.home)
        return cls(
            tokenizer,
            encoder,
            built,
            classes=classes,
            frozen=frozen,
            relative_bias=relative_bias,
            data=data,
            labels=labels,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns logits (B, K, h, w) of normalised pixels (B, C, H, W), at a lower resolution; in training also auxiliary ones."""
        grid = self.tokenizer.grid(x)
        config = self.head.config
        assert isinstance(config, DenseHeadConfig)
        blocks = config.required_features(self.encoder.shape).blocks
        with torch.no_grad() if self.frozen else nullcontext():
            features = self.encoder(self.tokenizer.split(x), grid, None, blocks=blocks)
        return self.head(features, grid)

    @torch.no_grad()
    def segment(self, x: Tensor, *, whole: bool = False) -> Tensor:
        """Scores classes at each pixel, float32 (B, K, H, W).

        Args:
            x: normalised (B, C, H, W) of any size; it is resized so that it just covers the size of training.
            whole: score the image at once. False: average overlapping windows of the size of training.

        Raises:
            ValueError: the model has no `data`, so the size of the windows is not known.
        """
        height, width = self._known_data().size[-2:]
        with evaluating(self):
            return score_image(self.full_size, x, (height, width), (self.tokenizer.size[-2], self.tokenizer.size[-1]), whole=whole)

    def predict(self, x: Any, *, whole: bool = False) -> list[dict[str, Any]]:
        """Predicts the classes of the pixels of images, at the size of each image.

        Args:
            x: normalised (B, C, H, W), or images in any form that `transform` takes.
            whole: see `segment`.

        Returns:
            For each image `labels`, the number of the class of each pixel, int64 (H, W) on the CPU, and `classes`, the share of the
            pixels of each class that occurs, by name, in falling order. Classes without names are numbers.

        Raises:
            ValueError: an image has a form that the model does not accept.
        """
        from mmm.evaluate.dense.predict import predict_classes

        return predict_classes(self, x, whole=whole)

    def full_size(self, x: Tensor) -> Tensor:
        """Returns logits of normalised pixels (B, C, H, W) at their size, float32 (B, K, H, W)."""
        return F.interpolate(self(like_weights(x, self))[0].float(), x.shape[-2:], mode="bilinear", align_corners=False)

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode. A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self
