"""Pixio (Yang et al., "In Pursuit of Pixel Supervision for Visual Pre-training", 2025): the official files of its encoders and
transformers' folders. Weights have MAE's names; there are several class tokens and learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmm.encoders import VisionTransformer
from mmm.weights.build import HEADS
from mmm.weights.formats.base import Stored, register
from mmm.weights.formats.vits import PLAIN, OfficialViT, Said, TransformersViT, same, separate

CHOICES: dict[str, Any] = {"positions": "learned", "class_token": True}
FREE = ("class_tokens",)
OFFICIAL_HEADS = HEADS | {1536: 24, 3072: 32}
KINDS = {"pixio": "PixioModel"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 256,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "n_cls_tokens": 8,
    "hidden_act": "gelu",
}


@register("pixio")
class Pixio(OfficialViT):
    """Files like pixio_vitb16.pth."""

    title = "Pixio's layout"
    blocks = "blocks."
    choices, free, heads = CHOICES, FREE, OFFICIAL_HEADS
    outside = (
        ("encoder.cls_token", "cls_token"),
        ("encoder.pos_embed", "pos_embed"),
        ("encoder.patch_embed.", "patch_embed."),
        ("encoder.norm.", "norm."),
    )
    inside = same(*PLAIN)

    def detect(self, stored: Stored) -> bool:
        """Returns whether there are several class tokens under MAE's names."""
        token = stored.tensors.get("cls_token")
        return token is not None and token.dim() == 3 and token.shape[1] > 1 and "blocks.0.attn.qkv.weight" in stored.tensors

    def describe(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"class_tokens": tensors["cls_token"].shape[1]}


@register("pixio_transformers")
class PixioTransformers(TransformersViT):
    """Folders of transformers' PixioModel."""

    title = "transformers' Pixio"
    kinds, choices, free, defaults = KINDS, CHOICES, FREE, DEFAULTS
    unread = ("embeddings.mask_token", "classifier.")
    blocks = "encoder.layer."
    # the fifth version of transformers saves the names of its ViT
    spellings = ((r"\.intermediate\.dense\.", ".mlp.fc1."), (r"(layer\.\d+)\.output\.dense\.", r"\1.mlp.fc2."))
    outside = (
        ("encoder.cls_token", "embeddings.cls_token"),
        ("encoder.pos_embed", "embeddings.position_embeddings"),
        ("encoder.patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("encoder.norm.", "layernorm."),
    )
    inside = (
        *same("norm1.", "norm2.", "mlp.fc1.", "mlp.fc2."),
        *separate("attention.attention.", "query", "key", "value"),
        ("attn.proj.", ("attention.output.dense.",)),
    )

    def describe(self, said: Said, kind: str) -> dict[str, Any]:
        biases = "all" if said["qkv_bias"] else "none"
        return {"mlp_ratio": float(said["mlp_ratio"]), "class_tokens": said["n_cls_tokens"], "qkv_bias": biases}

    def said(self, encoder: VisionTransformer, kind: str) -> dict[str, Any]:
        config = encoder.config
        if config.hidden % config.shape.width:
            raise ValueError(f"{self.title} supports only a whole number as mlp_ratio, not encoder.mlp_ratio {config.mlp_ratio}")
        ratio = config.hidden // config.shape.width
        return {"mlp_ratio": ratio, "n_cls_tokens": config.class_tokens, "qkv_bias": config.qkv_bias == "all"}
