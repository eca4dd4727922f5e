"""What a model makes of the tokens that it did not see, as pixels, and how far off that is.

The measure is the peak signal-to-noise ratio of hidden tokens, in dB, on pixels in [0, 1] (predictions are clipped to it), from
the mean squared error over all of them: a mean of the samples' own ratios would be infinite with one flat sample.

A target that is standardised per token holds no brightness and no contrast. Putting back the original's makes good pictures and
flatters the number, so two numbers are given: one with them, beside what they alone would score; and one that knows nothing
hidden: contrast of the nearest visible token, brightness of all, blended by inverse distance (Shepard, "A two-dimensional
interpolation function for irregularly-spaced data", 1968; a power of 3 scored best of five rules on photographs).

Shapes: B samples, C channels, s... the sample's axes, N tokens, V visible, Q hidden, P values a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmm.interfaces import Input
from mmm.mask import Mask
from mmm.model import MaskedModel
from mmm.tokens import Grid, coordinates, take

# in the order in which they are told; the words are for a target that `uses_original`
GUESSES = {
    "model": "the model, with brightness and contrast guessed from visible tokens",
    "visible_blend": "no model: brightness of the visible tokens, blended by distance",
    "visible_mean": "no model: the mean of the visible pixels",
    "model_given_original": "the model, given each hidden token's own brightness and contrast",
    "original_alone": "no model: each hidden token's own brightness",
}
PICTURES = ("original", "visible", "predicted", "pasted")


@dataclass(frozen=True)
class Reconstruction:
    """Samples and what a model made of them, pixels in [0, 1]; not a number where a picture has nothing.

    Attributes:
        original: (B, C, s...).
        visible: what the encoder saw.
        predicted: what the decoder made of the rest.
        pasted: what was seen, and the prediction around it.
        uses_original: whether each prediction was given brightness and contrast of the original.
        errors: the mean squared error over all hidden pixels of each guess in `GUESSES`, (B,).
    """

    original: Tensor
    visible: Tensor
    predicted: Tensor
    pasted: Tensor
    uses_original: bool
    errors: dict[str, Tensor]

    def take(self, row: int) -> Reconstruction:
        """One sample, on the CPU."""
        pictures = (getattr(self, name)[row : row + 1].cpu() for name in PICTURES)
        return Reconstruction(
            *pictures, self.uses_original, {name: error[row : row + 1].cpu() for name, error in self.errors.items()}
        )

    @classmethod
    def cat(cls, parts: Sequence[Reconstruction]) -> Reconstruction:
        """Several as one."""
        pictures = (torch.cat([getattr(part, name) for part in parts]) for name in PICTURES)
        errors = {name: torch.cat([part.errors[name] for part in parts]) for name in parts[0].errors}
        return cls(*pictures, parts[0].uses_original, errors)


@torch.no_grad()
def reconstruct(model: MaskedModel, x: Tensor, data: Input, keys: Tensor) -> Reconstruction:
    """Hides tokens of a batch, each sample's mask drawn from its key, and has ALL of them predicted.

    Args:
        model: in the mode and under the precision that the caller wants.
        x: normalised, (B, C, s...).
        data: how it was normalised.
        keys: int64 (B,).

    Raises:
        ValueError: where the target's predictions are not pixels.
    """
    patches, grid = model.tokenizer.split(x), model.tokenizer.grid(x)  # (B, N, P)
    mask = every_hidden(model.masker(keys, grid), len(x), patches.shape[1])
    predicted = model(x, mask=mask).predicted.float()  # (B, Q, K)
    guesses = guess_hidden(model, predicted, patches, grid, mask, data)
    wanted = to_unit(take(patches, mask.predict), data)
    errors = {name: (guess - wanted).square().mean((1, 2)) for name, guess in guesses.items()}
    best = guesses["model_given_original" if model.target.uses_original else "model"]
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


def every_hidden(mask: Mask, samples: int, tokens: int) -> Mask:
    """The first mask of each sample, with all hidden tokens to be predicted, whatever part of them training predicts."""
    visible = mask.visible[:: len(mask.visible) // samples]  # (B, V)
    seen = torch.zeros(samples, tokens, dtype=torch.int8, device=visible.device).scatter(1, visible, 1)
    hidden = seen.argsort(dim=1, stable=True)[:, : tokens - visible.shape[1]]  # in the grid's order, (B, Q)
    return Mask(visible, hidden, None if mask.blank is None else hidden)


def guess_hidden(model: MaskedModel, predicted: Tensor, patches: Tensor, grid: Grid, mask: Mask, data: Input) -> dict[str, Tensor]:
    """Every guess at the hidden tokens, (B, Q, P) each, in [0, 1]."""
    target, (stand_in, blend) = model.target, from_visible(patches, mask.visible, grid, data.channels)  # (B, N, P)
    shown = target.show(predicted, stand_in, mask)  # may look at the tokens that it is given, which here hold nothing hidden
    if shown is None:
        raise ValueError(f"target.name {target.config.name} does not predict pixels, so there is no reconstruction to show")
    guesses = {"model": shown, "visible_blend": take(blend, mask.predict)}
    seen = take(patches, mask.visible).unflatten(2, (-1, data.channels)).mean((1, 2))  # (B, C)
    guesses["visible_mean"] = seen[:, None, None].expand(-1, *shown.unflatten(2, (-1, data.channels)).shape[1:]).flatten(2)
    if target.uses_original:
        guesses["model_given_original"] = target.show(predicted, patches, mask)
        guesses["original_alone"] = target.show(torch.zeros_like(predicted), patches, mask)
    return {name: to_unit(guess, data).clamp(0, 1) for name, guess in guesses.items()}


def from_visible(patches: Tensor, visible: Tensor, grid: Grid, channels: int) -> tuple[Tensor, Tensor]:
    """What visible tokens say of every place: contrast of the nearest, brightness of all, blended by inverse distance.

    Args:
        patches: (B, N, P), of which the visible ones are looked at.
        visible: int64 (B, V).
        grid: the arrangement of the N tokens.
        channels: C, each blended by itself.

    Returns:
        (B, N, P) with both, and with the brightness alone.
    """
    places = coordinates(grid).to(patches)  # (N, n)
    apart = torch.cdist(places, places)[visible].transpose(1, 2)  # (N, N) -> (B, V, N) -> (B, N, V)
    pixels = take(patches, visible).unflatten(2, (-1, channels))  # (B, V, n, C)
    means = pixels.mean(2)  # (B, V, C)
    weights = apart.clamp(min=1e-3) ** -3  # at a visible token's own place, it counts alone
    blend = (weights / weights.sum(2, keepdim=True) @ means)[:, :, None]  # (B, N, 1, C)
    contrast = take(pixels - means[:, :, None], apart.argmin(2))  # (B, N, n, C)
    return (blend + contrast).flatten(2), blend.expand_as(contrast).flatten(2)


def to_unit(patches: Tensor, data: Input) -> Tensor:
    """Takes the normalisation back: tokens (B, M, P), the channel fastest, to pixels in [0, 1]."""
    mean, std = (torch.tensor(values, device=patches.device) for values in (data.mean, data.std))
    return (patches.float().unflatten(2, (-1, data.channels)) * std + mean).flatten(2)


def psnr(error: float) -> float:
    """Of a mean squared error of pixels in [0, 1], in dB; at most 100, where it would be infinite."""
    return -10 * math.log10(max(error, 1e-10))


@dataclass
class HiddenError:
    """Adds up the errors of many batches.

    Attributes:
        sums: of each guess, over samples.
        samples: how many.
    """

    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def add(self, batches: Iterable[Reconstruction]) -> HiddenError:
        """Counts batches in."""
        for batch in batches:
            self.samples += len(batch.original)
            for name, error in batch.errors.items():
                self.sums[name] = self.sums.get(name, 0.0) + error.double().sum().item()
        return self

    def psnr(self) -> dict[str, float]:
        """Of each guess, in dB."""
        return {name: psnr(total / self.samples) for name, total in self.sums.items()}
