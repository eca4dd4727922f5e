"""What every target is and may do.

Shapes: B samples, N tokens, P values a token, kmB rows of Q predicted tokens, K values predicted a token.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid

targets: Registry[Target] = Registry("target")


class Target(nn.Module):
    """What is predicted. Built with `width` (P), `data` and the `encoder`, of which a teacher may keep a copy.

    Attributes:
        config: the user's choices.
        width: K, values predicted a token.
    """

    config: PartConfig
    width: int

    @abstractmethod
    def forward(self, x: Tensor, patches: Tensor, mask: Mask, grid: Grid) -> Tensor:
        """What is wanted of the predicted tokens, without a gradient: fp32 (kmB, Q, K), or classes, int64 (kmB, Q).

        Args:
            x: the model's input, (B, C, H, W) or (B, C, T, H, W).
            patches: its tokens' raw values, (B, N, P).
            mask: with `predict` (kmB, Q).
            grid: the arrangement of the N tokens.
        """

    @abstractmethod
    def loss(self, predicted: Tensor, wanted: Tensor, mask: Mask) -> Tensor:
        """How far (kmB, Q, K) is off what is wanted, ()."""

    def update(self, model: nn.Module, step: int) -> None:
        """Called after each training step; a teacher follows the encoder here. Nothing for a fixed target."""

    @property
    def uses_original(self) -> bool:
        """Whether `show` puts back something of the original that a prediction does not hold."""
        return False

    def show(self, predicted: Tensor, patches: Tensor, mask: Mask) -> Tensor | None:
        """Predictions as normalised pixels, (kmB, Q, P), where they can be looked at; else None."""
        return None
