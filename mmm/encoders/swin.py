"""Swin (Liu et al., "Swin Transformer", ICCV 2021), built from timm's blocks, with mask tokens (Xie et al., "SimMIM", CVPR 2022) or
on the smaller grid of the visible tokens of uniform masks (Li et al., "UM-MAE", 2022).

Each token of the model is a token of the encoder's output. The encoder embeds finer patches, s x s to a token, and merges them
stage by stage. Windows need a complete grid: either hidden tokens are replaced by mask tokens (blanks), or exactly one of each 2 x
2 tokens is visible, and the visible tokens form a grid again.

Shapes: mB rows of V visible and H blank tokens, M = V + H, N tokens of the grid, P values a token, s^2 patches a token, D' and D
widths of the first stage and of the output, (h, w) the grid that is encoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmm.core.checks import Positive, Rate
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, RequiredFeatures, Shape, Stage
from mmm.encoders.base import Encoder, EncoderConfig, encoders
from mmm.layers.transformer import Embedding, initialise

Size = Literal["tiny", "small", "base", "large"]
# width and heads of the first stage, blocks of each stage: section 3.3
SIZES: dict[Size, tuple[int, int, tuple[int, ...]]] = {
    "tiny": (96, 3, (2, 2, 6, 2)),
    "small": (96, 3, (2, 2, 18, 2)),
    "base": (128, 4, (2, 2, 18, 2)),
    "large": (192, 6, (2, 2, 18, 2)),
}
EPSILON = 1e-5  # of every norm
WHOLE = "encoder.name swin needs a whole grid: set masker.blank, or masker.name uniform"


class NormedEmbedding(Embedding):
    """The linear embedding of patches and a norm."""

    def __init__(self, token: tuple[int, ...], channels: int, width: int) -> None:
        super().__init__(token, channels, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, M, P) -> (B, M, D')."""
        return self.norm(super().forward(patches))


@encoders.register("swin")
class Swin(Encoder):
    """A hierarchical transformer for images with attention in shifted windows."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        size: Size = "base"
        """Width, heads and blocks by name: tiny 96/3 (2, 2, 6, 2), small 96/3 (2, 2, 18, 2), base 128/4 (2, 2, 18, 2), large 192/6
        (2, 2, 18, 2); each stage doubles width and heads."""

        width: Positive | None = None
        """Width of the first stage instead of the size's own."""

        heads: Positive | None = None
        """Attention heads of the first stage instead of the size's own."""

        stages: tuple[Positive, ...] | None = None
        """Number of blocks of each stage instead of the size's own."""

        window: Positive = 7
        """Side of a window, in tokens of its stage (7 for inputs of 224 pixels, SimMIM: 6 for 192)."""

        patch: Positive = 4
        """Side of the patches of the first stage, in pixels. Each later stage doubles it; the last one's is a token's side."""

        expand: bool = False
        """Expand each token of the last stage to 2 x 2 by a linear layer, for tokens of half the side (UM-MAE: 16 pixels)."""

        drop_path: Rate = 0.0
        """Rate of stochastic depth in the last block, rising linearly from the first."""

        def validate(self) -> None:
            width, heads, _ = self.first
            if width % heads:
                raise ValueError(f"encoder.heads {heads} do not divide encoder.width {width}; choose a divisor")

        @property
        def first(self) -> tuple[int, int, tuple[int, ...]]:
            """Width and heads of the first stage, and the blocks of each: those that were chosen, or the size's own."""
            width, heads, stages = SIZES[self.size]
            return self.width or width, self.heads or heads, self.stages or stages

        @property
        def token(self) -> int:
            return self.patch * 2 ** (len(self.first[2]) - 1) // (2 if self.expand else 1)

        @property
        def shape(self) -> Shape:
            width, _, blocks = self.first
            sides = [max(self.token // (self.patch * 2**number), 1) for number in range(len(blocks))]
            ends = zip(accumulate(blocks), sides, strict=True)
            stages = tuple(Stage(end, width * 2**number, (side, side)) for number, (end, side) in enumerate(ends))
            return Shape(stages[-1].width, stages[-1].block, 0, stages=stages, whole=True)

    config: Config

    def __init__(
        self, config: Config, *, token: tuple[int, ...], channels: int, grid: Grid, required: RequiredFeatures, blanks: bool = False
    ) -> None:
        """Builds it.

        Args:
            config: the user's choices.
            token: a token's size, in pixels.
            channels: C.
            grid: the home grid; windows are no larger than a stage's grid at home. Any other grid can be encoded too.
            required: the features that the decoder requires; a final norm that it does not require is not built.
            blanks: whether masks will blank tokens, which needs a mask token.

        Raises:
            ValueError: tokens do not have the size of the output's, or are those of clips.
        """
        from timm.models.swin_transformer import SwinTransformerStage  # here: timm takes longer to import than torch

        super().__init__(config, grid=grid, required=required)
        if len(token) != 2:
            raise ValueError("encoder.name swin is for images; for clips use vit or hiera")
        if set(token) != {config.token}:
            raise ValueError(
                f"tokenizer.size {token[-1]}: encoder.patch {config.patch}, {len(config.first[2])} encoder.stages and "
                f"encoder.expand {config.expand} make tokens of {config.token} pixels; set tokenizer.size {config.token}"
            )
        width, heads, blocks = config.first
        self.side = config.token // config.patch  # s
        self.patch_embed = NormedEmbedding((config.patch, config.patch), channels, width)
        if blanks:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        rates = [config.drop_path * number / max(sum(blocks) - 1, 1) for number in range(sum(blocks))]
        self.layers = nn.ModuleList()
        size: Any = tuple(axis * self.side for axis in grid)
        for number, count in enumerate(blocks):
            self.layers.append(
                SwinTransformerStage(
                    dim=width * 2 ** max(number - 1, 0),
                    out_dim=width * 2**number,
                    input_resolution=size,
                    depth=count,
                    downsample=number > 0,
                    num_heads=heads * 2**number,
                    window_size=config.window,
                    dynamic_mask=True,
                    drop_path=[rates.pop(0) for _ in range(count)],
                )
            )
            size = self.layers[-1].output_resolution
        self.norm: nn.Module = nn.LayerNorm(self.shape.width, eps=EPSILON) if required.last else nn.Identity()
        self.expand: nn.Module = nn.Identity()
        if config.expand and required.last:
            self.expand = nn.Linear(self.shape.width, 4 * self.shape.width)
        self.apply(initialise)
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...]) -> Features:
        """Features of the tokens at `where`, (mB, M, D); see `Encoder.encode`.

        Raises:
            ValueError: the tokens do not form a grid.
        """
        order, (high, wide) = self.raster(where, grid)  # (mB or 1, M), the tokens row by row
        patch, side = self.config.patch, self.side
        patches = rearrange(visible, "b v (a i c j x) -> b (v a c) (i j x)", a=side, i=patch, c=side, j=patch)
        tokens = self.append_mask_tokens(self.patch_embed(patches), where.repeat_interleave(side * side, dim=1))  # (mB, M s^2, D')
        tokens = take(tokens.unflatten(1, (-1, side * side)), order.expand(len(tokens), -1))  # (mB, M, s^2, D')
        x = rearrange(tokens, "b (h w) (a c) d -> b (h a) (w c) d", h=high, a=side)
        slots = order.argsort(dim=1).expand(len(tokens), -1)  # from the order of `where` to the grid's
        kept, number = {0: take(self.gather_inner(x, high, wide), slots)} if 0 in blocks else {}, 0
        stages: Any = self.layers
        for stage in stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                _shift(block, x.shape[1:3])
                x = block(x)
                number += 1
                if number in blocks:
                    kept[number] = take(self.gather_inner(x, high, wide), slots)
        last = self.expand(self.norm(x))  # (mB, h, w, D), or of half the grid with 4 D
        if last.shape[3] > x.shape[3]:
            last = rearrange(last, "b h w (a c d) -> b (h a) (w c) d", a=2, c=2)
        return Features(take(self.gather_inner(last, high, wide), slots), 0, where, kept)

    def raster(self, where: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Returns the order in which the tokens at these places form a grid, (mB or 1, M), and the size of this grid.

        Raises:
            ValueError: they are neither all tokens nor one of each 2 x 2, or the last stage would have a fraction of a token.
        """
        tokens, seen = math.prod(grid), where.shape[1]
        if seen not in (tokens, tokens // 4):
            raise ValueError(f"the mask shows {seen} of {tokens} tokens; {WHOLE}")
        cells, size = where, grid
        if seen != tokens:
            size = (grid[0] // 2, grid[1] // 2)
            cells = (where // grid[1] // 2) * size[1] + where % grid[1] // 2
        if self.config.expand and (size[0] % 2 or size[1] % 2):
            raise ValueError(f"encoder.expand needs a grid of even sides, and this one is {size}; change the input's size")
        order = cells.argsort(dim=1)
        look = seen != tokens and cells.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and not (cells.gather(1, order) == torch.arange(seen)).all():
            raise ValueError(f"the mask does not show one of each 2 x 2 tokens; {WHOLE}")
        return order, size

    def gather_inner(self, x: Tensor, high: int, wide: int) -> Tensor:
        """Concatenates the tokens of a stage that belong to the same token of the output, (mB, h a, w b, D') -> (mB, h w, a b D').

        With `expand`, a token of the last stage belongs to several tokens of the output, and is repeated.
        """
        for axis, size in ((1, high), (2, wide)):
            x = x.repeat_interleave(size // x.shape[axis], dim=axis) if x.shape[axis] < size else x
        return rearrange(x, "b (h a) (w c) d -> b (h w) (a c d)", h=high, w=wide)

    def state_at(self, grid: Grid) -> dict[str, Tensor]:
        """The state of the same encoder for another home grid. Where its windows have another size, their biases are
        interpolated."""
        from timm.layers import resize_rel_pos_bias_table

        token, channels = (self.config.token,) * 2, self.patch_embed.proj.in_channels
        with torch.device("meta"):
            other = Swin(self.config, token=token, channels=channels, grid=grid, required=self.required)
        state: dict[str, Any] = super().state_at(grid)
        modules: Any = zip(self.named_modules(), other.modules(), strict=True)
        for (name, module), new in modules:
            if hasattr(module, "relative_position_bias_table") and module.window_size != new.window_size:
                table = f"{name}.relative_position_bias_table"
                state[table] = resize_rel_pos_bias_table(
                    state[table], new.window_size, tuple(new.relative_position_bias_table.shape)
                )
        return state


def _shift(block: Any, size: tuple[int, int]) -> None:
    """Shifts a block's windows if the grid is larger than a window. timm's blocks decide this only for their home grid."""
    shift = tuple(
        0 if axis <= side else step for axis, side, step in zip(size, block.window_size, block.target_shift_size, strict=True)
    )
    if shift != tuple(block.shift_size):
        block.shift_size = shift
