"""Masking by a teacher's attention (Li et al., "Unmasked Teacher", ICCV 2023, section 3.1): tokens with high attention are visible.

Shapes: B samples, mB masks, T' frames of P places, N = T' P tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmm.core.checks import Fraction
from mmm.core.mask import Mask
from mmm.core.rng import uniform
from mmm.core.tokens import Grid, repeat_rows
from mmm.maskers.base import Masker, MaskerConfig, maskers


@maskers.register("attention")
class AttentionMasker(Masker):
    """Draws the visible tokens of each frame without replacement, with probabilities in proportion to their scores.

    Each token gets a time from an exponential distribution whose rate is its score; the earliest tokens are visible. The scores
    come from the teacher, so that the masks can differ between devices by its rounding.
    """

    needs_scores = True

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        ratio: Fraction = 0.8
        """Fraction of the tokens of each frame that are hidden."""

        def validate(self) -> None:
            super().validate()
            self.refuse("unit")

    def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1, scores: Tensor | None = None) -> Mask:
        """Returns the masks of a batch; see `Masker.forward`.

        Raises:
            ValueError: there are no scores, or their grid is another one.
        """
        if scores is None:
            raise ValueError(
                "masker.name attention needs a score for each token; use a target with a teacher that computes attention"
            )
        plane, tokens = math.prod(grid[-2:]), math.prod(grid)
        if scores.shape != (len(keys), tokens):
            raise ValueError(f"scores are {tuple(scores.shape)} for {len(keys)} samples of {tokens} tokens")
        seen, predicted = self.counts(plane, self.ratio(step, steps))
        keys = self.mask_keys(keys)  # (mB,)
        rates = repeat_rows(scores.float().clamp(min=1e-30), len(keys))
        times = -(uniform(keys, tokens) + 2.0**-25).log() / rates
        frames = times.unflatten(1, (-1, plane)).argsort(dim=2)  # (mB, T', P)
        start = torch.arange(0, tokens, plane, device=keys.device)  # of each frame, (T',)
        parts = (frames + start[:, None]).split((seen, plane - seen - predicted, predicted), dim=2)
        order = torch.cat([part.flatten(1) for part in parts], dim=1)  # (mB, N)
        return self.cut(order, seen * len(start), predicted * len(start), keys, grid)
