"""DINOv2 (Oquab et al., TMLR 2024) and its variant with registers (Darcet et al., ICLR 2024), the official files and transformers'
folders.

Positions at another size are interpolated as in transformers: with antialiasing if there are registers. The mask token, which an
encoder does not have, is left out, and written as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmm.encoders import VisionTransformer
from mmm.weights.build import HEADS
from mmm.weights.formats.base import Stored, register
from mmm.weights.formats.vits import PLAIN, OfficialViT, Said, TransformersViT, same, separate

CHOICES: dict[str, Any] = {"positions": "learned", "class_token": True, "layer_scale": 1.0}
FREE = ("layer_scale", "activation", "registers")
OFFICIAL_HEADS = HEADS | {1536: 24}
OUTPUTS = ("mlp.fc2.weight", "mlp.w3.weight")
KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "hidden_act": "gelu",
}


@register("dinov2")
class DINOv2(OfficialViT):
    """Files like dinov2_vitb14_pretrain.pth and dinov2_vitb14_reg4_pretrain.pth."""

    title = "DINOv2's layout"
    blocks = "blocks."
    choices, free, heads, output = CHOICES, FREE, OFFICIAL_HEADS, OUTPUTS
    outside = (
        ("encoder.cls_token", "cls_token"),
        ("encoder.reg_token", "register_tokens"),
        ("encoder.pos_embed", "pos_embed"),
        ("encoder.patch_embed.", "patch_embed."),
        ("encoder.norm.", "norm."),
    )
    inside = same(*PLAIN, "ls1.", "ls2.")
    gated = (("mlp.fc1.", ("mlp.w12.",)), ("mlp.fc2.", ("mlp.w3.",)))

    def detect(self, stored: Stored) -> bool:
        """Returns whether there are layer scales under DINOv2's names, and its mask token of two dimensions."""
        token = stored.tensors.get("mask_token")
        return token is not None and token.dim() == 2 and "blocks.0.ls1.gamma" in stored.tensors and "pos_embed" in stored.tensors

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        return self.leave_out(stored, "mask_token", reason="this is read as an encoder", what="mask token")

    def describe(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        registers = tensors.get("register_tokens")
        more: dict[str, Any] = {"activation": "swiglu" if "blocks.0.mlp.w12.weight" in tensors else "gelu"}
        more |= {"qkv_bias": "all" if "blocks.0.attn.qkv.bias" in tensors else "none"}
        return more if registers is None else more | {"registers": registers.shape[1], "resize_positions": "antialias"}

    def complete(self, weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
        return weights | {"mask_token": weights["norm.weight"].new_zeros(1, len(weights["norm.weight"]))}


@register("dinov2_transformers")
class DINOv2Transformers(TransformersViT):
    """Folders of transformers' Dinov2Model and Dinov2WithRegistersModel."""

    title = "transformers' DINOv2"
    kinds, choices, free, defaults = KINDS, CHOICES, FREE, DEFAULTS
    unread = ("embeddings.mask_token", "classifier.")
    blocks = "encoder.layer."
    outside = (
        ("encoder.cls_token", "embeddings.cls_token"),
        ("encoder.reg_token", "embeddings.register_tokens"),
        ("encoder.pos_embed", "embeddings.position_embeddings"),
        ("encoder.patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("encoder.norm.", "layernorm."),
    )
    inside = (
        *same("norm1.", "norm2.", "mlp.fc1.", "mlp.fc2."),
        *separate("attention.attention.", "query", "key", "value"),
        ("attn.proj.", ("attention.output.dense.",)),
        ("ls1.gamma", ("layer_scale1.lambda1",)),
        ("ls2.gamma", ("layer_scale2.lambda1",)),
    )
    gated = (("mlp.fc1.", ("mlp.weights_in.",)), ("mlp.fc2.", ("mlp.weights_out.",)))

    def describe(self, said: Said, kind: str) -> dict[str, Any]:
        width, gated = said["hidden_size"], said["use_swiglu_ffn"]
        hidden = int(width * said["mlp_ratio"])
        more: dict[str, Any] = {"mlp_ratio": (gated_width(hidden) if gated else hidden) / width}
        more |= {"activation": "swiglu" if gated else "gelu", "qkv_bias": "all" if said["qkv_bias"] else "none"}
        if kind == "dinov2":
            return more
        return more | {"registers": said.get("num_register_tokens", 4), "resize_positions": "antialias"}

    def said(self, encoder: VisionTransformer, kind: str) -> dict[str, Any]:
        config = encoder.config
        gated, width = config.activation == "swiglu", config.shape.width
        ratios = (ratio for ratio in range(1, 17) if (gated_width(ratio * width) if gated else ratio * width) == config.hidden)
        ratio = next(ratios, None)
        if ratio is None:
            raise ValueError(
                f"{self.title} supports only whole numbers as mlp_ratio, and none gives a hidden width of {config.hidden}"
            )
        said = {"mlp_ratio": ratio, "use_swiglu_ffn": gated, "qkv_bias": config.qkv_bias == "all"}
        return said | ({"num_register_tokens": config.registers} if config.registers else {})

    def kind_of(self, config: VisionTransformer.Config) -> str:
        return "dinov2_with_registers" if config.registers else "dinov2"

    def complete(self, weights: dict[str, Tensor], width: int) -> dict[str, Tensor]:
        return weights | {"embeddings.mask_token": weights["layernorm.weight"].new_zeros(1, width)}


def gated_width(hidden: int) -> int:
    """Returns the hidden width of DINOv2's gated MLP: two thirds, rounded up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8
