"""Builds models on the meta device from the shapes in a file; `mmm.weights.matching.fill` then copies the tensors.

Files do not contain the number of heads, the grid of the positions or the normalisation of pixels: published values are assumed.

Legend: p side of a patch, C channels, N tokens of the grid, D width.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmm.classifier import Classifier, HeadConfig
from mmm.core.positions import coordinates, sine_cosine
from mmm.core.registry import PartConfig
from mmm.core.tokens import Grid
from mmm.core.types import Input, RequiredFeatures
from mmm.data.transforms.crop import margin_of
from mmm.decoders import DecoderConfig, decoders
from mmm.encoders import EncoderConfig, VisionTransformer, encoders
from mmm.encoders.vit import SIZES
from mmm.maskers import MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, tokenizers
from mmm.weights.formats.base import Options, find_input

HEADS = {width: heads for width, _, heads in SIZES.values()}
MAE_DECODER_HEADS = {256: 8, 512: 16}  # by width, for MAE and CrossMAE
VIDEOMAE_TARGET = PixelTarget.Config(standardise="channel", epsilon_inside=False, pixels="unit")


# name in mmm, name in timm, MAE and CrossMAE; names that end in a dot are prefixes
ENCODER = (
    ("encoder.cls_token", "cls_token"),
    ("encoder.pos_embed", "pos_embed"),
    ("encoder.patch_embed.", "patch_embed."),
    ("encoder.blocks.", "blocks."),
    ("encoder.norm.", "norm."),
)
DECODER = (
    ("decoder.mask_token", "mask_token"),
    ("decoder.pos_embed", "decoder_pos_embed"),
    ("decoder.blocks.", "decoder_blocks."),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.head.", "decoder_pred."),
)


@dataclass(frozen=True)
class Stack:
    """Transformer blocks of a file: width, number of blocks, hidden width of their MLPs."""

    width: int
    depth: int
    hidden: int

    @property
    def mlp_ratio(self) -> float:
        """The hidden width over the width."""
        return self.hidden / self.width

    def __str__(self) -> str:
        return f"width {self.width} and {self.depth} blocks"


def build(
    encoder: EncoderConfig,
    *,
    tokenizer: PartConfig,
    data: Input,
    required: RequiredFeatures,
    blanks: bool = False,
    decoder: DecoderConfig | None = None,
    target: PixelTarget.Config | None = None,
    masker: MaskerConfig | None = None,
) -> MaskedModel:
    """Returns a model whose encoder and decoder are on the meta device; `fill` allocates them."""
    cutter = tokenizers.build(tokenizer, channels=data.channels)
    grid = cutter.grid_of(data.size)
    with torch.device("meta"):  # without memory, so that weights that will be overwritten are not initialised
        body = encoders.build(encoder, token=cutter.size, channels=data.channels, grid=grid, required=required, blanks=blanks)
        head = None if decoder is None else decoders.build(decoder, encoder=body.shape, grid=grid, outputs=(cutter.width,))
    pixels = PixelTarget(target or PixelTarget.Config(), token=cutter.size, data=data, encoder=body)
    return MaskedModel(cutter, maskers.build(masker or RandomMasker.Config()), body, head, pixels, data=data)


def with_head(
    model: MaskedModel, *, classes: int, pool: PartConfig, head: HeadConfig, labels: tuple[str, ...] | None = None
) -> Classifier:
    """Returns a classifier with the encoder of a model from `build`; pool and head are on the meta device."""
    with torch.device("meta"):
        return Classifier.of(model, classes=classes, pool=pool, head=head, labels=labels)


def describe_pixels(data: Input) -> str:
    """Describes the normalisation of samples."""
    return "pixels in [0, 1]" if set(data.std) == {1.0} else f"mean {data.mean} and std {data.std}"


def needed(weights: Mapping[str, Tensor], name: str, dimensions: int, source: str) -> Tensor:
    """Returns a tensor whose shape describes the model.

    Raises:
        ValueError: the tensor is missing, or has another number of dimensions.
    """
    if name not in weights:
        raise ValueError(f"{source} does not fit: it lacks {name}")
    if weights[name].dim() != dimensions:
        raise ValueError(f"{source} has {name} as {tuple(weights[name].shape)}; it must have {dimensions} dimensions")
    return weights[name]


@dataclass(frozen=True)
class ImageEncoder:
    """An encoder of images, described by the shapes of its weights.

    Attributes:
        data: size and channels of the images of its positions.
        about: description as text.
    """

    config: VisionTransformer.Config
    tokenizer: Patches.Config
    data: Input
    about: str


def read_image_encoder(
    weights: Mapping[str, Tensor], options: Options, source: str, *, optional: bool = False, pixels: Mapping[str, Any] | None = None
) -> ImageEncoder:
    """Returns the config of an encoder from the shapes of its weights, under the names that MAE, CrossMAE and timm share.

    Args:
        optional: whether the class token and the biases of queries, keys and values may be missing.
        pixels: content of a preprocessor_config.json.

    Raises:
        ValueError: a tensor is missing or has a wrong shape, or an option does not fit.
    """
    embedding, table = needed(weights, "patch_embed.proj.weight", 4, source), needed(weights, "pos_embed", 3, source)
    _, channels, patch, across = embedding.shape
    if patch != across or not channels or not patch:
        raise ValueError(f"{source} has patch_embed.proj.weight as {tuple(embedding.shape)}; patches must be square")
    # an optional class token is absent, unless there are positions for a square and one more: then its tensor was lost
    whole = options.image_size is None and math.isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1
    class_token = not optional or "cls_token" in weights or whole
    biased = not optional or any(name.endswith(".attn.qkv.bias") for name in weights)
    tokens = table.shape[1] - int(class_token)
    grid = find_grid(tokens, patch, options.image_size, source)
    stack = read_stack(weights, "blocks", source)
    heads = find_heads("heads", options.heads, stack.width, HEADS, source)
    fixed = is_fixed(table, grid)
    config = VisionTransformer.Config(
        width=stack.width,
        depth=stack.depth,
        heads=heads,
        mlp_ratio=stack.mlp_ratio,
        class_token=class_token,
        qkv_bias="all" if biased else "none",
        positions="sine_cosine" if fixed else "learned",
    )
    kind = "fixed" if fixed else "learned"
    about = f"encoder of {stack}, {tokens} patches of {patch} x {patch} pixels and {channels} channels, {kind} positions"
    said = pixels or {}
    data = find_input(tuple(patch * side for side in grid), channels, said.get("image_mean"), said.get("image_std"))
    return ImageEncoder(config, Patches.Config(size=patch), data, about)


def count_blocks(weights: Mapping[str, Tensor], prefix: str, source: str) -> int:
    """Returns the number of blocks under a prefix, which ends in a dot.

    Raises:
        ValueError: a whole block is missing, or there is none.
    """
    numbers = {int(found[1]) for name in weights if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    absent = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if not numbers or absent < len(numbers):
        raise ValueError(f"{source} does not fit: it lacks {prefix}{absent}")
    return len(numbers)


def read_stack(weights: Mapping[str, Tensor], prefix: str, source: str) -> Stack:
    """Returns the size of the blocks under a prefix: that of most tensors, so that a later error names the tensor that differs.

    Raises:
        ValueError: a whole block is missing.
    """
    parts = {name: name.removeprefix(f"{prefix}.").split(".", 1) for name in weights if name.startswith(f"{prefix}.")}
    depth = count_blocks(weights, f"{prefix}.", source)

    def usual(places: Mapping[str, int]) -> int:
        known = [(weights[name].shape, places[part[1]]) for name, part in parts.items() if len(part) == 2 and part[1] in places]
        counts = Counter(shape[axis] for shape, axis in known if len(shape) > axis)
        if not counts:
            raise ValueError(f"{source} does not fit: it lacks {', '.join(f'{prefix}.0.{name}' for name in places)}")
        return counts.most_common(1)[0][0]

    width = usual({"norm1.weight": 0, "norm1.bias": 0, "norm2.weight": 0, "norm2.bias": 0})
    return Stack(width, depth, usual({"mlp.fc1.weight": 0, "mlp.fc1.bias": 0, "mlp.fc2.weight": 1}))


def find_grid(tokens: int, patch: int, image_size: int | tuple[int, int] | None, source: str) -> Grid:
    """Returns the grid (H', W') of a table of positions for N `tokens`.

    Raises:
        ValueError: N is not a square and no size is given, or the size does not fit.
    """
    if image_size is None:
        side = math.isqrt(max(tokens, 0))
        if side * side != tokens or not tokens:
            raise ValueError(f"{source} has positions for {tokens} tokens, which make no square; give image_size=(height, width)")
        return side, side
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid = tuple(side // patch for side in sides)
    if len(sides) != 2 or min(grid) < 1 or any(side % patch for side in sides) or math.prod(grid) != tokens:
        raise ValueError(f"image_size={image_size} does not fit {source}, which has {tokens} patches of {patch} x {patch} pixels")
    return grid


def find_heads(argument: str, given: int | None, width: int, published: Mapping[int, int], source: str) -> int:
    """Returns the given number of heads or, for a published width, the number of the published model.

    Raises:
        ValueError: the argument is needed, or does not divide the width.
    """
    heads = published.get(width) if given is None else given
    if heads is None:
        raise ValueError(f"{source} has a width of {width}, for which no published number of heads is known; give {argument}=")
    if heads < 1 or width % heads:
        raise ValueError(f"{argument}={heads} does not divide the width of {width} in {source}; give a divisor")
    return heads


def is_fixed(table: Tensor, grid: Grid) -> bool:
    """Returns whether a table (1, R + N, D) ends with sines and cosines of this grid, up to the rounding of its precision."""
    tokens = math.prod(grid)
    if table.dim() != 3 or table.shape[2] % 2 or table.shape[1] < tokens:
        return False
    fixed = sine_cosine(coordinates(grid), table.shape[2])
    rounded = torch.equal(table, table.bfloat16().to(table.dtype))  # the error of bf16 is at most 2^-9
    return torch.allclose(table[0, -tokens:].double(), fixed, atol=2**-8 if rounded else 1e-3)


def describe_assumed(encoder: ImageEncoder, decoder_heads: int, options: Options) -> str:
    """Describes the assumed properties of a file of MAE or CrossMAE."""
    standardised = "not standardised" if options.norm_pix is False else "standardised"
    heads = f"{encoder.config.head_count} heads, {decoder_heads} decoder heads"
    return f"{heads}, targets {standardised} per patch, {describe_pixels(encoder.data)}"


def official_lines(file: Path, kind: str, key: str = "model") -> list[str]:
    """Returns lines of Python that read an official file."""
    return ["import torch", f"weights = torch.load({str(file)!r}, weights_only=True)[{key!r}]  # for {kind} of the same size"]


def pretrained_config(data: Input, classes: int) -> dict[str, Any]:
    """Returns size and normalisation of a model's pixels, in the form of timm's config.json."""
    return {
        "input_size": [data.channels, *data.size],
        "mean": list(data.mean),
        "std": list(data.std),
        "interpolation": "bicubic",
        "crop_pct": 1 / margin_of((data.size[0], data.size[1])),
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
