"""Inter-block fusion (Fu et al., "Rethinking Patch Dependence for Masked Autoencoders" (CrossMAE), TMLR 2025, section 3.4): each
decoder block reads its own learned, weighted sum of the outputs of the encoder's blocks.

Shapes: mB rows, M encoded tokens (prefix among them), D the encoder's width, k feature maps that are added up, d decoder blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmm.core.types import Features, Reads, Shape
from mmm.decoders.base import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class FusedDecoderConfig(DecoderConfig):
    """Options of decoders that can read a weighted sum of the encoder's blocks."""

    fusion: Literal["none", "linear"] = "none"
    """Features that are read: the normed output of the encoder, or a learned weighted sum of its blocks, normed."""

    fusion_blocks: tuple[int, ...] | None = None
    """The encoder's blocks that are mixed, counted from 1, where fusion is linear; none: all of them."""

    fusion_input: bool = True
    """Mix in what enters the first block, too, where fusion is linear."""

    def reads(self, depth: int) -> Reads:
        """The last output, or the blocks that are mixed; then the encoder's final norm is not built."""
        if self.fusion == "none":
            return Reads(last=True)
        blocks = tuple(range(1, depth + 1)) if self.fusion_blocks is None else self.fusion_blocks
        if not blocks or not all(1 <= block <= depth for block in blocks):
            raise ValueError(f"decoder.fusion_blocks {blocks} are not all among the encoder's blocks 1 to {depth}")
        if depth not in blocks:  # what nobody reads gets no gradient, and DDP waits for it
            raise ValueError(f"decoder.fusion_blocks {blocks} leave out the encoder's last block, {depth}; add it")
        return Reads(last=False, blocks=(0, *blocks) if self.fusion_input else blocks)


class LastOutput(nn.Module):
    """No fusion: every decoder block reads the encoder's last, normed output."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, features: Features) -> list[Tensor]:
        """d times the same (mB, M, D)."""
        return [features.last] * self.inputs


class WeightedSums(torch.autograd.Function):
    """d weighted sums of k feature maps, (d, k) and k times (mB, M, D) -> (d, mB, M, D), both of one precision.

    For the backward pass it keeps the maps themselves, which the encoder's blocks keep anyway, instead of a copy of them all: with
    25 % predicted that is 4 % of a step's memory.
    """

    @staticmethod
    def forward(weight: Tensor, *maps: Tensor) -> Tensor:
        """The sums, by one product (d, k) x (k, mB M D)."""
        return (weight @ _stack(maps, weight).flatten(1)).unflatten(1, maps[0].shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keeps the weight and the maps."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the weight and of each map, from (d, mB, M, D)."""
        weight, *maps = ctx.saved_tensors
        to_maps = (weight.T @ gradient.flatten(1)).unflatten(1, maps[0].shape)  # (k, mB, M, D)
        # row by row, and then their sum: one product of (d, mB M D) and (mB M D, k) gives a GPU d k numbers to share out
        rows = _stack(maps, weight).flatten(2).permute(1, 2, 0)  # (mB, M D, k)
        to_weight = (gradient.flatten(2).transpose(0, 1) @ rows).sum(0)  # (mB, d, k) -> (d, k)
        return to_weight, *to_maps.unbind(0)


def _stack(maps: Sequence[Tensor], like: Tensor) -> Tensor:
    """(k, mB, M, D), in the precision of `like`."""
    return torch.stack([one.to(like.dtype) for one in maps])


class LinearFusion(nn.Module):
    """d weighted sums of k feature maps, each with its own norm.

    The published code stacks the maps along a new innermost axis, which lays k values of stride M D side by side, and multiplies
    there; it costs a third of its epoch. Here the maps lie one after the other, and one product adds them up.
    """

    def __init__(self, width: int, blocks: tuple[int, ...], inputs: int, epsilon: float) -> None:
        super().__init__()
        self.blocks = blocks
        self.mix = nn.Linear(len(blocks), inputs, bias=False)  # holds (d, k), and is initialised as the other matrices are
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=epsilon) for _ in range(inputs))

    def forward(self, features: Features) -> list[Tensor]:
        """d inputs of decoder blocks, (mB, M, D) each."""
        maps, weight = [features.blocks[block] for block in self.blocks], self.mix.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        fused = WeightedSums.apply(weight.to(dtype), *maps)  # (d, mB, M, D)
        return [norm(one) for norm, one in zip(self.norms, fused.unbind(0), strict=True)]


def make_fusion(config: FusedDecoderConfig, encoder: Shape, inputs: int, epsilon: float) -> nn.Module:
    """Builds the fusion that the config names; it returns `inputs` (d) maps of the encoder's width, one for each decoder block."""
    reads = config.reads(encoder.depth)
    return LastOutput(inputs) if reads.last else LinearFusion(encoder.width, reads.blocks, inputs, epsilon)
