"""Weights of inter-block fusion: the encoder maps that each decoder block reads (Fu et al., TMLR 2025, section 3.4).

The weights alone are hard to compare, because the maps differ in size and each weighted sum is normalised. So there are two
measures: the weights themselves, and the contribution of each map, which is |weight| times its root mean square, as a share of the
sum over the maps of the block.

Shapes: d decoder blocks, k maps (0 is the input of the encoder's first block).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.types import Features
from mmm.decoders.fusion import LinearFusion


def fusion_of(decoder: nn.Module) -> LinearFusion | None:
    """Returns the learned fusion of a decoder. None: the decoder has no fusion."""
    return next((part for part in decoder.modules() if isinstance(part, LinearFusion)), None)


@dataclass
class MapSizes:
    """Accumulates the mean squares of the encoder's maps over batches.

    Attributes:
        squares: sum of the mean squares of each map, by its number.
        samples: number of samples.
    """

    squares: dict[int, float] = field(default_factory=dict)
    samples: int = 0

    @torch.no_grad()
    def add(self, features: Features) -> None:
        """Adds the maps of a batch."""
        many = len(features.last)
        for number, one in features.blocks.items():
            self.squares[number] = self.squares.get(number, 0.0) + one.cpu().double().square().mean().item() * many
        self.samples += many

    def of(self, blocks: tuple[int, ...]) -> Tensor:
        """Returns the root mean square of each map, fp64 (k,)."""
        return torch.tensor([self.squares[block] / self.samples for block in blocks], dtype=torch.float64).sqrt()


@torch.no_grad()
def fusion_weights(fusion: LinearFusion, sizes: MapSizes) -> dict[str, Any]:
    """Returns plain numbers: `maps`, their numbers; `weights` (d, k); `shares` (d, k), each row of sum 1; `sizes` (k,)."""
    weights, size = fusion.mix.weight.cpu().double(), sizes.of(fusion.blocks)
    part = weights.abs() * size
    shares = part / part.sum(1, keepdim=True)
    return {"maps": list(fusion.blocks), "weights": weights.tolist(), "shares": shares.tolist(), "sizes": size.tolist()}
