"""Masks as sets of indices instead of 0/1 maps, whose meaning could be inverted.

Shapes: B samples, m masks per sample, k groups per mask, V visible, Q predicted, H hidden tokens that the encoder sees as blanks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmm.core.types import pytree


@pytree
@dataclass(frozen=True, eq=False)  # the equality of tensors is not a single truth value
class Mask:
    """Sets of tokens: the visible tokens, which the encoder sees, and the predicted tokens.

    Attributes:
        visible: int64 (mB, V), tokens whose values the encoder may see, in any order.
        predict: int64 (kmB, Q), tokens that are predicted.
        blank: int64 (mB, H), tokens that the encoder sees as its mask token (SimMIM, BEiT), or None: hidden tokens are dropped.
        weight: float (kmB, Q), factor of the loss of each prediction before the mean (0 for padding). None: 1. The factor
            depends only on its own sample, so that a batch can be computed in parts.
        echo: E, the number of predicted tokens, the last ones of each row, that are visible. They are the first E of `visible`, in
            its order, and are predicted at their own positions (V-JEPA 2.1).
        also: further masks of the same samples, with other numbers of tokens (V-JEPA's second family).
        valid: bool (mB, V + H), False for tokens of `where` that are padding. None: all are valid. Rows of different lengths are
            padded with copies of one of their own tokens, which attention ignores.
        valid_predict: bool (kmB, Q), the same for the predicted tokens; padding has weight 0.

    Raises:
        ValueError: the shapes are inconsistent.
    """

    visible: Tensor
    predict: Tensor
    blank: Tensor | None = None
    weight: Tensor | None = None
    echo: int = 0
    also: tuple[Mask, ...] = ()
    valid: Tensor | None = None
    valid_predict: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("visible", "predict", "blank"):
            index = getattr(self, name)
            if index is not None and index.dtype != torch.int64:
                raise ValueError(f"mask.{name} holds the indices of tokens, int64, and not {index.dtype}")
        if self.visible.dim() != 2 or self.predict.dim() != 2:
            raise ValueError(
                f"a mask's index sets are two-dimensional (rows, tokens): visible is {tuple(self.visible.shape)}, "
                f"predict {tuple(self.predict.shape)}"
            )
        if not self.visible.numel() or not self.predict.numel():
            empty = "predict" if self.visible.numel() else "visible"
            raise ValueError(
                f"mask.{empty} is empty, {tuple(getattr(self, empty).shape)}; there must be something to see and to predict"
            )
        if len(self.predict) % len(self.visible):
            raise ValueError(f"predict has {len(self.predict)} rows, not a multiple of visible's {len(self.visible)}")
        if self.blank is not None and len(self.blank) != len(self.visible):
            raise ValueError(f"blank has {len(self.blank)} rows, visible {len(self.visible)}")
        if self.weight is not None and self.weight.shape != self.predict.shape:
            raise ValueError(f"weight is {tuple(self.weight.shape)}, predict {tuple(self.predict.shape)}")
        if self.weight is not None and not self.weight.is_floating_point():
            raise ValueError(f"mask.weight holds factors of the loss, a floating-point type, and not {self.weight.dtype}")
        if (self.valid is None) is not (self.valid_predict is None):
            raise ValueError("mask.valid and mask.valid_predict mark the tokens that are not padding; give both or none")
        for name, index in (("valid", self.where), ("valid_predict", self.predict)):
            valid = getattr(self, name)
            if valid is not None and (valid.shape != index.shape or valid.dtype != torch.bool):
                raise ValueError(
                    f"mask.{name} marks the tokens that are not padding and must be bool of shape {tuple(index.shape)}, "
                    f"not {valid.dtype} of shape {tuple(valid.shape)}"
                )
        if not 0 <= self.echo <= self.predict.shape[1]:
            raise ValueError(f"echo {self.echo} is not among the {self.predict.shape[1]} tokens that are predicted")
        if self.echo > self.visible.shape[1]:
            raise ValueError(f"echo {self.echo} is more than the {self.visible.shape[1]} tokens that are visible")
        if any(mask.also for mask in self.also):
            raise ValueError("a mask in mask.also has its own mask.also; put all masks into one tuple")

    @property
    def families(self) -> tuple[Mask, ...]:
        """All masks of these samples: this mask, then those in `also`."""
        return (self, *self.also)

    @property
    def where(self) -> Tensor:
        """The tokens that the encoder reads, in its order: visible tokens, then blanks, (mB, V + H)."""
        return self.visible if self.blank is None else torch.cat([self.visible, self.blank], dim=1)

    def trimmed(self) -> Mask:
        """Returns a mask without padding, whose rows all have the shortest length in the batch. The host waits for the device."""
        if self.valid is None or self.valid_predict is None:
            return self
        seen, blank = self.valid.split([self.visible.shape[1], self.valid.shape[1] - self.visible.shape[1]], dim=1)
        lengths = [int(one.sum(1).min()) for one in (seen, blank, self.valid_predict)]
        rest = None if self.blank is None else self.blank[:, : lengths[1]]
        weight = None if self.weight is None else self.weight[:, : lengths[2]]
        return Mask(self.visible[:, : lengths[0]], self.predict[:, : lengths[2]], rest, weight, self.echo)

    def to(self, device: torch.device | str) -> Mask:
        """Returns the mask on another device."""
        return tree_map_only(Tensor, lambda value: value.to(device), self)

    def checked(self, samples: int, tokens: int) -> Mask:
        """Returns this mask if it is valid for `samples` samples with `tokens` tokens each.

        Raises:
            ValueError: the number of rows is not a multiple of the samples, or an index is not a token (checked only on a CPU,
                because the check would wait for another device).
        """
        if len(self.visible) % samples:
            raise ValueError(f"the mask has {len(self.visible)} rows for {samples} samples; give each sample the same number")
        if self.visible.device.type == "cpu" and not torch.compiler.is_compiling():
            for name in ("visible", "predict", "blank"):
                index = getattr(self, name)
                if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < tokens:
                    raise ValueError(
                        f"mask.{name} holds indices from {int(index.min())} to {int(index.max())}; "
                        f"this input has tokens 0 to {tokens - 1}"
                    )
        for mask in self.also:
            mask.checked(samples, tokens)
        return self
