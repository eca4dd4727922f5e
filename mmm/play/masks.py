"""Masks that a person paints or that a masker draws.

Shapes: N tokens, V visible, (T', H', W') the grid; T' is 1 for an image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.config.help import field_texts
from mmm.config.serialize import from_dict, to_dict
from mmm.core.checks import arms
from mmm.core.mask import Mask
from mmm.core.rng import sample_keys
from mmm.core.tokens import Grid
from mmm.maskers import MaskerConfig, mask_from_pixels, maskers

# the page has a separate control for the ratio, and shows one mask, whose hidden tokens are all predicted
APART = ("ratio", "ratio_end", "predict", "running_cell", "predict_visible", "masks", "blank")


@dataclass(frozen=True)
class Drawing:
    """A mask of one sample.

    Attributes:
        grid: grid of the tokens, (T', H', W').
        visible: visible tokens, int64 (V,), in the order in which a masker drew them, or ascending if they were painted.
        drawn: whether a masker drew the mask.
        replaced: tokens, int64 (S,), which the encoder sees as mask tokens and which are not predicted (UM-MAE's secondary
            masking). None: there are none.
    """

    grid: Grid
    visible: Tensor
    drawn: bool = False
    replaced: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """The hidden tokens, bool (N,)."""
        return torch.ones(math.prod(self.grid), dtype=torch.bool).index_fill(0, self.visible, False)

    def mask(self, blank: bool) -> Mask:
        """Returns the mask of a batch of one. All hidden tokens are predicted, except those that are `replaced`.

        Args:
            blank: whether the encoder sees a mask token in each hidden place.

        Raises:
            ValueError: nothing is hidden, or everything is.
        """
        if not self.drawn:
            return mask_from_pixels(self.hidden.view(self.grid), self.grid, blank=blank)
        if self.replaced is not None:
            predicted = self.hidden.index_fill(0, self.replaced, False).nonzero()[:, 0]
            return Mask(self.visible[None], predicted[None], self.replaced[None])
        hidden = self.hidden.nonzero()[:, 0]
        return Mask(self.visible[None], hidden[None], hidden[None] if blank else None)

    def fitted(self, grid: Grid) -> Drawing:
        """Returns the mask for another grid, with the same fraction hidden. It hides the tokens that this mask covers most."""
        if grid == self.grid:
            return self
        planes, size = self.hidden.double().view(1, 1, *self.grid), cast(Any, grid)
        fine = F.interpolate(planes, [math.lcm(old, new) for old, new in zip(self.grid, grid, strict=True)], mode="nearest-exact")
        covered = F.adaptive_avg_pool3d(fine, size).flatten()  # (N,)
        count = round(self.hidden.double().mean().item() * len(covered))
        if 0 < int(self.hidden.sum()) < len(self.hidden):
            count = min(max(count, 1), len(covered) - 1)
        return Drawing(grid, covered.argsort(descending=True, stable=True)[count:].sort().values)


def painted(hidden: Tensor) -> Drawing:
    """Returns the mask of painted tokens, bool (T', H', W')."""
    return Drawing(tuple(hidden.shape), (~hidden).flatten().nonzero()[:, 0])


def draw(config: MaskerConfig, grid: Grid, seed: int, *, frame_by_frame: bool = False, scores: Tensor | None = None) -> Drawing:
    """Draws a mask as `mmm reconstruct --mask_seed SEED` does for the first sample of a source.

    Args:
        config: config of the masker.
        grid: (H', W') or (T', H', W').
        frame_by_frame: whether each frame of the grid gets its own mask, like an image.
        scores: scores of the tokens, (1, N), for a masker that needs them.

    Raises:
        ValueError: the masker cannot draw for this grid, or a whole number among its options is above the number of tokens.
    """
    _check_counts(config, math.prod(grid))
    masker = maskers.build(config)
    if frame_by_frame and len(grid) == 3:
        if masker.needs_scores:
            raise ValueError(f"masker {config.name} looks at the whole clip, so it cannot draw frame by frame")
        keys = sample_keys(seed, 0, torch.arange(grid[0]))
        visible = _first(masker(keys, grid[1:]), grid[0])  # (T', V)
        hidden = torch.ones(grid[0], math.prod(grid[1:]), dtype=torch.bool).scatter(1, visible, False)
        return Drawing(grid, (~hidden).flatten().nonzero()[:, 0], drawn=True)
    return drawing_of(masker(sample_keys(seed, 0, torch.arange(1)), grid, scores=scores), config, grid)


def _check_counts(config: MaskerConfig, tokens: int) -> None:
    """Raises ValueError if an option counts more than there are tokens. The memory of a masker grows with the whole numbers of its
    options; defaults are allowed on the smallest grid."""
    for own in fields(config):
        value = getattr(config, own.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if value != own.default and all(type(number) is int for number in numbers) and sum(numbers) > tokens:
            total = f", in total {sum(numbers)}," if len(numbers) > 1 else ""
            raise ValueError(
                f"masker.{own.name} {' '.join(map(str, numbers))}{total} is above {tokens}, the number of tokens; lower it"
            )


def drawing_of(mask: Mask, config: MaskerConfig, grid: Grid) -> Drawing:
    """Returns the first mask of one sample that a masker of this config drew."""
    mask = mask.trimmed()
    # with `masker.blank` the mask tokens are the hidden tokens; otherwise they are those of UM-MAE's secondary masking
    replaced = None if config.blank or mask.blank is None else mask.blank[0]
    return Drawing((1, *grid)[-3:], _first(mask, 1)[0], drawn=True, replaced=replaced)


def _first(mask: Mask, samples: int) -> Tensor:
    """Returns the visible tokens of each sample's first mask, (B, V)."""
    return mask.visible[:: len(mask.visible) // samples]


@dataclass(frozen=True)
class Option:
    """One option of a masker, for a control on the page.

    Attributes:
        name: name of the field.
        text: description.
        value: default, as in YAML.
        choices: possible values, if the option has a fixed set of them.
    """

    name: str
    text: str
    value: Any
    choices: tuple[str, ...]


def options_of(name: str) -> list[Option]:
    """Returns the options of a registered masker, apart from its ratio."""
    part: Any = maskers[name]
    config = part.Config
    default = config()
    texts, hints, values = field_texts(default), get_type_hints(config), to_dict(default)
    found = []
    for own in fields(config):
        if own.name not in APART:
            choices = [str(choice) for arm in arms(hints[own.name]) if get_origin(arm) is Literal for choice in get_args(arm)]
            text = re.split(r"(?<=\.)\s", texts.get(own.name, ""))[0]
            found.append(Option(own.name, text.rstrip(";."), values[own.name], tuple(choices)))
    return found


def config_of(name: str, ratio: float | None, options: Mapping[str, Any]) -> MaskerConfig:
    """Returns the config of a masker from the values of the page's controls, some of which are text. A masker whose options define
    the fraction of hidden tokens does not get the ratio.

    Raises:
        ValueError: a value is invalid; the message names its field.
    """
    part: Any = maskers[name]
    kind: type[MaskerConfig] = part.Config
    known = {own.name for own in fields(kind)}
    values = {key: value for key, value in options.items() if key in known}
    return from_dict(kind, values | ({"ratio": ratio} if ratio is not None and kind().has_ratio else {}), "masker.")
