"""Predicted pixels of hidden tokens, and their error.

The error is given as the peak signal-to-noise ratio of hidden tokens in dB, on pixels in [0, 1] (predictions are clipped). It is
computed from the mean squared error over all samples, because the ratio of a single uniform sample can be infinite.

Shapes: B samples, C channels, s... the sample's axes, N tokens, V visible, Q hidden, P values a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.modes import evaluating
from mmm.core.rng import sample_keys
from mmm.core.tokens import take
from mmm.core.types import Input
from mmm.evaluate.reconstruction.baselines import fill_hidden, to_unit
from mmm.maskers import Masker, PaintedMasker
from mmm.model import MaskedModel


@dataclass(frozen=True)
class Reconstruction:
    """Samples and their reconstructions, with pixels in [0, 1]; NaN where a picture is empty.

    Attributes:
        original: (B, C, s...).
        visible: the visible tokens.
        predicted: the predictions of the hidden tokens.
        pasted: visible tokens and predictions together.
        errors: mean squared error over all hidden pixels for each of `baselines.BASELINES`, (B,).
        uses_original: whether brightness and contrast of the predictions were taken from the original.
    """

    original: Tensor
    visible: Tensor
    predicted: Tensor
    pasted: Tensor
    errors: dict[str, Tensor]
    uses_original: bool

    def take(self, row: int) -> Reconstruction:
        """Returns one sample, on the CPU."""
        original, visible, predicted, pasted = (values[row : row + 1].cpu() for values in self.pictures)
        errors = {name: error[row : row + 1].cpu() for name, error in self.errors.items()}
        return Reconstruction(original, visible, predicted, pasted, errors, self.uses_original)

    @classmethod
    def cat(cls, parts: Sequence[Reconstruction]) -> Reconstruction:
        """Joins several batches."""
        original, visible, predicted, pasted = (
            torch.cat(values) for values in zip(*(part.pictures for part in parts), strict=True)
        )
        errors = {name: torch.cat([part.errors[name] for part in parts]) for name in parts[0].errors}
        return cls(original, visible, predicted, pasted, errors, parts[0].uses_original)

    @property
    def pictures(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four pictures, in the order of the fields."""
        return self.original, self.visible, self.predicted, self.pasted

    @property
    def hidden(self) -> float:
        """Fraction of the first sample that is hidden."""
        return self.predicted[0, :1].isfinite().cpu().double().mean().item()

    @property
    def columns(self) -> list[tuple[str, Tensor]]:
        """The four pictures with their titles."""
        titles = ("original", f"visible, {1 - self.hidden:.0%}", "predicted", "visible + predicted")
        return list(zip(titles, self.pictures, strict=True))


@torch.no_grad()
def reconstruct(model: MaskedModel, x: Tensor, data: Input, keys: Tensor) -> Reconstruction:
    """Hides tokens of a batch by masks drawn from the keys, and predicts ALL hidden tokens.

    Args:
        keys: int64 (B,).

    The other arguments and errors are those of `reconstruct_masked`.
    """
    return reconstruct_masked(model, x, data, model.draw_masks(x, keys))


@torch.no_grad()
def reconstruct_masked(model: MaskedModel, x: Tensor, data: Input, mask: Mask) -> Reconstruction:
    """Hides all tokens outside a mask's visible tokens, and predicts ALL of them.

    Args:
        model: a model in the mode and precision that the caller has set.
        x: normalised, (B, C, s...).
        data: normalisation of x.
        mask: the mask; only its visible and blank tokens are used.

    Raises:
        ValueError: the target's predictions are not pixels.
    """
    patches, grid = model.tokenizer.split(x), model.tokenizer.grid(x)  # (B, N, P)
    mask = every_hidden(mask, len(x), patches.shape[1])
    prediction = model(x, mask=mask).prediction.float()  # (B, Q, K)
    patches = patches.float()  # a model in half precision takes such samples; distances are not implemented for them
    filled = fill_hidden(model, prediction, patches, grid, mask, data)
    target = to_unit(take(patches, mask.predict), data)
    errors = {name: (values - target).square().mean((1, 2)) for name, values in filled.items()}
    best = filled["model_given_original" if model.target.uses_original else "model"]
    unit, nothing = to_unit(patches, data), torch.full_like(patches, torch.nan, dtype=torch.float32)

    def picture(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return model.tokenizer.join(base.scatter(1, index[..., None].expand_as(values), values), grid)

    return Reconstruction(
        original=model.tokenizer.join(unit, grid),
        visible=picture(nothing, mask.visible, take(unit, mask.visible)),
        predicted=picture(nothing, mask.predict, best),
        pasted=picture(unit, mask.predict, best),
        uses_original=model.target.uses_original,
        errors=errors,
    )


def reconstruct_samples(
    model: MaskedModel, samples: Any, *, ratio: float | None = None, hidden: Any = None, seed: int = 0
) -> Reconstruction:
    """Reconstructs samples outside a run, in evaluation mode; see `MaskedModel.reconstruct`."""
    if model.decoder is None:
        raise ValueError("this model is an encoder without a decoder, so nothing can be reconstructed; load one with a decoder")
    if model.data is None:
        raise ValueError("this model does not know how its samples are normalised; build it with data=Input(...)")
    x = model.prepared(samples)
    keys = sample_keys(seed, 0, torch.arange(x.shape[0], device=x.device))
    masker = model.masker
    with evaluating(model):
        try:
            model.masker = remasked(masker, ratio, hidden)
            return reconstruct(model, x, model.data, keys)
        finally:
            model.masker = masker


def remasked(masker: Masker, ratio: float | None, hidden: Any) -> Masker:
    """Returns the masker, the same one with another ratio, or one that hides painted pixels (see `mask_from_pixels`).

    Raises:
        ValueError: both are requested.
    """
    if hidden is not None and ratio is not None:
        raise ValueError(f"ratio {ratio:g} and painted pixels both say what is hidden; give one of them")
    if hidden is not None:
        return PaintedMasker(hidden, masker.config)
    return masker if ratio is None else masker.with_ratio(ratio)


def every_hidden(mask: Mask, samples: int, tokens: int) -> Mask:
    """Returns the first mask of each sample, which predicts all hidden tokens, even if training predicts only a part of them.

    If the masks have different numbers of visible tokens, all are reduced to the smallest number.
    """
    mask = mask.trimmed()
    first = len(mask.visible) // samples
    visible, blank = mask.visible[::first], None if mask.blank is None else mask.blank[::first]  # (B, V), (B, H)
    seen = torch.zeros(samples, tokens, dtype=torch.int8, device=visible.device).scatter(1, visible, 1)
    hidden = seen.argsort(dim=1, stable=True)[:, : tokens - visible.shape[1]]  # in the grid's order, (B, Q)
    return Mask(visible, hidden, blank)


def psnr(error: float) -> float:
    """Returns the PSNR in dB for a mean squared error of pixels in [0, 1]; at most 100."""
    return -10 * math.log10(max(error, 1e-10))


@dataclass
class HiddenError:
    """Accumulates the errors of many batches.

    Attributes:
        sums: sums of the errors over samples, by name.
        samples: number of samples.
    """

    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def add(self, batches: Iterable[Reconstruction]) -> HiddenError:
        """Adds batches."""
        for batch in batches:
            self.samples += len(batch.original)
            for name, error in batch.errors.items():
                self.sums[name] = self.sums.get(name, 0.0) + error.cpu().double().sum().item()
        return self

    def psnr(self) -> dict[str, float]:
        """Returns the PSNR of the model and of each baseline, in dB."""
        return {name: psnr(total / self.samples) for name, total in self.sums.items()}
