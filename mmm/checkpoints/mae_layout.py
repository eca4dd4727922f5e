"""MAE's official layout: its names, and the shapes that go with them (models_mae.py, models_vit.py, util/misc.py).

Legend: D and d widths of encoder and decoder, L blocks, h hidden width of an MLP, p side of a patch, C channels, N tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmm.checkpoints.account import Shapes

# our name, MAE's name; those that end in a dot are beginnings
NAMES = (
    ("encoder.cls_token", "cls_token"),
    ("encoder.pos_embed", "pos_embed"),
    ("encoder.patch_embed.", "patch_embed."),
    ("encoder.blocks.", "blocks."),
    ("encoder.norm.", "norm."),
    ("decoder.embed.", "decoder_embed."),
    ("decoder.mask_token", "mask_token"),
    ("decoder.pos_embed", "decoder_pos_embed"),
    ("decoder.blocks.", "decoder_blocks."),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.head.", "decoder_pred."),
)
DECODER = tuple(theirs for ours, theirs in NAMES if ours.startswith("decoder."))
CLASSIFIER = ("fc_norm.", "head.")  # what fine-tuning and linear probing add
MARKS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")  # either makes a file one of this layout
OTHERS = {  # how the names of what is not read begin; the first that is found counts
    "encoder_to_decoder.": "VideoMAE's layout",
    "vit.embeddings.": "transformers' ViTMAE",
    "encoder.patch_embed.": "weights of a run without its config.yaml",
}


@dataclass(frozen=True)
class Stack:
    """A stack of blocks: width, number of blocks, hidden width of their MLPs."""

    width: int
    depth: int
    hidden: int


@dataclass(frozen=True)
class Layout:
    """What the shapes in a file of this layout say.

    Attributes:
        encoder, decoder: their blocks; no decoder in a file of the encoder alone.
        patch: side of a patch, in pixels.
        channels: of a pixel.
        tokens: of the grid that its positions are for.
        normed: whether there is a final norm; fine-tuning on the mean of the tokens replaces it by `fc_norm`.
    """

    encoder: Stack
    decoder: Stack | None
    patch: int
    channels: int
    tokens: int
    normed: bool

    @property
    def shapes(self) -> Shapes:
        """The shape of every weight, by MAE's names."""
        shapes = encoder_shapes(self.encoder, self.patch, self.channels, self.tokens)
        if self.normed:
            shapes |= norm_shapes("norm", self.encoder.width)
        if self.decoder is not None:
            inner = self.decoder.width
            shapes |= linear_shapes("decoder_embed", self.encoder.width, inner) | block_shapes("decoder_blocks", self.decoder)
            shapes |= {"mask_token": (1, 1, inner), "decoder_pos_embed": (1, self.tokens + 1, inner)}
            shapes |= norm_shapes("decoder_norm", inner)
            shapes |= linear_shapes("decoder_pred", inner, self.channels * self.patch**2)
        return shapes

    def __str__(self) -> str:
        parts = [f"encoder of width {self.encoder.width} and {self.encoder.depth} blocks"]
        if self.decoder is not None:
            parts.append(f"decoder of width {self.decoder.width} and {self.decoder.depth} blocks")
        return f"{', '.join(parts)}, {self.tokens} patches of {self.patch} x {self.patch} pixels and {self.channels} channels"


def their_name(name: str) -> str | None:
    """MAE's name of one of our weights, or none."""
    return renamed(name, NAMES)


def our_name(name: str) -> str | None:
    """Our name of one of MAE's weights, or none."""
    return renamed(name, tuple((theirs, ours) for ours, theirs in NAMES))


def read_layout(weights: Mapping[str, Tensor], source: str) -> Layout:
    """What the shapes of these weights say. Where several tensors say it, the majority counts, so that the odd one is named.

    Raises:
        ValueError: where a tensor that alone says something is missing or misshapen; `refuse_mismatch` names all others.
    """
    patch, channels, tokens = read_embedding(weights, source)
    decoder = any(name.startswith(DECODER) for name in weights)
    normed = any(name.startswith("norm.") for name in weights) or not any(name.startswith("fc_norm.") for name in weights)
    return Layout(
        encoder=stack_of(weights, "blocks", source),
        decoder=stack_of(weights, "decoder_blocks", source) if decoder else None,
        patch=patch,
        channels=channels,
        tokens=tokens,
        normed=normed,
    )


def read_embedding(weights: Mapping[str, Tensor], source: str) -> tuple[int, int, int]:
    """Side of a patch, channels of a pixel, tokens of the grid.

    Raises:
        ValueError: where they cannot be told, or patches are not square.
    """
    embedding, table = needed(weights, "patch_embed.proj.weight", 4, source), needed(weights, "pos_embed", 3, source)
    _, channels, patch, across = embedding.shape
    if patch != across or not channels or not patch:
        raise ValueError(f"{source} has patch_embed.proj.weight as {tuple(embedding.shape)}; patches must be square")
    return patch, channels, table.shape[1] - 1


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """The other name of a weight in a table of (old, new) names and beginnings, or none."""
    for old, new in table:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return None


def needed(weights: Mapping[str, Tensor], name: str, dimensions: int, source: str) -> Tensor:
    """A tensor that alone says something of the model.

    Raises:
        ValueError: where it is missing, or has another number of dimensions.
    """
    if name not in weights:
        raise ValueError(f"{source} does not fit: it lacks {name}")
    if weights[name].dim() != dimensions:
        raise ValueError(f"{source} has {name} as {tuple(weights[name].shape)}; it must have {dimensions} dimensions")
    return weights[name]


def stack_of(weights: Mapping[str, Tensor], prefix: str, source: str) -> Stack:
    """Width, depth and hidden width of the blocks under a prefix.

    Raises:
        ValueError: naming a block that is missing as a whole.
    """
    parts = {name: name.split(".", 2) for name in weights if name.startswith(f"{prefix}.")}
    numbers = {int(part[1]) for part in parts.values() if len(part) == 3 and part[1].isdecimal()}
    absent = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if not numbers or absent < max(numbers):
        raise ValueError(f"{source} does not fit: it lacks {prefix}.{absent}")

    def usual(places: Mapping[str, int]) -> int:
        known = [(weights[name].shape, places[part[2]]) for name, part in parts.items() if len(part) == 3 and part[2] in places]
        counts = Counter(shape[axis] for shape, axis in known if len(shape) > axis)
        if not counts:
            raise ValueError(f"{source} does not fit: it lacks {', '.join(f'{prefix}.0.{name}' for name in places)}")
        return counts.most_common(1)[0][0]

    width = usual({"norm1.weight": 0, "norm1.bias": 0, "norm2.weight": 0, "norm2.bias": 0})
    return Stack(width, len(numbers), usual({"mlp.fc1.weight": 0, "mlp.fc1.bias": 0, "mlp.fc2.weight": 1}))


def encoder_shapes(stack: Stack, patch: int, channels: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Of an encoder without its final norm; a class token comes first."""
    return {
        "cls_token": (1, 1, stack.width),
        "pos_embed": (1, tokens + 1, stack.width),
        "patch_embed.proj.weight": (stack.width, channels, patch, patch),
        "patch_embed.proj.bias": (stack.width,),
        **block_shapes("blocks", stack),
    }


def block_shapes(prefix: str, stack: Stack) -> dict[str, tuple[int, ...]]:
    """Of a stack of self-attention blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(stack.depth):
        block = f"{prefix}.{number}"
        shapes |= norm_shapes(f"{block}.norm1", stack.width) | linear_shapes(f"{block}.attn.qkv", stack.width, 3 * stack.width)
        shapes |= linear_shapes(f"{block}.attn.proj", stack.width, stack.width) | norm_shapes(f"{block}.norm2", stack.width)
        shapes |= mlp_shapes(block, stack)
    return shapes


def mlp_shapes(block: str, stack: Stack) -> dict[str, tuple[int, ...]]:
    """Of a block's MLP."""
    width, hidden = stack.width, stack.hidden
    return linear_shapes(f"{block}.mlp.fc1", width, hidden) | linear_shapes(f"{block}.mlp.fc2", hidden, width)


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
