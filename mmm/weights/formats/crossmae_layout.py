"""CrossMAE's official layout (models_cross.py, transformer_utils.py): MAE's without a final norm of the encoder and without the
decoder's embedding, with the mixing weights and their norms, and with blocks of cross-attention.

Legend: D and d widths of encoder and decoder, k maps that are mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mmm.weights.formats import mae_layout
from mmm.weights.formats.shapes import (
    Stack,
    encoder_shapes,
    linear_shapes,
    mlp_shapes,
    needed,
    norm_shapes,
    read_embedding,
    renamed,
    stack_of,
)
from mmm.weights.matching import Shapes

MIX = "wfm.linear.weight"
ABSENT = ("encoder.norm.", "decoder.embed.")
# our name, CrossMAE's name; those that end in a dot are beginnings
NAMES = (
    *(row for row in mae_layout.NAMES if row[0] not in ABSENT),
    ("decoder.fusion.mix.weight", MIX),
    ("decoder.fusion.norms.", "dec_norms."),
)
SELF = (".norm0.", ".self_attn.")  # what blocks have besides, where predicted tokens see each other


def is_crossmae(names: Iterable[str]) -> bool:
    """Whether weights of these names are of this layout."""
    return any(name.startswith(("dec_norms.", "wfm.")) or ".cross_attn." in name for name in names)


@dataclass(frozen=True)
class CrossLayout:
    """What the shapes in a file of this layout say.

    Attributes:
        encoder, decoder: their blocks.
        maps: k, how many of the encoder's blocks (and its input) are mixed; which ones no shape says.
        self_attention: whether predicted tokens see each other.
        patch: side of a patch, in pixels.
        channels: of a pixel.
        tokens: of the grid that its positions are for.
    """

    encoder: Stack
    decoder: Stack
    maps: int
    self_attention: bool
    patch: int
    channels: int
    tokens: int

    @property
    def shapes(self) -> Shapes:
        """The shape of every weight, by CrossMAE's names."""
        width, inner = self.encoder.width, self.decoder.width
        shapes = encoder_shapes(self.encoder, self.patch, self.channels, self.tokens)
        shapes |= {"mask_token": (1, 1, inner), "decoder_pos_embed": (1, self.tokens + 1, inner)}
        shapes |= {MIX: (self.decoder.depth, self.maps)}
        for number in range(self.decoder.depth):
            shapes |= norm_shapes(f"dec_norms.{number}", width) | self._block(f"decoder_blocks.{number}")
        return shapes | norm_shapes("decoder_norm", inner) | linear_shapes("decoder_pred", inner, self.channels * self.patch**2)

    def _block(self, at: str) -> dict[str, tuple[int, ...]]:
        inner, cross = self.decoder.width, f"{at}.cross_attn"
        shapes = norm_shapes(f"{at}.norm1", inner) | linear_shapes(f"{cross}.q", inner, inner)
        shapes |= linear_shapes(f"{cross}.kv", self.encoder.width, 2 * inner) | linear_shapes(f"{cross}.proj", inner, inner)
        shapes |= norm_shapes(f"{at}.norm2", inner) | mlp_shapes(at, self.decoder)
        if self.self_attention:
            own = f"{at}.self_attn"
            shapes |= norm_shapes(f"{at}.norm0", inner)
            shapes |= linear_shapes(f"{own}.qkv", inner, 3 * inner) | linear_shapes(f"{own}.proj", inner, inner)
        return shapes

    def __str__(self) -> str:
        return (
            f"encoder of width {self.encoder.width} and {self.encoder.depth} blocks, decoder of width {self.decoder.width} and "
            f"{self.decoder.depth} blocks that read mixtures of {self.maps} maps, {self.tokens} patches of {self.patch} x "
            f"{self.patch} pixels and {self.channels} channels"
        )


def their_name(name: str) -> str | None:
    """CrossMAE's name of one of our weights, or none."""
    return renamed(name, NAMES)


def our_name(name: str) -> str | None:
    """Our name of one of CrossMAE's weights, or none."""
    return renamed(name, tuple((theirs, ours) for ours, theirs in NAMES))


def read_layout(weights: Mapping[str, Tensor], source: str) -> CrossLayout:
    """What the shapes of these weights say.

    Raises:
        ValueError: where a tensor that alone says something is missing or misshapen; `refuse_mismatch` names all others.
    """
    patch, channels, tokens = read_embedding(weights, source)
    return CrossLayout(
        encoder=stack_of(weights, "blocks", source),
        decoder=stack_of(weights, "decoder_blocks", source),
        maps=needed(weights, MIX, 2, source).shape[1],
        self_attention=any(name.startswith("decoder_blocks.") and part in name for name in weights for part in SELF),
        patch=patch,
        channels=channels,
        tokens=tokens,
    )
