"""Hiera (Ryali et al., "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles", ICML 2023), built from timm's
blocks.

Each token of the model is a token of the encoder's output. The encoder embeds finer patches, 2^q x 2^q to a token, and pools them
q times by the maximum of 2 x 2. In the first stages, attention stays within mask units, which are squares of patches. A mask unit
is visible or hidden as a whole, so that hidden units can be dropped. The first convolution overlaps units; the pixels of hidden
units are set to 0 for it.

Shapes: B samples (mB rows where a mask has several a sample), C channels, s... the sample's axes, N tokens of the grid, V visible
ones, U mask units of S patches and n tokens each, u visible units, D' and D widths of the first stage and of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmm.core.checks import Count, Positive, Rate
from mmm.core.positions import resize_tables, sum_of_tables
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, RequiredFeatures, Shape, Stage
from mmm.encoders.base import Encoder, EncoderConfig, encoders
from mmm.encoders.pixels import join_visible
from mmm.layers.transformer import initialise

Size = Literal["tiny", "small", "base", "base_plus", "large", "huge"]
# width and heads of the first stage, blocks of each stage: the paper's table 10
SIZES: dict[Size, tuple[int, int, tuple[int, ...]]] = {
    "tiny": (96, 1, (1, 2, 7, 2)),
    "small": (96, 1, (1, 2, 11, 2)),
    "base": (96, 1, (2, 3, 16, 3)),
    "base_plus": (112, 2, (2, 3, 16, 3)),
    "large": (144, 2, (2, 6, 36, 4)),
    "huge": (256, 4, (2, 6, 36, 4)),
}
EPSILON = 1e-6  # of every norm
UNIT_STAGES = 2  # stages whose attention stays within mask units


@encoders.register("hiera")
class Hiera(Encoder):
    """A hierarchical vision transformer that drops hidden mask units.

    For masked autoencoding, tokens have 16 pixels, and patches of 4 pixels are pooled twice. The published classifiers pool three
    times, to tokens of 32 pixels. The weights are the same.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        size: Size = "base"
        """Width, heads and blocks by name: tiny 96/1 (1, 2, 7, 2), small 96/1 (1, 2, 11, 2), base 96/1 (2, 3, 16, 3), base_plus
        112/2 (2, 3, 16, 3), large 144/2 (2, 6, 36, 4), huge 256/4 (2, 6, 36, 4); each stage doubles width and heads."""

        width: Positive | None = None
        """Width of the first stage instead of the size's own."""

        heads: Positive | None = None
        """Attention heads of the first stage instead of the size's own."""

        stages: tuple[Positive, ...] | None = None
        """Number of blocks of each stage instead of the size's own."""

        patch: Positive = 4
        """Side of the patches that the first stage has, in pixels. A token's side is this times 1, 2, 4 ..."""

        mask_unit: Positive = 8
        """Side of a mask unit in patches; a unit is visible or hidden as a whole, and in clips it is one token deep. masker.unit
        must be this, divided by the patches along a token's side: 2 for tokens of 16 pixels, 1 for tokens of 32."""

        pools: Count = 2
        """Number of times that tokens are pooled by 2 x 2 before the output. The side of an output token is `patch` times 2 to
        the power of this: 2 for tokens of 16 pixels, 3 for tokens of 32. The weights do not depend on it."""

        drop_path: Rate = 0.0
        """Rate of stochastic depth in the last block, rising linearly from the first."""

        def validate(self) -> None:
            width, heads, stages = self.first
            if width % heads:
                raise ValueError(f"encoder.heads {heads} do not divide encoder.width {width}; choose a divisor")
            if self.pools >= len(stages):
                raise ValueError(f"encoder.pools {self.pools} is not below the number of encoder.stages, {len(stages)}")
            if self.mask_unit & (self.mask_unit - 1) or self.mask_unit < 2**self.pools:
                raise ValueError(
                    f"encoder.mask_unit {self.mask_unit} must be a power of 2 and at least 2 ** encoder.pools, {2**self.pools}"
                )

        @property
        def first(self) -> tuple[int, int, tuple[int, ...]]:
            """Width and heads of the first stage, and the blocks of each: those that were chosen, or the size's own."""
            width, heads, stages = SIZES[self.size]
            return self.width or width, self.heads or heads, self.stages or stages

        @property
        def token(self) -> int:
            return self.patch * 2**self.pools

        @property
        def shape(self) -> Shape:
            width, _, blocks = self.first
            found, depth = [], 0
            for number, count in enumerate(blocks):
                depth += count
                side = 2 ** max(self.pools - number, 0)
                found.append(Stage(depth, width * 2**number, (side, side)))
            return Shape(found[-1].width, depth, 0, stages=tuple(found), unit=self.mask_unit // 2**self.pools)

    config: Config
    no_compile = (
        "torch's compiler recomputes the operands of its poolings for their gradients, which are lost where these round differently"
    )

    def __init__(
        self, config: Config, *, token: tuple[int, ...], channels: int, grid: Grid, required: RequiredFeatures, blanks: bool = False
    ) -> None:
        """Builds it.

        Args:
            config: the user's choices.
            token: a token's size, in pixels (and frames).
            channels: C.
            grid: the home grid, for which positions are stored; any other grid that mask units fill can be encoded too.
            required: the features that the decoder requires; a final norm that it does not require is not built.
            blanks: whether masks will blank tokens, which is refused.

        Raises:
            ValueError: tokens do not have the size of the output's, or masks leave blanks.
        """
        from timm.models.hiera import HieraBlock, PatchEmbed  # here: timm takes longer to import than torch

        super().__init__(config, grid=grid, required=required)
        side = config.token
        if set(token[-2:]) != {side}:
            raise ValueError(
                f"tokenizer.size {token[-1]}: encoder.patch {config.patch} and encoder.pools {config.pools} make tokens of {side} "
                f"pixels; set tokenizer.size {side}, or encoder.pools"
            )
        if blanks:
            raise ValueError("encoder.name hiera drops hidden mask units and has no mask token; set masker.blank false")
        self.token = token
        self.unit_tokens = self.shape.unit
        width, heads, _ = config.first
        stride = (*token[:-2], config.patch, config.patch)
        kernel, padding = tuple(2 * size - 1 for size in stride), tuple(size - 1 for size in stride)
        self.patch_embed = PatchEmbed(channels, width, kernel, stride, padding)
        patches, norm = self.patch_grid(grid), cast(Any, partial(nn.LayerNorm, eps=EPSILON))
        for name, count in self._tables(patches).items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02)))
        self.blocks = nn.ModuleList()
        self.pooling: list[int] = []  # poolings before each block's output
        ends, stage, depth = [end.block for end in self.shape.stages], 0, self.shape.depth
        for number in range(depth):
            within, wide = stage < UNIT_STAGES, width  # the first block of a stage still attends as the stage before it
            if number in ends:
                stage, wide, heads = stage + 1, 2 * width, 2 * heads
            pools = min(stage, config.pools)
            pooled = number in ends and stage <= config.pools
            self.blocks.append(
                HieraBlock(
                    width,
                    wide,
                    heads,
                    drop_path=config.drop_path * number / max(depth - 1, 1),
                    norm_layer=norm,
                    q_stride=4 if pooled else 1,
                    window_size=config.mask_unit**2 // 4**pools,
                    use_mask_unit_attn=within,
                )
            )
            attention: Any = self.blocks[-1].attn
            attention.num_heads = heads  # as other attention calls them
            self.pooling.append(pools)
            width = wide
        self.norm: nn.Module = norm(width) if required.last else nn.Identity()
        self.apply(initialise)

    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...]) -> Features:
        """Features of the tokens at `where`, (mB, V, D); see `Encoder.encode`.

        Raises:
            ValueError: mask units do not fill the grid, a mask cuts one, or it blanks tokens.
        """
        if where.shape[1] != visible.shape[1]:
            raise ValueError("encoder.name hiera drops hidden mask units and has no mask token; the mask must blank none")
        members = unit_members(grid, self.unit_tokens, self.config).to(where.device, non_blocking=True)  # (U, n)
        units = self.visible_units(where, members)  # (mB or 1, u)
        x = self.patch_embed(join_visible(visible, where, grid, self.token))  # (mB, patches, D')
        patches = self.patch_grid(grid)
        x = x + self.positions_of(patches)
        chosen = unit_members(patches, self.config.mask_unit, self.config).to(where.device, non_blocking=True)[units]  # (mB, u, S)
        x = take(
            x, chosen.transpose(1, 2).flatten(1).expand(len(x), -1)
        )  # (mB, S u, D'), units the fastest, as the blocks want them
        # the order of the tokens that come out, and from it the place of each token of `where` among them
        out = members[units].transpose(1, 2).flatten(1)  # (mB, n u)
        slots = out.new_empty(len(out), math.prod(grid)).scatter(
            1, out, torch.arange(out.shape[1], device=out.device).expand_as(out)
        )
        slots = slots.gather(1, where).expand(len(x), -1)  # (mB, V)
        kept = {0: take(self.gather_inner(x, 0), slots)} if 0 in blocks else {}
        for number, (block, pools) in enumerate(zip(self.blocks, self.pooling, strict=True), start=1):
            x = block(x)
            if number in blocks:
                kept[number] = take(self.gather_inner(x, pools), slots)
        return Features(take(self.norm(x), slots), 0, where, kept)

    def visible_units(self, where: Tensor, members: Tensor) -> Tensor:
        """Returns the mask units that consist of the tokens at these places, (mB, V) -> (mB, u), in order.

        Raises:
            ValueError: a unit is only partly visible. This is checked on a CPU only; on a GPU the host would wait for it.
        """
        units, each = members.shape
        unit_of = (
            torch.empty_like(members)
            .flatten()
            .scatter(0, members.flatten(), torch.arange(units, device=members.device).repeat_interleave(each))
        )
        found = unit_of[where].sort(dim=1).values  # (mB, V)
        whole = found.shape[1] % each == 0
        if whole and found.device.type == "cpu" and not torch.compiler.is_compiling():
            whole = bool((found[:, ::each] == found[:, each - 1 :: each]).all())
        if not whole:
            side = self.unit_tokens
            raise ValueError(f"the mask cuts mask units of {side} x {side} tokens; set masker.unit {side}")
        return found[:, ::each]

    def gather_inner(self, x: Tensor, pools: int) -> Tensor:
        """Concatenates those tokens of a block's output, after the given number of poolings, that belong to the same token of the
        encoder's output.

        Args:
            x: (mB, 4^(q - pools) n u, D'), in the blocks' order: the halves of rows and columns, the finest first, then the units.

        Returns:
            (mB, n u, a b D'), a = b = 2^(q - pools).
        """
        steps = self.config.pools - pools
        x = x.unflatten(1, (*(2,) * (2 * steps), -1))  # (mB, h, w of the finest, ..., n u, D')
        rows, columns = (list(range(2 * steps - 1 + axis, 0, -2)) for axis in (0, 1))  # the coarsest first
        return x.permute(0, 2 * steps + 1, *rows, *columns, 2 * steps + 2).flatten(2)

    def patch_grid(self, grid: Grid) -> Grid:
        """The patches of a grid of tokens."""
        return (*grid[:-2], *(size * 2**self.config.pools for size in grid[-2:]))

    def positions_of(self, patches: Grid) -> Tensor:
        """The positions of every patch of a grid, (1, patches, D'): at home as they are stored, elsewhere interpolated."""
        return sum_of_tables(self.positions_at(patches))

    def positions_at(self, patches: Grid) -> dict[str, Tensor]:
        """The tables of positions for a grid of patches, by name."""
        home = self.patch_grid(self.home)
        return resize_tables({name: getattr(self, name) for name in self._tables(home)}, home, patches)

    def state_at(self, grid: Grid) -> dict[str, Tensor]:
        """The state of the same encoder for another home grid; see `Encoder.state_at`."""
        return super().state_at(grid) | {name: table.detach() for name, table in self.positions_at(self.patch_grid(grid)).items()}

    @staticmethod
    def _tables(patches: Grid) -> dict[str, int]:
        """The names of the tables of positions, and how many each holds: one of an image's, places and times of a clip's."""
        if len(patches) == 2:
            return {"pos_embed": math.prod(patches)}
        return {"pos_embed_spatial": math.prod(patches[1:]), "pos_embed_temporal": patches[0]}


def unit_members(grid: Grid, side: int, config: Hiera.Config) -> Tensor:
    """The members of each square of `side` x `side`, int64 (U, side^2), in the order in which they are pooled.

    Members that are pooled into one first are the furthest apart in this order, which follows the halves of rows and columns, the
    finest first.

    Raises:
        ValueError: the squares do not fill the grid.
    """
    if any(size % side for size in grid[-2:]):
        unit = config.mask_unit * config.patch
        raise ValueError(
            f"mask units of {unit} x {unit} pixels do not fill the input; use a multiple, or another encoder.mask_unit"
        )
    index = torch.arange(math.prod(grid)).view(-1, grid[-2] // side, side, grid[-1] // side, side).transpose(2, 3)
    steps = side.bit_length() - 1
    order = torch.arange(side * side).view((2,) * (2 * steps))  # rows from coarse to fine, then columns
    order = order.permute([axis for step in reversed(range(steps)) for axis in (step, steps + step)]).flatten()
    return index.reshape(-1, side * side)[:, order]
