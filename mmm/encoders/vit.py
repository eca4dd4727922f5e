"""The vision transformer (Dosovitskiy et al., ICLR 2021) as MAE uses it, under timm's names.

Shapes: B samples (mB rows where a mask has several a sample), N tokens, P values a token, V visible, H blank, M = V + H,
R prefix tokens (1 with a class token, else 0), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmm.core.checks import AboveZero, NonNegative, Positive, Rate, check_width
from mmm.core.tokens import Grid, Positions, Resize, position_table, positions, take
from mmm.core.types import Features, RequiredFeatures, Shape
from mmm.encoders.base import Encoder, EncoderConfig, encoders
from mmm.layers.patch_embed import Embedding
from mmm.layers.rotary import Rotary, RotaryKind, check_rotary, make_rotary
from mmm.layers.transformer import Activation, EmbedInit, Norm, QKVBias, initialise, make_blocks, make_norm

Size = Literal["tiny", "small", "base", "large", "huge"]
# width, depth, heads: Dosovitskiy et al. table 1; tiny and small are DeiT's (Touvron et al., ICML 2021)
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}


@encoders.register("vit")
class VisionTransformer(Encoder):
    """A plain vision transformer over the tokens that it is shown."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderConfig):
        size: Size = "base"
        """Width, depth and heads by name: tiny 192/12/3, small 384/12/6, base 768/12/12, large 1024/24/16, huge 1280/32/16."""

        width: Positive | None = None
        """Width instead of the size's own."""

        depth: Positive | None = None
        """Number of blocks instead of the size's own."""

        heads: Positive | None = None
        """Number of attention heads instead of the size's own."""

        mlp_ratio: AboveZero = 4.0
        """Hidden width of a block's MLP over its width."""

        class_token: bool = True
        """Put a class token before the others."""

        positions: Positions = "sine_cosine"
        """Fixed sines and cosines of each axis (MAE), of the token's flat index (VideoMAE), or learned ones."""

        resize_positions: Resize = "interpolate"
        """Positions on another grid than the model was built for: the stored table, interpolated as MAE and transformers do
        (interpolate) or as timm does (antialias); or sines and cosines that are computed for the new grid (recompute)."""

        qkv_bias: QKVBias = "all"
        """Biases of queries, keys and values (MAE, timm), of queries and values only (VideoMAE), or none."""

        embed_init: EmbedInit = "xavier"
        """Start the patch embedding Xavier-uniform (MAE) or as torch does a convolution (VideoMAE)."""

        drop_path: Rate = 0.0
        """Rate of stochastic depth in the last block, rising linearly from the first."""

        norm_epsilon: NonNegative = 1e-6
        """Epsilon of the layer norms (MAE, timm: 1e-6; transformers: 1e-12)."""

        rotary: RotaryKind = "none"
        """Turn queries and keys by their places, beside `positions`: counted in tokens (axial: V-JEPA 2, EVA; vjepa2: with the
        fault that V-JEPA 2's released weights need), or from -1 to 1 (dinov3)."""

        norm: Norm = "layer"
        """Norms over a token's values: layer norms, or without mean and bias (rms)."""

        activation: Activation = "gelu"
        """Between the layers of a block's MLP: GELU, or a gate (swiglu), for which `mlp_ratio` is usually 8/3."""

        bias: bool = True
        """Give the linear layers behind attention and in MLPs a bias; `qkv_bias` says it of queries, keys and values."""

        qk_norm: bool = False
        """Norm queries and keys, head by head."""

        layer_scale: AboveZero | None = None
        """First value of a factor for each value of a block's branches (BEiT: 0.1); none: no factors."""

        def validate(self) -> None:
            check_width("encoder", self.shape.width, self.head_count)
            check_rotary("encoder", self.rotary, self.shape.width, self.head_count)
            if self.positions == "learned" and self.resize_positions == "recompute":
                raise ValueError("encoder.resize_positions recompute needs fixed positions; with learned ones use interpolate")

        @property
        def shape(self) -> Shape:
            width, depth, _ = SIZES[self.size]
            return Shape(self.width or width, self.depth or depth, int(self.class_token))

        @property
        def head_count(self) -> int:
            """The heads that were chosen, or the size's own."""
            return self.heads or SIZES[self.size][2]

    config: Config

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
        """
        super().__init__(config, grid=grid, required=required)
        width = self.shape.width
        self.patch_embed = Embedding(token, channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        if blanks:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = position_table(grid, width, self.shape.prefix, config.positions)
        self.blocks = make_blocks(
            width,
            self.shape.depth,
            config.head_count,
            mlp_ratio=config.mlp_ratio,
            epsilon=config.norm_epsilon,
            drop_path=config.drop_path,
            qkv_bias=config.qkv_bias,
            bias=config.bias,
            norm=config.norm,
            activation=config.activation,
            qk_norm=config.qk_norm,
            layer_scale=config.layer_scale,
        )
        self.norm = make_norm(config.norm, width, config.norm_epsilon) if required.last else nn.Identity()
        self.apply(initialise)
        if config.embed_init == "torch":
            self.patch_embed.proj.reset_parameters()
        for special in (self.cls_token, self.mask_token):
            if special is not None:
                nn.init.normal_(special, std=0.02)

    def encode(self, visible: Tensor, where: Tensor, grid: Grid, blocks: tuple[int, ...]) -> Features:
        """Features of the tokens at `where`, (mB, R + M, D); see `Encoder.encode`."""
        tokens = self.embed(visible, where, grid)  # (mB, R + M, D)
        rotary = self.rotary(grid, where, self.pos_embed.dtype)
        kept = {0: tokens} if 0 in blocks else {}
        for number, block in enumerate(self.blocks, start=1):
            added: list[Tensor] | None = [] if self.block_output == "mlp" and number in blocks else None
            tokens = block(tokens, rotary, added)
            if number in blocks:
                kept[number] = added[0] if added else tokens
        return Features(self.norm(tokens), self.shape.prefix, where, kept)

    def rotary(self, grid: Grid, where: Tensor, dtype: torch.dtype) -> Rotary | None:
        """Returns the rotations of the queries and keys of these tokens, or None where positions are added to the tokens alone."""
        channels = self.shape.width // self.config.head_count
        return make_rotary(self.config.rotary, grid, channels, where, prefix=self.shape.prefix, dtype=dtype)

    def embed(self, visible: Tensor, where: Tensor, grid: Grid) -> Tensor:
        """The input of the first block: embedded patches and mask tokens with their positions, (mB, V, P) -> (mB, R + M, D)."""
        tokens = self.append_mask_tokens(self.patch_embed(visible), where)  # (mB, V, P) -> (mB, V + H, D)
        table = positions(self.pos_embed, self.home, grid, self.shape.prefix, self.config.positions, self.config.resize_positions)
        tokens = tokens + take(table[:, self.shape.prefix :], where)
        if self.cls_token is None:
            return tokens
        prefix = (self.cls_token + table[:, :1]).to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([prefix, tokens], dim=1)  # (mB, 1 + M, D)
