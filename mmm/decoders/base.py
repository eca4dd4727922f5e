"""The interface of decoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid
from mmm.core.types import Features, RequiredFeatures, Shape

decoders: Registry[Decoder] = Registry("decoder")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(PartConfig):
    """Base of every decoder's `Config`."""

    kind: ClassVar[str] = "decoder"

    def required_features(self, encoder: Shape) -> RequiredFeatures:
        """Returns the features that it requires of an encoder of this shape. By default the output of the final norm."""
        return RequiredFeatures(last=True)


class Decoder(nn.Module):
    """Turns features into predictions. Built with the `encoder`'s shape, the home `grid`, and the `outputs` a token, a number for
    each target; their sum is K.

    Attributes:
        config: the user's choices.
        takes_padding: whether predictions do not depend on padding (`Features.valid`, `Mask.valid_predict`).
    """

    config: DecoderConfig
    takes_padding: bool = False

    @abstractmethod
    def forward(self, features: Features, mask: Mask, grid: Grid) -> Tensor:
        """Predictions of the tokens in `mask.predict`, (kmB, Q, K)."""

    def packed(self, features: Sequence[Features], masks: Sequence[Mask], grids: Sequence[Grid]) -> list[Tensor]:
        """Predictions of batches of different grids, each as `forward` returns them. By default the batches are decoded in turn."""
        return [self(*one) for one in zip(features, masks, grids, strict=True)]
