"""Heads that turn an encoder's tokens into scores for each place.

Shapes: B samples, D width, (h, w) the encoder's grid, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import AboveZero, NonNegative, Positive, Rate
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.dense.maps import FourScales, block_maps, stage_map
from mmm.layers.batch_norm import BatchNorm

heads: Registry[DenseHead] = Registry("dense_head")


@dataclass(frozen=True, kw_only=True)
class DenseHeadConfig(PartConfig):
    """Base of the `Config` of every head."""

    kind: ClassVar[str] = "dense_head"  # a field `head` of other configs is the head of a classifier

    @property
    def flag(self) -> str:
        """The name of the group of its flags, which is the name of the field."""
        return "head"

    @abstractmethod
    def required_features(self, shape: Shape) -> RequiredFeatures:
        """Returns the features that the head reads from an encoder of this shape.

        Raises:
            ValueError: a block does not exist.
        """


class DenseHead(nn.Module):
    """Scores classes at each place of a map. Built with the encoder's `shape` and the number of `classes`.

    Attributes:
        config: options of the head.
        weights: weights of the losses of the maps that `forward` returns.
        smallest_batch: smallest number of samples in a micro-batch of training.
    """

    weights: tuple[float, ...] = (1.0,)
    smallest_batch: int = 1

    def __init__(self, config: DenseHeadConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, features: Features, grid: Grid) -> tuple[Tensor, ...]:
        """Returns logits (B, K, h', w'), in training followed by those of auxiliary heads."""


def refuse_stages(shape: Shape, name: str) -> None:
    """Raises ValueError for a hierarchical encoder, whose blocks have other grids than its output."""
    if shape.stages:
        raise ValueError(f"head.blocks: head.name {name} cannot read blocks of a hierarchical encoder; leave it empty")


def check_blocks(blocks: tuple[int, ...], depth: int) -> None:
    """Raises ValueError if a block does not exist."""
    if wrong := [number for number in blocks if not 1 <= number <= depth]:
        raise ValueError(f"head.blocks {wrong[0]}: the encoder has the blocks 1 to {depth}")


def default_taps(depth: int) -> tuple[int, ...]:
    """Returns four blocks for UperNet: 4, 6, 8 and 12 of 12 (BEiT, MAE); for other depths, the last one of each quarter."""
    return (4, 6, 8, 12) if depth == 12 else tuple(max(1, round(depth * part / 4)) for part in (1, 2, 3, 4))


@heads.register("linear")
class LinearHead(DenseHead):
    """Dropout -> batch norm -> linear, at each token: the linear probe of DINOv2, DINOv3 and Pixio."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DenseHeadConfig):
        blocks: tuple[int, ...] = ()
        """Blocks, counted from 1, whose outputs are concatenated. Empty: the encoder's last output, after its norm."""

        class_token: bool = False
        """Concatenate the mean of the class tokens to each token (Pixio)."""

        dropout: Rate = 0.1
        """Rate of dropout of whole channels (DINOv3)."""

        std: AboveZero = 0.01
        """Standard deviation of the initial weights of the linear layer."""

        def required_features(self, shape: Shape) -> RequiredFeatures:
            check_blocks(self.blocks, shape.depth)
            return RequiredFeatures(last=not self.blocks, blocks=self.blocks)

    config: Config

    def __init__(self, config: Config, *, shape: Shape, classes: int) -> None:
        super().__init__(config)
        if config.class_token and not shape.class_tokens:
            raise ValueError("head.class_token: this encoder has none; leave it out")
        if config.blocks:
            refuse_stages(shape, "linear")
        width = shape.width * max(1, len(config.blocks)) * (2 if config.class_token else 1)
        self.dropout, self.norm = nn.Dropout2d(config.dropout), BatchNorm(width)
        self.linear = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.linear.weight, std=config.std)
        assert self.linear.bias is not None
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features, grid: Grid) -> tuple[Tensor, ...]:
        maps = block_maps(features, grid, self.config.blocks)
        if self.config.class_token:
            outputs = [features.blocks[number] for number in self.config.blocks] or [features.last]
            means = [tokens[:, : features.prefix - features.registers].mean(1) for tokens in outputs]
            maps += [mean[:, :, None, None].expand_as(maps[0]) for mean in means]
        x = self.dropout(torch.cat(maps, dim=1))  # (B, D', h, w)
        batch, _, height, width = x.shape
        normed = self.norm(x.movedim(1, -1).flatten(0, 2))  # (B h w, D')
        return (self.linear(normed.view(batch, height, width, -1).movedim(-1, 1)),)


def _layer(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Convolution -> batch norm -> ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@heads.register("convolutional")
class ConvolutionalHead(DenseHead):
    """Transposed convolutions that double the size, 3 x 3 convolutions, and a linear layer, on the encoder's last output."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DenseHeadConfig):
        channels: Positive = 256
        """Width of the convolutions."""

        layers: Positive = 2
        """Number of 3 x 3 convolutions."""

        doublings: int = 2
        """Number of times that height and width are doubled before these convolutions."""

        dropout: Rate = 0.1
        """Rate of dropout of whole channels before the linear layer."""

        def required_features(self, shape: Shape) -> RequiredFeatures:
            return RequiredFeatures(last=True)

        def validate(self) -> None:
            if not 0 <= self.doublings <= 4:
                raise ValueError(f"head.doublings {self.doublings}: give 0 to 4")

    def __init__(self, config: Config, *, shape: Shape, classes: int) -> None:
        super().__init__(config)
        steps: list[nn.Module] = []
        width = shape.width
        for _ in range(config.doublings):
            steps += [nn.ConvTranspose2d(width, config.channels, 2, 2), nn.BatchNorm2d(config.channels), nn.GELU()]
            width = config.channels
        for _ in range(config.layers):
            steps.append(_layer(width, config.channels, 3))
            width = config.channels
        self.layers = nn.Sequential(*steps)
        self.dropout, self.linear = nn.Dropout2d(config.dropout), nn.Conv2d(width, classes, 1)

    def forward(self, features: Features, grid: Grid) -> tuple[Tensor, ...]:
        return (self.linear(self.dropout(self.layers(block_maps(features, grid, ())[0]))),)


@heads.register("uper_net")
class UperNetHead(DenseHead):
    """UperNet (Xiao et al., ECCV 2018) with an auxiliary head, as BEiT and MAE use it.

    It reads four blocks, which a neck resizes to four scales, or the four stages of a hierarchical encoder.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(DenseHeadConfig):
        blocks: tuple[int, ...] = ()
        """Four blocks, counted from 1, whose outputs are read without the final norm. Empty: 4 6 8 12 of 12 blocks, otherwise the
        last block of each quarter of the depth. With a hierarchical encoder, its stages are always read."""

        channels: Positive | None = None
        """Width of the head. None: the encoder's width."""

        pools: tuple[int, ...] = (1, 2, 3, 6)
        """Sides to which the coarsest map is average-pooled."""

        dropout: Rate = 0.1
        """Rate of dropout of whole channels before a linear layer."""

        auxiliary: Positive = 256
        """Width of the auxiliary head, on the third map."""

        auxiliary_weight: NonNegative = 0.4
        """Weight of the auxiliary loss."""

        def required_features(self, shape: Shape) -> RequiredFeatures:
            check_blocks(self.blocks, shape.depth)
            stages = tuple(stage.block for stage in shape.stages)
            return RequiredFeatures(last=False, blocks=stages or self.blocks or default_taps(shape.depth))

        def validate(self) -> None:
            if self.blocks and len(self.blocks) != 4:
                raise ValueError(f"head.blocks has {len(self.blocks)} blocks; UperNet reads four")

    config: Config
    smallest_batch = 2  # batch norm cannot normalise a single value per channel, as in a map of one place

    def __init__(self, config: Config, *, shape: Shape, classes: int) -> None:
        super().__init__(config)
        if shape.stages and (len(shape.stages) != 4 or config.blocks):
            raise ValueError(
                f"head.name uper_net reads four stages, and this encoder has {len(shape.stages)}; leave out head.blocks"
            )
        self.blocks, self.stages = config.required_features(shape).blocks, shape.stages
        self.weights = (1.0, config.auxiliary_weight)
        widths = [stage.width for stage in shape.stages] or [shape.width] * 4
        channels, top = config.channels or shape.width, widths[3]
        self.scales = None if shape.stages else FourScales(shape.width)
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(side), _layer(top, channels, 1)) for side in config.pools)
        self.coarsest = _layer(top + len(config.pools) * channels, channels, 3)
        self.lateral = nn.ModuleList(_layer(width, channels, 1) for width in widths[:3])
        self.smooth = nn.ModuleList(_layer(channels, channels, 3) for _ in range(3))
        self.fuse = _layer(4 * channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(config.dropout), nn.Conv2d(channels, classes, 1))
        self.auxiliary = nn.Sequential(
            _layer(widths[2], config.auxiliary, 3), nn.Dropout2d(config.dropout), nn.Conv2d(config.auxiliary, classes, 1)
        )

    def forward(self, features: Features, grid: Grid) -> tuple[Tensor, ...]:
        if self.scales is None:
            maps = [stage_map(features.blocks[stage.block], grid, stage) for stage in self.stages]
        else:
            maps = self.scales(block_maps(features, grid, self.blocks))
        top = maps[3]
        pooled = [_resized(pool(top), top) for pool in self.pools]
        levels = [lateral(one) for lateral, one in zip(self.lateral, maps[:3], strict=True)]
        levels.append(self.coarsest(torch.cat([top, *pooled], dim=1)))
        for finer in (2, 1, 0):
            levels[finer] = levels[finer] + _resized(levels[finer + 1], levels[finer])
        smooth = [smooth(one) for smooth, one in zip(self.smooth, levels[:3], strict=True)]
        fused = self.fuse(torch.cat([smooth[0], *(_resized(one, smooth[0]) for one in (*smooth[1:], levels[3]))], dim=1))
        logits = self.classify(fused)  # (B, K, 4h, 4w)
        return (logits, self.auxiliary(maps[2])) if self.training else (logits,)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Interpolates a map bilinearly to the size of another one."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
