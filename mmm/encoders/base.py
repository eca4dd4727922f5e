"""What every encoder is, and what it says of itself before it is built."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid
from mmm.core.types import Features, Shape

encoders: Registry[Encoder] = Registry("encoder")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(PartConfig):
    """What every encoder is told."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Width, depth and number of prefix tokens."""


class Encoder(nn.Module):
    """Turns patches into features. Built with the `token` size, `channels`, the home `grid`, what is read (`reads`), and whether
    masks leave `blanks`.

    Attributes:
        config: the user's choices.
        shape: the config's.
    """

    config: EncoderConfig
    shape: Shape

    @abstractmethod
    def forward(self, patches: Tensor, grid: Grid, mask: Mask | None, blocks: tuple[int, ...] | None = None) -> Features:
        """Features of the tokens that the mask shows; without a mask, of all in order. patches: (B, N, P)."""
