"""Packs samples with different numbers of tokens into one sequence, in which each sample attends only to itself.

Layers that treat each token separately (linear layers, norms) process one sequence. Attention splits it into batches of samples of
equal length, which is the same as a block-diagonal mask, but computes no empty blocks and is exact on every device.

Shapes: B samples of a group, M tokens of each sample, D width, T tokens of all groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """The positions of the tokens of each sample in a sequence: group after group, sample after sample.

    Attributes:
        shapes: B and M of each group.
    """

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, groups: Sequence[Tensor]) -> Packing:
        """Returns the packing of groups of tokens, each (B, M, D)."""
        return cls(tuple((group.shape[0], group.shape[1]) for group in groups))

    def pack(self, groups: Sequence[Tensor]) -> Tensor:
        """Joins groups of (B, M, D), or of (1, M, D) for all samples of a group, to (1, T, D)."""
        rows = [group.expand(count, -1, -1).flatten(0, 1) for group, (count, _) in zip(groups, self.shapes, strict=True)]
        return torch.cat(rows)[None]

    def unpack(self, tokens: Tensor) -> list[Tensor]:
        """Splits (1, T, D) into groups of (B, M, D), which are views of it."""
        parts = tokens[0].split([count * length for count, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def pack_valid(self, groups: Sequence[Tensor | None]) -> Tensor | None:
        """Joins masks of valid tokens (no padding), bool (B, M) per group, to (1, T). None: all tokens are valid."""
        given = [group for group in groups if group is not None]
        if not given:
            return None
        assert len(given) == len(groups), "a masker pads all grids, or none"
        return torch.cat([group.flatten() for group in given])[None]

    def unpack_valid(self, valid: Tensor | None) -> list[Tensor | None]:
        """Splits a mask of valid tokens into those of the groups, the inverse of `pack_valid`."""
        return [None] * len(self.shapes) if valid is None else [*self.unpack(valid)]

    def each(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Applies a function that keeps the shape (B, M, D) to each group of (1, T, D)."""
        return self.pack([function(group) for group in self.unpack(tokens)])
