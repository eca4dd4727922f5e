"""MAE's official layout: its names, and the shapes that go with them (models_mae.py, models_vit.py, util/misc.py).

Legend: D and d widths of encoder and decoder, L blocks, h hidden width of an MLP, p side of a patch, C channels, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmm.weights.formats.shapes import (
    Stack,
    block_shapes,
    encoder_shapes,
    linear_shapes,
    norm_shapes,
    read_embedding,
    renamed,
    stack_of,
)
from mmm.weights.matching import Shapes

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
    "pos_embed_spatial": "MAE-ST's layout",
    "vit.": "transformers' ViTMAE without its config.json",
    "videomae.": "transformers' VideoMAE without its config.json",
    "embeddings.": "transformers' weights without their config.json",
    "encoder.patch_embed.": "weights of a run without its config.yaml",
}


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
