"""Samples of different numbers of tokens as one sequence, in which each sample attends to itself alone.

What works on each token by itself (linear layers, norms) sees one sequence. Attention takes it apart into batches of samples of one
length, which is a block-diagonal mask without the empty blocks, exact on every device.

Shapes: B samples of a group, M tokens of each, D width, T tokens of all groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """The places of the tokens of each sample in a sequence: group after group, sample after sample.

    Attributes:
        shapes: B and M of each group.
    """

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, groups: Sequence[Tensor]) -> Packing:
        """The packing of groups of tokens, (B, M, D) each."""
        return cls(tuple((group.shape[0], group.shape[1]) for group in groups))

    def pack(self, groups: Sequence[Tensor]) -> Tensor:
        """Joins groups of (B, M, D), or (1, M, D) for all samples of a group, to (1, T, D)."""
        rows = [group.expand(count, -1, -1).flatten(0, 1) for group, (count, _) in zip(groups, self.shapes, strict=True)]
        return torch.cat(rows)[None]

    def unpack(self, tokens: Tensor) -> list[Tensor]:
        """Takes (1, T, D) apart into groups of (B, M, D), views of it."""
        parts = tokens[0].split([count * length for count, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def pack_valid(self, groups: Sequence[Tensor | None]) -> Tensor | None:
        """Joins which tokens are no padding, bool (B, M) or None for all in each group, to (1, T); None: all."""
        given = [group for group in groups if group is not None]
        if not given:
            return None
        assert len(given) == len(groups), "a masker pads all grids, or none"
        return torch.cat([group.flatten() for group in given])[None]

    def unpack_valid(self, valid: Tensor | None) -> list[Tensor | None]:
        """The inverse of `pack_valid`."""
        return [None] * len(self.shapes) if valid is None else [*self.unpack(valid)]

    def each(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Applies a function that keeps the shape of (B, M, D) to each group of (1, T, D)."""
        return self.pack([function(group) for group in self.unpack(tokens)])
