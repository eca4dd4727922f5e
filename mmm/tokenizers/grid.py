"""Splits images and clips into tokens: one n-D implementation for both patches and tubes.

Shapes: B samples, C channels, s... axes of a sample (H, W or T, H, W), N tokens, P = C * token volume values per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from mmm.core.checks import Positive
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid

tokenizers: Registry[GridTokenizer] = Registry("tokenizer")

AXES = {2: ("height", "width"), 3: ("frames", "height", "width")}


class GridTokenizer(nn.Module):
    """Splits (B, C, s...) into a grid of equal boxes; has no weights.

    Attributes:
        size: size of a token along each axis, in pixels or frames.
        channels: C.
        width: values per token, P.
    """

    def __init__(self, size: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        self.width = channels * math.prod(size)
        inner = [f"i{axis}" for axis in range(len(size))]  # position inside a token
        outer = [f"o{axis}" for axis in range(len(size))]  # position of the token on the grid
        boxes = " ".join(f"({o} {i})" for o, i in zip(outer, inner, strict=True))
        self._image = f"b c {boxes}"
        self._patches = f"b ({' '.join(outer)}) ({' '.join(inner)} c)"  # the channel varies fastest, as in MAE's targets
        self._sizes = dict(zip(inner, size, strict=True))

    def grid(self, x: Tensor) -> Grid:
        """Returns the grid of the tokens for an input (B, C, s...)."""
        if x.dim() < 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"the input is {tuple(x.shape)}; expected (samples, {self.channels} channels, {', '.join(AXES[len(self.size)])})"
            )
        return self.grid_of(tuple(x.shape[2:]))

    def grid_of(self, size: tuple[int, ...]) -> Grid:
        """Returns the grid of the tokens for a sample of this size (s...).

        Raises:
            ValueError: the size is not a multiple of the token's size.
        """
        size = self._lifted(size)
        if len(size) != len(self.size):
            raise ValueError(f"a sample of {len(size)} axes {size} does not fit tokens of {len(self.size)} {self.size}")
        for axis, pixels, token in zip(AXES[len(size)], size, self.size, strict=True):
            if pixels % token or not pixels:
                below = pixels // token * token
                use = f"{below} or {below + token}" if below else f"{token}"
                raise ValueError(f"the input's {axis} {pixels} is not a multiple of the token's {token}; use {use}")
        return tuple(pixels // token for pixels, token in zip(size, self.size, strict=True))

    def split(self, x: Tensor) -> Tensor:
        """Returns the raw values of every token, (B, C, s...) -> (B, N, P), with the channel varying fastest."""
        self.grid(x)  # raises a clear error if the size is not valid
        return rearrange(self.lift(x), f"{self._image} -> {self._patches}", **self._sizes)

    def join(self, patches: Tensor, grid: Grid) -> Tensor:
        """Joins tokens to samples, the inverse of `split`: (B, N, P) -> (B, C, s...)."""
        places = {f"o{axis}": size for axis, size in enumerate(grid)}
        return rearrange(patches, f"{self._patches} -> {self._image}", **self._sizes, **places)

    def _lifted(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the size that the tokenizer uses for a sample of `size`: for tubes, an image has the length of one tube."""
        return self.size[: max(0, len(self.size) - len(size))] + size if len(size) > 1 else size

    def lift(self, x: Tensor) -> Tensor:
        """Repeats images (B, C, H, W) along the leading axes of a token, for tubes to clips (B, C, T, H, W) of one tube without
        motion. Other inputs are returned unchanged."""
        missing = len(self.size) + 2 - x.dim()
        for length in reversed(self.size[:missing]) if missing > 0 else ():
            x = x.unsqueeze(2).expand(-1, -1, length, *x.shape[2:])
        return x


@tokenizers.register("patches")
class Patches(GridTokenizer):
    """Square patches of an image."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        size: Positive = 16
        """Side of a patch, in pixels."""

    def __init__(self, config: Config, *, channels: int) -> None:
        super().__init__((config.size, config.size), channels)
        self.config = config


@tokenizers.register("tubes")
class Tubes(GridTokenizer):
    """Boxes of a clip that span several frames; an image becomes one tube without motion."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        size: Positive = 16
        """Side of a tube, in pixels."""

        frames: Positive = 2
        """Number of frames of a tube."""

    def __init__(self, config: Config, *, channels: int) -> None:
        super().__init__((config.frames, config.size, config.size), channels)
        self.config = config
