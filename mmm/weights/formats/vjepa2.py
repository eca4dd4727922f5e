"""V-JEPA 2 (Assran et al., 2025): the encoder of clips in official files and in transformers' folders.

Rotary positions contain the error with which the released weights were trained. The moving average is read from an official file;
the predictor, and a table of positions that the official code does not use, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmm.encoders import VisionTransformer
from mmm.weights.build import HEADS
from mmm.weights.formats.base import Options, Stored, register
from mmm.weights.formats.vits import PLAIN, OfficialViT, Said, TransformersViT, same, separate

CHOICES: dict[str, Any] = {"class_token": False, "positions": "none", "rotary": "vjepa2"}
AVERAGE, MASKS = "target_encoder.", "predictor.module.backbone.mask_tokens."
OFFICIAL_HEADS = HEADS | {1408: 22}
KINDS = {"vjepa2": "VJEPA2Model"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "crop_size": 256,
    "patch_size": 16,
    "in_chans": 3,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "qkv_bias": True,
    "hidden_act": "gelu",
}


@register("vjepa2")
class VJEPA2(OfficialViT):
    """Files like vitl.pt, vith.pt, vitg.pt; the default size is clips of 16 frames of 256 pixels."""

    title = "V-JEPA 2's layout"
    options = frozenset({"heads", "image_size", "frames"})
    blocks, key, clips = "blocks.", "target_encoder", True
    choices, heads = CHOICES, OFFICIAL_HEADS
    outside = (("encoder.patch_embed.", "patch_embed."), ("encoder.norm.", "norm."))
    inside = same(*PLAIN)

    def detect(self, stored: Stored) -> bool:
        """Returns whether there is a moving average of an encoder of clips."""
        return any(
            name.startswith(AVERAGE) and name.endswith("patch_embed.proj.weight") and value.dim() == 5
            for name, value in stored.tensors.items()
        )

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        average = {name.removeprefix(AVERAGE): value for name, value in stored.tensors.items() if name.startswith(AVERAGE)}
        found = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in average.items()}
        masks = sum(name.startswith(MASKS) for name in stored.tensors)
        if masks in (1, 2) and "pos_embed" in found:
            raise ValueError(f"{stored} has {masks} mask tokens, as the first V-JEPA; only files of V-JEPA 2 can be read")
        found.pop("pos_embed", None)  # stored, but not used, because positions are rotary
        return found

    def size(
        self, tensors: Mapping[str, Tensor], config: VisionTransformer.Config, token: list[int], options: Options, source: str
    ) -> tuple[int, ...]:
        side, frames = options.image_size or 256 // token[-1] * token[-1], options.frames or 16
        return (frames, *((side, side) if isinstance(side, int) else side))

    def complete(self, weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
        return {f"module.backbone.{name}": value for name, value in weights.items()}


@register("vjepa2_transformers")
class VJEPA2Transformers(TransformersViT):
    """Folders of transformers' VJEPA2Model; the predictor, or a classifier's pooler and head, are left out."""

    title = "transformers' V-JEPA 2"
    kinds, choices, defaults, clips = KINDS, CHOICES, DEFAULTS, True
    unread = ("predictor.", "pooler.", "classifier.")
    channels, side = "in_chans", "crop_size"
    blocks = "encoder.layer."
    outside = (("encoder.patch_embed.", "encoder.embeddings.patch_embeddings."), ("encoder.norm.", "encoder.layernorm."))
    inside = (
        *same("norm1.", "norm2.", "mlp.fc1.", "mlp.fc2."),
        *separate("attention.", "query", "key", "value"),
        ("attn.proj.", ("attention.proj.",)),
    )

    def describe(self, said: Said, kind: str) -> dict[str, Any]:
        hidden = int(said["hidden_size"] * said["mlp_ratio"])
        return {"mlp_ratio": hidden / said["hidden_size"], "qkv_bias": "all" if said["qkv_bias"] else "none"}

    def said(self, encoder: VisionTransformer, kind: str) -> dict[str, Any]:
        config = encoder.config
        width, hidden = config.shape.width, config.hidden
        ratio = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width  # transformers truncates
        return {"mlp_ratio": ratio, "qkv_bias": config.qkv_bias == "all"}
