"""Reconstructions of hidden tokens by the model, and baselines without a model.

A target that is standardised per token contains no brightness and no contrast. With those of the original, pictures are good,
but the score is then too good. Such a model therefore has two reconstructions. The first uses brightness and contrast of the
original; the score of these two values without a model is a baseline. The second uses only visible tokens: the contrast of the
nearest one, and the brightness of all, weighted by inverse distance (Shepard, "A two-dimensional interpolation function for
irregularly-spaced data", 1968; a power of 3 scored best of five rules on photographs).

Shapes: B samples, C channels, N tokens, V visible, Q hidden, P values a token, n = P / C pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmm.core.mask import Mask
from mmm.core.positions import coordinates
from mmm.core.tokens import Grid, take
from mmm.core.types import Input
from mmm.model import MaskedModel

# in the order of display, with descriptions for a target that `uses_original`
BASELINES = {
    "model": "the model, with brightness and contrast estimated from visible tokens",
    "visible_blend": "no model: brightness of the visible tokens, weighted by inverse distance",
    "visible_nearest": "no model: a copy of the nearest visible token",
    "visible_mean": "no model: the mean of the visible pixels",
    "model_given_original": "the model, given each hidden token's own brightness and contrast",
    "original_alone": "no model: each hidden token's own brightness",
}


def fill_hidden(model: MaskedModel, prediction: Tensor, patches: Tensor, grid: Grid, mask: Mask, data: Input) -> dict[str, Tensor]:
    """Returns all reconstructions of the hidden tokens, (B, Q, P) each, in [0, 1]."""
    stand_in, blend, copy = from_visible(patches, mask.visible, grid, data.channels)  # (B, N, P)
    # `show` may read the tokens that it gets; these contain no hidden values
    filled = {"model": show(model, prediction, stand_in, mask)}
    filled |= {"visible_blend": take(blend, mask.predict), "visible_nearest": take(copy, mask.predict)}
    seen = take(patches, mask.visible).unflatten(2, (-1, data.channels)).mean((1, 2))  # (B, C)
    filled["visible_mean"] = seen.repeat(1, patches.shape[2] // data.channels)[:, None].expand_as(filled["model"])
    if model.target.uses_original:
        filled["model_given_original"] = show(model, prediction, patches, mask)
        filled["original_alone"] = show(model, torch.zeros_like(prediction), patches, mask)
    return {name: to_unit(values, data).clamp(0, 1) for name, values in filled.items()}


def show(model: MaskedModel, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor:
    """Converts predictions into normalised pixels, (B, Q, P), with `Target.show`.

    Raises:
        ValueError: the target's predictions are not pixels.
    """
    shown = model.target.show(prediction, patches, mask)
    if shown is None:
        config: Any = model.target.config
        raise ValueError(f"target.name {config.name} does not predict pixels, so there is no reconstruction to show")
    return shown


def from_visible(patches: Tensor, visible: Tensor, grid: Grid, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fills every token from visible ones: contrast of the nearest one, and brightness of all, weighted by inverse distance.

    Args:
        patches: (B, N, P); only the visible ones are read.
        visible: int64 (B, V).
        grid: the arrangement of the N tokens.
        channels: C. Each channel is filled separately.

    Returns:
        Three tensors (B, N, P): contrast and brightness; brightness alone; and copies of the nearest visible token. Distances are
        in tokens, in clips also along time; among equally near tokens, the first in the mask is used.
    """
    places = coordinates(grid).to(patches)  # (N, n)
    apart = torch.cdist(places, places)[visible].transpose(1, 2)  # (N, N) -> (B, V, N) -> (B, N, V)
    pixels = take(patches, visible).unflatten(2, (-1, channels))  # (B, V, n, C)
    means = pixels.mean(2)  # (B, V, C)
    weights = apart.clamp(min=1e-3) ** -3  # at the position of a visible token, only this token counts
    blend = (weights / weights.sum(2, keepdim=True) @ means)[:, :, None]  # (B, N, 1, C)
    copy = take(pixels, apart.argmin(2))  # (B, N, n, C)
    contrast = copy - copy.mean(2, keepdim=True)
    return (blend + contrast).flatten(2), blend.expand_as(contrast).flatten(2), copy.flatten(2)


def to_unit(patches: Tensor, data: Input) -> Tensor:
    """Undoes the normalisation of tokens (B, M, P), whose last axis has the channel as fastest index. Returns pixels in [0, 1]."""
    mean, std = (torch.tensor(values, device=patches.device) for values in (data.mean, data.std))
    return (patches.float().unflatten(2, (-1, data.channels)) * std + mean).flatten(2)
