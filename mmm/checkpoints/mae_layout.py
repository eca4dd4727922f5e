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
    "dec_norms.": "CrossMAE's layout",
    "wfm.": "CrossMAE's layout",
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
        width, rows = self.encoder.width, self.tokens + 1  # a class token first
        shapes: dict[str, tuple[int, ...]] = {
            "cls_token": (1, 1, width),
            "pos_embed": (1, rows, width),
            "patch_embed.proj.weight": (width, self.channels, self.patch, self.patch),
            "patch_embed.proj.bias": (width,),
            **_block_shapes("blocks", self.encoder),
        }
        if self.normed:
            shapes |= _norm("norm", width)
        if self.decoder is not None:
            inner = self.decoder.width
            shapes |= _linear("decoder_embed", width, inner) | {"mask_token": (1, 1, inner), "decoder_pos_embed": (1, rows, inner)}
            shapes |= _block_shapes("decoder_blocks", self.decoder) | _norm("decoder_norm", inner)
            shapes |= _linear("decoder_pred", inner, self.channels * self.patch**2)
        return shapes

    def __str__(self) -> str:
        parts = [f"encoder of width {self.encoder.width} and {self.encoder.depth} blocks"]
        if self.decoder is not None:
            parts.append(f"decoder of width {self.decoder.width} and {self.decoder.depth} blocks")
        return f"{', '.join(parts)}, {self.tokens} patches of {self.patch} x {self.patch} pixels and {self.channels} channels"


def their_name(name: str) -> str | None:
    """MAE's name of one of our weights, or none."""
    return _renamed(name, NAMES)


def our_name(name: str) -> str | None:
    """Our name of one of MAE's weights, or none."""
    return _renamed(name, tuple((theirs, ours) for ours, theirs in NAMES))


def read_layout(weights: Mapping[str, Tensor], source: str) -> Layout:
    """What the shapes of these weights say. Where several tensors say it, the majority counts, so that the odd one is named.

    Raises:
        ValueError: where a tensor that alone says something is missing or misshapen; `refuse_mismatch` names all others.
    """
    embedding, table = _wanted(weights, "patch_embed.proj.weight", 4, source), _wanted(weights, "pos_embed", 3, source)
    _, channels, patch, across = embedding.shape
    if patch != across or not channels or not patch:
        raise ValueError(f"{source} has patch_embed.proj.weight as {tuple(embedding.shape)}; patches must be square")
    decoder = any(name.startswith(DECODER) for name in weights)
    normed = any(name.startswith("norm.") for name in weights) or not any(name.startswith("fc_norm.") for name in weights)
    return Layout(
        encoder=_stack(weights, "blocks", source),
        decoder=_stack(weights, "decoder_blocks", source) if decoder else None,
        patch=patch,
        channels=channels,
        tokens=table.shape[1] - 1,
        normed=normed,
    )


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for old, new in table:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return None


def _wanted(weights: Mapping[str, Tensor], name: str, dimensions: int, source: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"{source} does not fit: it lacks {name}")
    if weights[name].dim() != dimensions:
        raise ValueError(f"{source} has {name} as {tuple(weights[name].shape)}; it must have {dimensions} dimensions")
    return weights[name]


def _stack(weights: Mapping[str, Tensor], prefix: str, source: str) -> Stack:
    """Width, depth and hidden width of the blocks under a prefix; a block that is missing as a whole is named."""
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


def _block_shapes(prefix: str, stack: Stack) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(stack.depth):
        block = f"{prefix}.{number}"
        shapes |= _norm(f"{block}.norm1", stack.width) | _linear(f"{block}.attn.qkv", stack.width, 3 * stack.width)
        shapes |= _linear(f"{block}.attn.proj", stack.width, stack.width) | _norm(f"{block}.norm2", stack.width)
        shapes |= _linear(f"{block}.mlp.fc1", stack.width, stack.hidden) | _linear(f"{block}.mlp.fc2", stack.hidden, stack.width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
