"""What the official layouts have in common: stacks of blocks, the shapes that they dictate, and what shapes say of a stack.

Legend: D width, p side of a patch, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmm.layers.transformer import QKVBias

QKV_BIASES: dict[QKVBias, dict[str, int]] = {"all": {"qkv.bias": 3}, "qv": {"q_bias": 1, "v_bias": 1}, "none": {}}


@dataclass(frozen=True)
class Stack:
    """A stack of blocks: width, number of blocks, hidden width of their MLPs."""

    width: int
    depth: int
    hidden: int


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


def block_shapes(prefix: str, stack: Stack, biases: QKVBias = "all") -> dict[str, tuple[int, ...]]:
    """Of a stack of self-attention blocks, with these biases of queries, keys and values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(stack.depth):
        block = f"{prefix}.{number}"
        shapes |= norm_shapes(f"{block}.norm1", stack.width) | {f"{block}.attn.qkv.weight": (3 * stack.width, stack.width)}
        shapes |= {f"{block}.attn.{name}": (share * stack.width,) for name, share in QKV_BIASES[biases].items()}
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
