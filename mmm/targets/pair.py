"""Two targets at once (Dong et al., "BootMAE", ECCV 2022: pixels, and features of the encoder's moving average).

Shapes: kmB rows of Q predicted tokens, K1 and K2 values per token of the two targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.checks import NonNegative, ZeroToOne
from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import Features, Input
from mmm.targets.base import Samples, Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.latent import LatentTarget
from mmm.targets.pixels import PixelTarget


@targets.register("pair")
class PairTarget(Target):
    """Two targets whose values are both predicted; the loss is their weighted sum.

    One decoder may predict both; with decoder.name pair, each target has its own decoder. A pair may contain another pair.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetConfig):
        first: TargetConfig = PixelTarget.Config()
        """The first target."""

        second: TargetConfig = LatentTarget.Config()
        """The second target."""

        weights: tuple[NonNegative, NonNegative] = (1.0, 1.0)
        """Factors of the two losses."""

        second_rise: ZeroToOne = 0.0
        """Fraction of the run, from its beginning, over which the second factor rises from 0 to its value (BootMAE: 0.25)."""

    config: Config
    risen: Tensor  # (), the reached fraction of the second factor

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: nn.Module) -> None:
        """Builds both targets."""
        super().__init__()
        self.config = config
        self.first, self.second = (
            targets.build(one, token=token, data=data, encoder=encoder) for one in (config.first, config.second)
        )
        self.width = sum(self.widths)
        if config.second_rise:
            self.register_buffer("risen", torch.zeros(()))

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of values of the two targets."""
        return sum(self.first.widths), sum(self.second.widths)

    @property
    def both(self) -> tuple[tuple[Target, float | Tensor], ...]:
        """The two targets, each with its factor."""
        first, second = self.config.weights
        return (self.first, first), (self.second, second * self.risen if self.config.second_rise else second)

    @property
    def across_batch(self) -> bool:
        """True if a sample's target depends on the batch for at least one of the two."""
        return self.first.across_batch or self.second.across_batch

    @property
    def compares_repeats(self) -> bool:
        """True if at least one of the two compares the samples of an input."""
        return self.first.compares_repeats or self.second.compares_repeats

    @property
    def may_collapse(self) -> bool:
        """True if at least one of the two may collapse."""
        return self.first.may_collapse or self.second.may_collapse

    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Prepares both targets."""
        for one, _ in self.both:
            one.begin(model, load, samples)

    def unsaved(self) -> dict[str, Tensor]:
        """Returns the weights that the two targets have read."""
        parts = {"first": self.first, "second": self.second}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.unsaved().items()}

    def scores(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns the scores of the first of the two that has a teacher."""
        try:
            return self.first.scores(x, patches, grid)
        except ValueError:
            return self.second.scores(x, patches, grid)

    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns both targets of every token, and the weighted sum of the losses of their own parameters, if they have any."""
        found = [(one.teach(x, patches, grid), weight) for one, weight in self.both]
        own = [one.loss * weight for one, weight in found if one.loss is not None]
        return TokenTargets(tuple(one for one, _ in found), torch.stack(own).sum() if own else None)

    def pick(self, token_targets: TokenTargets, mask: Mask) -> TargetValues:
        """Returns both targets for a mask."""
        return tuple(one.pick(own, mask) for (one, _), own in zip(self.both, token_targets.tokens, strict=True))

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the weighted sum of both losses. A prediction, (kmB, Q, K1 + K2), has the K1 values of a token first."""
        parts = zip(self.both, prediction.split(self.widths, dim=2), target, strict=True)
        return torch.stack([one.loss(own, values, mask, features) * weight for (one, weight), own, values in parts]).sum()

    def update(self, model: Any, step: int, steps: int, made: Tensor) -> None:
        """Updates both targets, and the factor of the second."""
        for one, _ in self.both:
            one.update(model, step, steps, made)
        if self.config.second_rise:
            self.risen.fill_(min(1.0, step / steps / self.config.second_rise))

    @property
    def uses_original(self) -> bool:
        """True if `show` of the first target uses values of the original."""
        return self.first.uses_original

    @property
    def shows_pixels(self) -> bool:
        """True if `show` of the first target returns pixels."""
        return self.first.shows_pixels

    def show(self, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor | None:
        """Returns the prediction of the first target as pixels, or None."""
        return self.first.show(prediction[..., : self.widths[0]], patches, mask)
