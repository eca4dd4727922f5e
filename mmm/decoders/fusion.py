"""Fusion of the outputs of several of the encoder's blocks.

Inter-block fusion (Fu et al., "Rethinking Patch Dependence for Masked Autoencoders" (CrossMAE), TMLR 2025, section 3.4): each
decoder block reads its own learned, weighted sum of the outputs of the encoder's blocks.

Fusion over stages (Ryali et al., "Hiera", ICML 2023, section 3): strided convolutions bring the finer stages of a hierarchical
encoder to the size and width of its last stage, and are added to it.

Joined levels (V-JEPA 2.1, 2026): the normed outputs of some blocks are concatenated and projected to the encoder's width.

Shapes: mB rows, M encoded tokens (including prefix tokens), D width of the encoder, k summed feature maps, d decoder blocks; a
token covers a b ... tokens of width D' of a finer stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.types import Features, RequiredFeatures, Shape, Stage
from mmm.decoders.base import DecoderConfig
from mmm.layers.transformer import Embedding


@dataclass(frozen=True, kw_only=True)
class FusedDecoderConfig(DecoderConfig):
    """Base of the `Config` of decoders that can read a weighted sum of the encoder's blocks."""

    fusion: Literal["none", "linear", "stages", "levels"] = "none"
    """Input from the encoder: its last, normed output (none); a learned weighted sum of the normed outputs of its blocks (linear);
    the last output of a hierarchical encoder plus its finer stages, which convolutions bring to that size, normed (stages); or the
    normed outputs of several blocks, concatenated and passed through a linear layer and a GELU (levels: V-JEPA 2.1)."""

    fusion_blocks: tuple[int, ...] | None = None
    """The encoder's blocks that are read, counted from 1, if fusion is linear or levels. None: all blocks."""

    fusion_input: bool = True
    """Also add the input of the first block, if fusion is linear."""

    def required_features(self, encoder: Shape) -> RequiredFeatures:
        """Returns the last output, or the blocks that are summed; in that case the encoder's final norm is not built."""
        depth = encoder.depth
        if self.fusion == "none":
            return RequiredFeatures(last=True)
        if self.fusion in ("linear", "levels") and encoder.stages:
            raise ValueError(f"decoder.fusion {self.fusion} needs blocks of one width, and the stages here differ; use stages")
        if self.fusion == "stages" and not encoder.stages:
            raise ValueError("decoder.fusion stages is for hierarchical encoders, and this one has no stages; use linear")
        if self.fusion == "stages":
            return RequiredFeatures(last=False, blocks=(*(stage.block for stage in finer_stages(encoder)), depth))
        blocks = tuple(range(1, depth + 1)) if self.fusion_blocks is None else self.fusion_blocks
        if not blocks or not all(1 <= block <= depth for block in blocks):
            raise ValueError(f"decoder.fusion_blocks {blocks} are not all among the encoder's blocks 1 to {depth}")
        if self.fusion == "levels":
            return RequiredFeatures(last=False, blocks=blocks)
        return RequiredFeatures(last=False, blocks=(0, *blocks) if self.fusion_input else blocks)


class WeightedSums(torch.autograd.Function):
    """d weighted sums of k feature maps, (d, k) and k times (mB, M, D) -> (d, mB, M, D), both with the same precision.

    For the backward pass it keeps the maps themselves, which the encoder's blocks keep in any case, instead of a copy of all maps;
    with 25 % predicted the copy would take 4 % of a step's memory.
    """

    @staticmethod
    def forward(weight: Tensor, *maps: Tensor) -> Tensor:
        """Returns the sums, computed by one product (d, k) x (k, mB M D)."""
        return (weight @ _stack(maps, weight).flatten(1)).unflatten(1, maps[0].shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Saves the weight and the maps."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of the weight and of each map, from (d, mB, M, D)."""
        weight, *maps = ctx.saved_tensors
        to_maps = (weight.T @ gradient.flatten(1)).unflatten(1, maps[0].shape)  # (k, mB, M, D)
        # one product per row, then their sum, because a single product of (d, mB M D) and (mB M D, k) has too few outputs for a GPU
        rows = _stack(maps, weight).flatten(2).permute(1, 2, 0)  # (mB, M D, k)
        to_weight = (gradient.flatten(2).transpose(0, 1) @ rows).sum(0)  # (mB, d, k) -> (d, k)
        return to_weight, *to_maps.unbind(0)


def _stack(maps: Sequence[Tensor], like: Tensor) -> Tensor:
    """Stacks the maps in the precision of `like`, (k, mB, M, D)."""
    return torch.stack([one.to(like.dtype) for one in maps])


class LinearFusion(nn.Module):
    """d weighted sums of k feature maps, each with its own norm.

    The published code stacks the maps along a new innermost axis, which interleaves k values of stride M D, and multiplies along
    it; this takes a third of its epoch. Here the maps are stacked one after the other, and one product computes the sums.
    """

    def __init__(self, width: int, blocks: tuple[int, ...], inputs: int, epsilon: float) -> None:
        super().__init__()
        self.blocks = blocks
        self.mix = nn.Linear(len(blocks), inputs, bias=False)  # weight (d, k), initialised like the other matrices
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=epsilon) for _ in range(inputs))

    def forward(self, features: Features) -> list[Tensor]:
        """Returns d inputs of decoder blocks, each (mB, M, D)."""
        maps, weight = [features.blocks[block] for block in self.blocks], self.mix.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        fused = WeightedSums.apply(weight.to(dtype), *maps)  # (d, mB, M, D)
        return [norm(one) for norm, one in zip(self.norms, fused.unbind(0), strict=True)]


class StageFusion(nn.Module):
    """The last block's output plus that of each finer stage, brought to its size and width, normed; all decoder blocks read it."""

    def __init__(self, encoder: Shape, inputs: int, epsilon: float) -> None:
        super().__init__()
        self.stages, self.depth, self.inputs = finer_stages(encoder), encoder.depth, inputs
        self.embeds = nn.ModuleList(Embedding(stage.inner, stage.width, encoder.width) for stage in self.stages)
        self.norm = nn.LayerNorm(encoder.width, eps=epsilon)

    def forward(self, features: Features) -> list[Tensor]:
        """Returns the sum, (mB, M, D), d times."""
        total = features.blocks[self.depth]
        for stage, embed in zip(self.stages, self.embeds, strict=True):
            total = total + embed(features.blocks[stage.block])  # (mB, M, a b ... D') -> (mB, M, D)
        return [self.norm(total)] * self.inputs


class LevelFusion(nn.Module):
    """The outputs of k blocks, each with its own norm, joined and projected to the encoder's width, for all decoder blocks."""

    def __init__(self, width: int, blocks: tuple[int, ...], inputs: int, epsilon: float) -> None:
        super().__init__()
        self.blocks, self.inputs = blocks, inputs
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=epsilon) for _ in blocks)
        self.mix = nn.Linear(len(blocks) * width, width)

    def forward(self, features: Features) -> list[Tensor]:
        """Returns the projection, (mB, M, D), d times."""
        levels = [norm(features.blocks[block]) for norm, block in zip(self.norms, self.blocks, strict=True)]
        return [F.gelu(self.mix(torch.cat(levels, dim=-1)))] * self.inputs


def finer_stages(encoder: Shape) -> tuple[Stage, ...]:
    """Returns the stages of an encoder whose tokens are smaller than those of its output."""
    return tuple(stage for stage in encoder.stages if math.prod(stage.inner) > 1)


def make_fusion(config: FusedDecoderConfig, encoder: Shape, inputs: int, epsilon: float) -> nn.Module | None:
    """Builds the fusion that the config names; it returns `inputs` (d) maps of the encoder's width, one for each decoder block.

    Returns None if every decoder block reads the encoder's last, normed output.
    """
    required = config.required_features(encoder)
    if config.fusion == "none":
        return None
    if config.fusion == "stages":
        return StageFusion(encoder, inputs, epsilon)
    kind = LevelFusion if config.fusion == "levels" else LinearFusion
    return kind(encoder.width, required.blocks, inputs, epsilon)
