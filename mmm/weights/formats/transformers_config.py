"""What config.json of transformers' ViTMAE and VideoMAE says, as choices of parts; and such a config.json of a model.

A config.json may leave out what is at transformers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmm.core.registry import PartConfig
from mmm.core.tokens import Grid
from mmm.core.types import Reads
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.layers.transformer import QKVBias
from mmm.maskers import MaskerConfig, RandomMasker, TubeMasker
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, Tubes
from mmm.weights.formats.build import VIDEOMAE_TARGET, assemble
from mmm.weights.formats.transformers_names import Kind

SHARED: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
}
DECODER = ("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size")
IMAGES: dict[str, Any] = {"qkv_bias": True, "norm_pix_loss": False, "mask_ratio": 0.75}
CLIPS: dict[str, Any] = {"qv_bias": True, "norm_pix_loss": True, "num_frames": 16, "tubelet_size": 2, "use_mean_pooling": True}
DEFAULTS: dict[Kind, dict[str, Any]] = {
    "vit_mae": SHARED | dict(zip(DECODER, (512, 8, 16, 2048), strict=True)) | IMAGES,
    "videomae": SHARED | dict(zip(DECODER, (384, 4, 6, 1536), strict=True)) | CLIPS,
}
HEAD_EPSILON = 1e-5  # of the norm before VideoMAE's head, whatever config.json says


@dataclass(frozen=True)
class Choices:
    """A model as choices of parts.

    Attributes:
        grid: that its positions are for.
        normed: whether the encoder has a final norm.
    """

    tokenizer: PartConfig
    masker: MaskerConfig
    encoder: VisionTransformer.Config
    decoder: SelfAttentionDecoder.Config | None
    target: PixelTarget.Config
    channels: int
    grid: Grid
    normed: bool

    def build(self, learned: bool) -> MaskedModel:
        """The model, its weights still to be filled; its encoder's positions are trained where they were `learned`."""
        return assemble(
            replace(self.encoder, positions="learned") if learned else self.encoder,
            Reads(last=self.normed),
            self.decoder,
            tokenizer=self.tokenizer,
            channels=self.channels,
            grid=self.grid,
            target=self.target,
            masker=self.masker,
        )


def read_choices(config: Mapping[str, Any], decoded: bool, source: str) -> Choices:
    """The choices that a config.json makes, with a decoder or without.

    Raises:
        ValueError: naming the value that cannot be had here.
    """
    kind: Kind = config["model_type"]
    said = DEFAULTS[kind] | dict(config)
    for name, default in DEFAULTS[kind].items():
        if type(said[name]) is not type(default) and name not in ("image_size", "patch_size"):
            raise ValueError(f"{source}: {name} is {said[name]!r}; expected something like {default!r}")
    height, width = _pair(said, "image_size", source)
    side, across = _pair(said, "patch_size", source)
    if said["hidden_act"] != "gelu" or side != across or min(side, height // side, width // side) < 1:
        shape = f"hidden_act {said['hidden_act']!r}, patch_size {side} x {across}, image_size {height} x {width}"
        raise ValueError(f"{source} asks for {shape}; what can be had is gelu and square patches that fit")
    plane = (height // side, width // side)
    if kind == "vit_mae":
        tokenizer: PartConfig = Patches.Config(size=side)
        masker: MaskerConfig = RandomMasker.Config(ratio=said["mask_ratio"])
        target = PixelTarget.Config(standardise="patch" if said["norm_pix_loss"] else "none")
        grid: Grid = plane
    else:
        tokenizer, masker = Tubes.Config(size=side, frames=said["tubelet_size"]), TubeMasker.Config()
        target = VIDEOMAE_TARGET if said["norm_pix_loss"] else PixelTarget.Config(standardise="none", pixels="unit")
        grid = (said["num_frames"] // said["tubelet_size"], *plane)
    normed = kind == "vit_mae" or not said["use_mean_pooling"]
    encoder, decoder = _encoder(said, kind), _decoder(said, kind) if decoded else None
    return Choices(tokenizer, masker, encoder, decoder, target, said["num_channels"], grid, normed)


def _encoder(said: Mapping[str, Any], kind: Kind) -> VisionTransformer.Config:
    sizes = {"width": said["hidden_size"], "depth": said["num_hidden_layers"], "heads": said["num_attention_heads"]}
    ratio, epsilon = said["intermediate_size"] / said["hidden_size"], said["layer_norm_eps"]
    if kind == "vit_mae":
        biases: QKVBias = "all" if said["qkv_bias"] else "none"
        return VisionTransformer.Config(**sizes, mlp_ratio=ratio, norm_epsilon=epsilon, qkv_bias=biases)
    return VisionTransformer.Config(
        **sizes,
        mlp_ratio=ratio,
        norm_epsilon=epsilon,
        class_token=False,
        positions="flat_sine_cosine",
        qkv_bias="qv" if said["qv_bias"] else "none",
    )


def _decoder(said: Mapping[str, Any], kind: Kind) -> SelfAttentionDecoder.Config:
    width, depth, heads, hidden = (said[name] for name in DECODER)
    encoder = _encoder(said, kind)
    plain = SelfAttentionDecoder.Config(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        norm_epsilon=encoder.norm_epsilon,
        qkv_bias=encoder.qkv_bias,
    )
    if kind == "vit_mae":
        return plain
    return replace(plain, positions="flat_sine_cosine", embed_bias=False, head_epsilon=HEAD_EPSILON)


def _pair(said: Mapping[str, Any], name: str, source: str) -> tuple[int, int]:
    """Height and width, which may be one number."""
    value = said[name]
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{source}: {name} is {value!r}; expected a side, or height and width, in pixels")
    return sides[0], sides[1]
