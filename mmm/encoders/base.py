"""The interface of encoders."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid, take
from mmm.core.types import BlockOutput, Features, RequiredFeatures, Shape

encoders: Registry[Encoder] = Registry("encoder")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(PartConfig):
    """Base of every encoder's `Config`."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Width, depth and number of prefix tokens."""

    @property
    def token(self) -> int | None:
        """The side of a token in pixels, which the tokenizer must have. None: any."""
        return None


class Encoder(nn.Module):
    """Turns patches into features. Built with the `token` size, `channels`, the home `grid`, the features that the decoder requires
    (`required`), and whether masks leave `blanks`.

    A subclass implements `encode`, which gets only the values of visible tokens. Hidden pixels therefore cannot reach it.

    Attributes:
        config: the user's choices.
        shape: the config's.
        home: the grid that the encoder was built for; any other grid can be encoded too.
        required: the features that are returned where `forward` does not name others.
        block_outputs: the kinds of block outputs that can be returned.
        block_output: the kind that is returned; a teacher may change it.
        takes_padding: whether `encode` takes a last argument `valid`, bool (mB, R + V + H), and leaves padding out.
        no_compile: the reason why torch.compile cannot train it, or None.
        mask_token: (1, 1, D), the token in place of each blank token, or None. A subclass makes it if `blanks` is true.
    """

    block_outputs: ClassVar[tuple[BlockOutput, ...]] = ("block",)
    block_output: BlockOutput = "block"
    takes_padding: ClassVar[bool] = False
    no_compile: ClassVar[str | None] = None
    mask_token: nn.Parameter | None

    def __init__(self, config: EncoderConfig, *, grid: Grid, required: RequiredFeatures) -> None:
        super().__init__()
        self.config, self.shape, self.home, self.required = config, config.shape, grid, required
        self.register_parameter("mask_token", None)

    def forward(self, patches: Tensor, grid: Grid, mask: Mask | None, blocks: tuple[int, ...] | None = None) -> Features:
        """Features of the visible and blank tokens of a mask; without a mask, of all tokens in order.

        Args:
            patches: raw values of every token, (B, N, P).
            grid: the arrangement of the N tokens.
            mask: with (mB, V) visible tokens and, where tokens are blanked, (mB, H) blank ones.
            blocks: the blocks whose outputs are returned; None: those that the decoder requires.
        """
        visible, where, valid = shown(patches, grid, mask, self.shape.prefix)
        encode: Any = self.encode
        padding = {} if valid is None else {"valid": valid}
        return encode(visible, where, grid, self.required.blocks if blocks is None else blocks, **padding)

    def packed(self, patches: Sequence[Tensor], grids: Sequence[Grid], masks: Sequence[Mask]) -> list[Features]:
        """Features of batches of different grids, each as `forward` returns them. By default the batches are encoded in turn."""
        return [self(*one) for one in zip(patches, grids, masks, strict=True)]

    @abstractmethod
    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...]) -> Features:
        """Features of visible and blank tokens.

        Args:
            visible: raw values of the visible tokens, (mB, V, P).
            where: place on the grid of each visible token, then of each blank one, (mB, V + H); or (1, N) for all tokens in order.
            grid: the arrangement of the N tokens.
            blocks: the blocks whose outputs are returned; 0 is the input of the first.
        """

    def state_at(self, grid: Grid) -> dict[str, Tensor]:
        """The state of the same encoder for another home grid. By default nothing in it depends on the grid.

        Args:
            grid: with as many axes as the home grid.
        """
        return self.state_dict()

    def append_mask_tokens(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Appends a mask token for each blank token to the visible tokens, (mB, V, D) -> (mB, V + H, D).

        Raises:
            ValueError: there are blank tokens, and the encoder has no mask token.
        """
        blanks = where.shape[1] - tokens.shape[1]
        if not blanks:
            return tokens
        if self.mask_token is None:
            raise ValueError("the mask blanks tokens, but the encoder has no mask token; build it with masker.blank")
        return torch.cat([tokens, self.mask_token.expand(tokens.shape[0], blanks, -1)], dim=1)


def shown(patches: Tensor, grid: Grid, mask: Mask | None, prefix: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the inputs of `encode`: values (mB, V, P), places (mB, V + H) or (1, N) for all tokens, and the tokens that count.

    The last is bool (mB, R + V + H), with True for all tokens except padding; None if there is no padding. The R prefix tokens are
    never padding.
    """
    if mask is None:
        return patches, torch.arange(math.prod(grid), device=patches.device)[None], None
    valid = None if mask.valid is None else F.pad(mask.valid, (prefix, 0), value=True)
    return take(patches, mask.visible), mask.where, valid
