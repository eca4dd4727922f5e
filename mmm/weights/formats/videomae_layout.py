"""VideoMAE's official layout: its names, and the shapes that go with them (modeling_pretrain.py, modeling_finetune.py).

A file of the encoder alone, or of a classifier, names the encoder's weights without `encoder.`. Positions stand in no file.

Legend: D and d widths of encoder and decoder, t frames and p pixels of a tube's sides, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmm.layers.transformer import QKVBias
from mmm.weights.formats.shapes import Stack, block_shapes, linear_shapes, needed, norm_shapes, renamed, stack_of
from mmm.weights.matching import Shapes

# our name, VideoMAE's name; those that end in a dot are beginnings
NAMES = (
    ("encoder.patch_embed.", "encoder.patch_embed."),
    ("encoder.blocks.", "encoder.blocks."),
    ("encoder.norm.", "encoder.norm."),
    ("decoder.embed.weight", "encoder_to_decoder.weight"),
    ("decoder.mask_token", "mask_token"),
    ("decoder.blocks.", "decoder.blocks."),
    ("decoder.norm.", "decoder.norm."),
    ("decoder.head.", "decoder.head."),
)
DECODER = ("encoder_to_decoder.", "mask_token", "decoder.")
CLASSIFIER = ("fc_norm.", "head.")  # what fine-tuning adds
EMBEDDING = "patch_embed.proj.weight"


def is_videomae(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are of this layout: keys have no bias of their own, or tokens have a depth; no class token, no positions."""
    if "cls_token" in weights or "pos_embed" in weights:
        return False
    marked = any(name.startswith("encoder_to_decoder.") or name.endswith((".attn.q_bias", ".attn.v_bias")) for name in weights)
    return marked or (EMBEDDING in weights and weights[EMBEDDING].dim() == 5)


@dataclass(frozen=True)
class VideoLayout:
    """What the shapes in a file of this layout say.

    Attributes:
        encoder, decoder: their blocks; no decoder in a file of the encoder alone.
        biases: of queries, keys and values, in both.
        tube: its frames, and its side in pixels.
        channels: of a pixel.
        normed: whether the encoder has a final norm; fine-tuning on the mean of the tokens replaces it by `fc_norm`.
        prefix: how the encoder's names begin.
    """

    encoder: Stack
    decoder: Stack | None
    biases: QKVBias
    tube: tuple[int, int]
    channels: int
    normed: bool
    prefix: str

    @property
    def shapes(self) -> Shapes:
        """The shape of every weight, by VideoMAE's names."""
        width, (frames, side), at = self.encoder.width, self.tube, self.prefix
        shapes: dict[str, tuple[int, ...]] = {f"{at}{EMBEDDING}": (width, self.channels, frames, side, side)}
        shapes |= {f"{at}patch_embed.proj.bias": (width,), **block_shapes(f"{at}blocks", self.encoder, self.biases)}
        if self.normed:
            shapes |= norm_shapes(f"{at}norm", width)
        if self.decoder is not None:
            inner = self.decoder.width
            shapes |= {"encoder_to_decoder.weight": (inner, width), "mask_token": (1, 1, inner)}
            shapes |= block_shapes("decoder.blocks", self.decoder, self.biases) | norm_shapes("decoder.norm", inner)
            shapes |= linear_shapes("decoder.head", inner, self.channels * frames * side**2)
        return shapes

    def __str__(self) -> str:
        parts = [f"encoder of width {self.encoder.width} and {self.encoder.depth} blocks"]
        if self.decoder is not None:
            parts.append(f"decoder of width {self.decoder.width} and {self.decoder.depth} blocks")
        frames, side = self.tube
        return f"{', '.join(parts)}, tubes of {frames} frames and {side} x {side} pixels, {self.channels} channels"


def their_name(name: str) -> str | None:
    """VideoMAE's name, in a file with a decoder, of one of our weights, or none."""
    theirs = renamed(name, NAMES)
    return None if theirs is None else re.sub(r"\.attn\.qkv\.([qv]_bias)$", r".attn.\1", theirs)


def our_name(name: str, prefix: str) -> str | None:
    """Our name of one of VideoMAE's weights, or none."""
    whole = name if name.startswith(DECODER) else "encoder." + name.removeprefix(prefix)
    ours = renamed(whole, tuple((theirs, own) for own, theirs in NAMES))
    return None if ours is None else re.sub(r"\.attn\.([qv]_bias)$", r".attn.qkv.\1", ours)


def read_layout(weights: Mapping[str, Tensor], source: str) -> VideoLayout:
    """What the shapes of these weights say. Where several tensors say it, the majority counts, so that the odd one is named.

    Raises:
        ValueError: where a tensor that alone says something is missing or misshapen; `refuse_mismatch` names all others.
    """
    prefix = "encoder." if any(name.startswith("encoder.") for name in weights) else ""
    embedding = needed(weights, prefix + EMBEDDING, 5, source)
    _, channels, frames, side, across = embedding.shape
    if side != across or not channels * frames * side:
        raise ValueError(f"{source} has {prefix + EMBEDDING} as {tuple(embedding.shape)}; tubes must be square")
    pooled = any(name.startswith("fc_norm.") for name in weights)
    return VideoLayout(
        encoder=_stack(weights, f"{prefix}blocks", source),
        decoder=_stack(weights, "decoder.blocks", source) if any(name.startswith(DECODER) for name in weights) else None,
        biases="qv" if any(name.endswith("_bias") for name in weights) else "none",
        tube=(frames, side),
        channels=channels,
        normed=any(name.startswith(f"{prefix}norm.") for name in weights) or not pooled,
        prefix=prefix,
    )


def _stack(weights: Mapping[str, Tensor], at: str, source: str) -> Stack:
    """The stack under a prefix that may hold dots itself."""
    flat = {name.replace(f"{at}.", "stack.", 1): value for name, value in weights.items() if name.startswith(f"{at}.")}
    try:
        return stack_of(flat, "stack", source)
    except ValueError as error:
        raise ValueError(str(error).replace(" stack.", f" {at}.")) from None
