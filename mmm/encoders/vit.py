"""The vision transformer (Dosovitskiy et al., ICLR 2021) as MAE uses it, under timm's names.

Shapes: B samples (mB rows where a mask has several a sample), N tokens, P values a token, V visible, H blank, M = V + H,
R prefix tokens (class tokens, then registers), D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import AboveZero, Count, NonNegative, Positive, Rate, check_width
from mmm.core.mask import Mask
from mmm.core.positions import Resize, learned_table, position_table, positions, resize_tables, sum_of_tables
from mmm.core.tokens import Grid, take
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.encoders.base import Encoder, EncoderConfig, encoders, shown
from mmm.layers.packing import Packing
from mmm.layers.relative_bias import RelativePlaces, RelativeTable, make_table, relative_index, resize_table
from mmm.layers.rotary import Rotary, RotaryKind, check_rotary, make_rotary
from mmm.layers.transformer import Activation, Embedding, EmbedInit, Norm, QKVBias, initialise, make_blocks, make_norm

Size = Literal["tiny", "small", "base", "large", "huge", "giant", "gigantic"]
# width, depth, heads: Dosovitskiy et al. table 1; tiny and small are DeiT's (Touvron et al., ICML 2021), giant and gigantic
# are those of Zhai et al. (CVPR 2022)
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
    "gigantic": (1664, 48, 16),
}
MLP_RATIOS = {"giant": 48 / 11, "gigantic": 64 / 13}  # 4 in the others
ViTPositions = Literal["sine_cosine", "flat_sine_cosine", "learned", "separate", "none"]


@encoders.register("vit")
class VisionTransformer(Encoder):
    """A plain vision transformer over the visible tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        size: Size = "base"
        """Width, depth and heads by name: tiny 192/12/3, small 384/12/6, base 768/12/12, large 1024/24/16, huge 1280/32/16,
        giant 1408/40/16, gigantic 1664/48/16."""

        width: Positive | None = None
        """Width instead of the size's own."""

        depth: Positive | None = None
        """Number of blocks instead of the size's own."""

        heads: Positive | None = None
        """Number of attention heads instead of the size's own."""

        mlp_ratio: AboveZero | None = None
        """Hidden width of a block's MLP over its width instead of the size's own: 4, of giant 48/11, of gigantic 64/13."""

        class_token: bool = True
        """Put a class token before the others."""

        class_tokens: Positive = 1
        """Number of class tokens, if `class_token` is true (Pixio: 8). The class feature is their mean."""

        registers: Count = 0
        """Number of registers: further learned tokens after the class token, without a place (Darcet et al., ICLR 2024)."""

        register_places: Literal["none", "around"] = "none"
        """Rotary places of registers: none, or around the rectangle of the visible tokens (CAPI)."""

        positions: ViTPositions = "sine_cosine"
        """Fixed sines and cosines of each axis (MAE), of the token's flat index (VideoMAE), learned ones, the sum of learned ones
        of place and of time (separate: MAE-ST), or none."""

        resize_positions: Resize = "interpolate"
        """Positions on another grid than the model was built for: the stored table, interpolated as in MAE and transformers
        (interpolate) or as in timm (antialias), or sines and cosines computed for the new grid (recompute)."""

        qkv_bias: QKVBias = "all"
        """Biases of queries, keys and values (MAE, timm), of queries and values only (VideoMAE), or none."""

        embed_init: EmbedInit = "xavier"
        """Initialisation of the patch embedding: Xavier-uniform (MAE), or that of torch's convolution (VideoMAE)."""

        drop_path: Rate = 0.0
        """Rate of stochastic depth in the last block, rising linearly from the first."""

        norm_epsilon: NonNegative = 1e-6
        """Epsilon of the layer norms (MAE, timm: 1e-6; transformers: 1e-12)."""

        rotary: RotaryKind = "none"
        """Rotary positions of queries and keys, in addition to `positions`. Places are counted in tokens (axial: V-JEPA 2, EVA;
        vjepa2: with the fault that V-JEPA 2's released weights need), from -1 to 1 (dinov3), or from 0 to 1 (capi: with the fault
        of CAPI's released weights)."""

        relative_bias: Literal["none", "blocks", "shared"] = "none"
        """Learned bias of attention for each relative position of two tokens of an image, initially zero: none, one in each block
        (blocks), or one for all blocks (shared: BEiT)."""

        norm: Norm = "layer"
        """Norms over a token's values: layer norms, or without mean and bias (rms)."""

        last_norm_weight: bool = True
        """Give the norm after the last block a weight (CAPI: none)."""

        activation: Activation = "gelu"
        """Between the layers of a block's MLP: GELU, or a gate (swiglu), for which `mlp_ratio` is usually 8/3."""

        bias: bool = True
        """Give the linear layers after attention and in MLPs a bias; for queries, keys and values see `qkv_bias`."""

        qk_norm: bool = False
        """Normalise queries and keys in each head."""

        layer_scale: AboveZero | None = None
        """Initial value of the learned factors of a block's branches (LayerScale; BEiT: 0.1). None: no factors."""

        def validate(self) -> None:
            check_width("encoder", self.shape.width, self.head_count)
            check_rotary("encoder", self.rotary, self.shape.width, self.head_count)
            if self.positions in ("learned", "separate") and self.resize_positions == "recompute":
                raise ValueError("encoder.resize_positions recompute needs fixed positions; with learned ones use interpolate")
            if self.positions == "separate" and self.resize_positions == "antialias":
                raise ValueError(
                    "encoder.resize_positions antialias is for images; with encoder.positions separate use interpolate"
                )
            if self.class_tokens > 1 and not self.class_token:
                raise ValueError(f"encoder.class_tokens {self.class_tokens} needs encoder.class_token; or leave it at 1")
            if self.relative_bias != "none" and self.shape.prefix > 1:
                raise ValueError(
                    f"encoder.relative_bias {self.relative_bias} is for one class token or none; leave out encoder.registers "
                    "and encoder.class_tokens"
                )
            if self.register_places == "around" and (self.registers % 4 or not self.registers or self.rotary == "none"):
                raise ValueError(
                    f"encoder.register_places around needs encoder.rotary, here {self.rotary}, and encoder.registers divisible "
                    f"by 4, here {self.registers}"
                )

        @property
        def shape(self) -> Shape:
            width, depth, _ = SIZES[self.size]
            prefix = self.class_tokens * self.class_token + self.registers
            return Shape(self.width or width, self.depth or depth, prefix, self.registers)

        @property
        def hidden(self) -> int:
            """The hidden width of a block's MLP."""
            return round(self.shape.width * (self.mlp_ratio or MLP_RATIOS.get(self.size, 4.0)))

        @property
        def head_count(self) -> int:
            """The heads that were chosen, or the size's own."""
            return self.heads or SIZES[self.size][2]

    config: Config
    block_outputs = ("block", "mlp")
    takes_padding = True

    def __init__(
        self, config: Config, *, token: tuple[int, ...], channels: int, grid: Grid, required: RequiredFeatures, blanks: bool = False
    ) -> None:
        """Builds it.

        Args:
            config: the user's choices.
            token: a token's size, in pixels (and frames).
            channels: C.
            grid: the home grid, for which the table of positions is stored; any other grid can be encoded too.
            required: the features that the decoder requires; a final norm that it does not require is not built.
            blanks: whether masks will blank tokens, which needs a mask token.

        Raises:
            ValueError: registers are to stand around the tokens of a clip.
        """
        super().__init__(config, grid=grid, required=required)
        if config.register_places == "around" and len(grid) != 2:
            raise ValueError("encoder.register_places around is for images, whose tokens span a rectangle; for clips use none")
        if config.relative_bias != "none" and len(grid) != 2:
            raise ValueError(f"encoder.relative_bias {config.relative_bias} is for images; for clips use encoder.rotary")
        width, self.class_tokens = self.shape.width, self.shape.class_tokens
        self.patch_embed = Embedding(token, channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, self.class_tokens, width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        if blanks:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = None
        if config.positions == "separate":
            if len(grid) != 3:
                raise ValueError("encoder.positions separate is for clips; for images use learned")
            self.pos_embed_spatial = learned_table(math.prod(grid[1:]), width)
            self.pos_embed_temporal = learned_table(grid[0], width)
            self.pos_embed_class = learned_table(self.class_tokens, width) if config.class_token else None
        elif config.positions != "none":
            self.pos_embed = position_table(grid, width, self.class_tokens, config.positions)
        self.blocks = make_blocks(
            width,
            self.shape.depth,
            config.head_count,
            mlp_ratio=config.hidden / width,
            epsilon=config.norm_epsilon,
            drop_path=config.drop_path,
            qkv_bias=config.qkv_bias,
            bias=config.bias,
            norm=config.norm,
            activation=config.activation,
            qk_norm=config.qk_norm,
            layer_scale=config.layer_scale,
        )
        self.rel_pos_bias = RelativeTable(grid, config.head_count) if config.relative_bias == "shared" else None
        if config.relative_bias == "blocks":
            attention: Any
            for attention in (block.attn for block in self.blocks):
                attention.relative_position_bias_table = make_table(grid, config.head_count)
        self.norm: nn.Module = nn.Identity()
        if required.last:
            self.norm = make_norm(config.norm, width, config.norm_epsilon, weight=config.last_norm_weight)
        self.apply(initialise)
        if config.embed_init == "torch":
            self.patch_embed.proj.reset_parameters()
        for special in (self.cls_token, self.reg_token, self.mask_token):
            if special is not None:
                nn.init.normal_(special, std=0.02)

    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...], valid: Tensor | None = None) -> Features:
        """Features of the tokens at `where`, (mB, R + M, D); see `Encoder.encode`."""
        tokens = self.embed(visible, where, grid)  # (mB, R + M, D)
        turned = self.config.rotary != "none"
        rotary = self.rotary(grid, where, self.patch_embed.proj.weight.dtype) if turned else None
        last, kept = self._run(tokens, rotary, valid, blocks, relative=self.relative(grid, where))
        return Features(last, self.shape.prefix, where, kept, self.shape.registers, valid)

    def packed(self, patches: Sequence[Tensor], grids: Sequence[Grid], masks: Sequence[Mask]) -> list[Features]:
        """Features of batches of different grids, whose tokens go through the blocks as one sequence."""
        if len(patches) == 1:
            return [self(patches[0], grids[0], masks[0])]
        if self.config.relative_bias != "none":  # the biases of samples of different grids are no one tensor
            return super().packed(patches, grids, masks)
        given = [shown(*one, self.shape.prefix) for one in zip(patches, grids, masks, strict=True)]
        visible, places, padding = zip(*given, strict=True)
        groups = [self.embed(*one) for one in zip(visible, places, grids, strict=True)]  # (mB, R + M, D) each
        packing, dtype = Packing.of(groups), self.patch_embed.proj.weight.dtype
        rotary = Rotary.packed([self.rotary(grid, where, dtype) for grid, where in zip(grids, places, strict=True)], packing)
        last, kept = self._run(packing.pack(groups), rotary, packing.pack_valid(padding), self.required.blocks, packing)
        blocks = {number: packing.unpack(tokens) for number, tokens in kept.items()}
        return [
            Features(
                tokens, self.shape.prefix, where, {number: blocks[number][group] for number in blocks}, self.shape.registers, valid
            )
            for group, (tokens, where, valid) in enumerate(zip(packing.unpack(last), places, padding, strict=True))
        ]

    def _run(
        self,
        tokens: Tensor,
        rotary: Rotary | None,
        valid: Tensor | None,
        blocks: tuple[int, ...],
        packing: Packing | None = None,
        relative: RelativePlaces | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs the blocks and the last norm, (B, M, D) -> (B, M, D); returns the outputs of the requested blocks too."""
        kept = {0: tokens} if 0 in blocks else {}
        for number, block in enumerate(self.blocks, start=1):
            added: list[Tensor] | None = [] if self.block_output == "mlp" and number in blocks else None
            tokens = block(tokens, rotary, None, added, valid, packing, relative)
            if number in blocks:
                kept[number] = added[0] if added else tokens
        return self.norm(tokens), kept

    def rotary(self, grid: Grid, where: Tensor, dtype: torch.dtype) -> Rotary | None:
        """Returns the rotations of the queries and keys of these tokens, or None where positions are added to the tokens alone."""
        channels = self.shape.width // self.config.head_count
        around = self.config.registers if self.config.register_places == "around" else 0
        return make_rotary(self.config.rotary, grid, channels, where, prefix=self.shape.prefix, around=around, dtype=dtype)

    def relative(self, grid: Grid, where: Tensor) -> RelativePlaces | None:
        """Returns the relative positions of these tokens, or None where attention has no bias."""
        if self.config.relative_bias == "none":
            return None
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias.relative_position_bias_table
        return RelativePlaces(relative_index(grid, where, self.shape.prefix), self.home, grid, shared)

    def embed(self, visible: Tensor, where: Tensor, grid: Grid) -> Tensor:
        """The input of the first block: embedded patches and mask tokens with their positions, (mB, V, P) -> (mB, R + M, D)."""
        tokens = self.append_mask_tokens(self.patch_embed(visible), where)  # (mB, V, P) -> (mB, V + H, D)
        prefix: list[Tensor] = [] if self.cls_token is None else [self.cls_token]
        if self.config.positions != "none":
            table = self.positions_of(grid)
            tokens = tokens + take(table[:, self.class_tokens :], where)
            prefix = [token + table[:, : self.class_tokens] for token in prefix]
        prefix += [] if self.reg_token is None else [self.reg_token]
        if not prefix:
            return tokens
        first = torch.cat(prefix, dim=1).to(tokens.dtype)  # (1, R, D)
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (mB, R + M, D)

    def positions_of(self, grid: Grid) -> Tensor:
        """The positions of the class tokens and of the tokens of a grid, (1, R - r + N, D)."""
        if self.config.positions == "separate":
            body = sum_of_tables(self.separate_at(grid))  # (1, N, D)
            return body if self.pos_embed_class is None else torch.cat([self.pos_embed_class, body], dim=1)
        assert self.pos_embed is not None
        if grid == self.home:
            return self.pos_embed
        config: Any = self.config
        return positions(self.pos_embed, self.home, grid, self.class_tokens, config.positions, config.resize_positions)

    def separate_at(self, grid: Grid) -> dict[str, Tensor]:
        """The tables of places and of times for a grid, by name; resized where it is not the home grid."""
        tables = {"pos_embed_spatial": self.pos_embed_spatial, "pos_embed_temporal": self.pos_embed_temporal}
        return resize_tables(tables, self.home, grid)

    def state_at(self, grid: Grid) -> dict[str, Tensor]:
        """The state of the same encoder for another home grid; see `Encoder.state_at`."""
        state = super().state_at(grid)
        if self.config.positions == "separate":
            state |= {name: table.detach() for name, table in self.separate_at(grid).items()}
        tables = {name: value for name, value in state.items() if name.endswith("relative_position_bias_table")}
        state |= {name: resize_table(value, self.home, grid).detach() for name, value in tables.items()}
        return state if self.pos_embed is None else state | {"pos_embed": self.positions_of(grid).detach()}
