"""DINOv3 (Siméoni et al., 2025), the official files and transformers' folders: rotary positions, registers, no biases of keys.

The mask token, which an encoder does not have, is left out, and written as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmm.encoders import VisionTransformer
from mmm.weights.build import HEADS
from mmm.weights.formats.base import Stored, register
from mmm.weights.formats.vits import PLAIN, OfficialViT, Said, TransformersViT, same, separate

CHOICES: dict[str, Any] = {
    "positions": "none",
    "rotary": "dinov3",
    "layer_scale": 1.0,
    "qkv_bias": "qv",
    "norm_epsilon": 1e-5,
}
FREE = ("layer_scale", "activation", "registers")
PERIODS, TEMPERATURE = "rope_embed.periods", 100.0
OFFICIAL_HEADS = HEADS | {4096: 32}
OUTPUTS = ("mlp.fc2.weight", "mlp.w3.weight")
KINDS = {"dinov3_vit": "DINOv3ViTModel"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "num_register_tokens": 0,
    "use_gated_mlp": False,
    "rope_theta": TEMPERATURE,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
}


@register("dinov3")
class DINOv3(OfficialViT):
    """Files like dinov3_vitb16_pretrain_lvd1689m.pth."""

    title = "DINOv3's layout"
    blocks = "blocks."
    choices, free, heads, output = CHOICES, FREE, OFFICIAL_HEADS, OUTPUTS
    outside = (
        ("encoder.cls_token", "cls_token"),
        ("encoder.reg_token", "storage_tokens"),
        ("encoder.patch_embed.", "patch_embed."),
        ("encoder.norm.", "norm."),
    )
    inside = same(*PLAIN, "ls1.", "ls2.")
    gated = (("mlp.fc1.", ("mlp.w1.", "mlp.w2.")), ("mlp.fc2.", ("mlp.w3.",)))

    def detect(self, stored: Stored) -> bool:
        """Returns whether the periods of DINOv3's rotary positions exist."""
        return PERIODS in stored.tensors

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        found = self.leave_out(stored, "mask_token", "local_cls_norm.", reason="this is read as an encoder", what="rest")
        periods = found.pop(PERIODS).double()
        if not torch.allclose(periods, _periods(len(periods)), rtol=2**-7):  # they are stored in bf16
            raise ValueError(f"{stored} has other periods than DINOv3's under {PERIODS}: {periods.tolist()[:4]} ...")
        made: dict[str, Tensor] = {}
        for name, value in found.items():
            if name.endswith(".attn.qkv.bias"):
                made[name.replace("qkv.bias", "qkv.q_bias")], _, made[name.replace("qkv.bias", "qkv.v_bias")] = value.chunk(3)
            elif not name.endswith(".attn.qkv.bias_mask"):  # it shows that keys have no bias
                made[name] = value
        return made

    def describe(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        registers = tensors.get("storage_tokens")
        gated = "blocks.0.mlp.w1.weight" in tensors
        return {"activation": "swiglu" if gated else "gelu", "registers": 0 if registers is None else registers.shape[1]}

    def complete(self, weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, value in weights.items():
            if name.endswith(".attn.qkv.q_bias"):
                ones, zeros = torch.ones_like(value), torch.zeros_like(value)
                made[name.replace("q_bias", "bias")] = torch.cat([value, zeros, weights[name.replace("q_bias", "v_bias")]])
                made[name.replace("q_bias", "bias_mask")] = torch.cat([ones, zeros, ones])
            elif not name.endswith(".attn.qkv.v_bias"):
                made[name] = value
        width = len(weights["norm.weight"])
        made["mask_token"] = weights["norm.weight"].new_zeros(1, width)
        return made | {PERIODS: _periods(width // heads // 4).bfloat16()}


@register("dinov3_transformers")
class DINOv3Transformers(TransformersViT):
    """Folders of transformers' DINOv3ViTModel."""

    title = "transformers' DINOv3"
    kinds, choices, defaults = KINDS, CHOICES, DEFAULTS
    free = (*FREE, "bias")
    blocks = "layer."
    spellings = ((r"^model\.layer\.", "layer."),)
    outside = (
        ("encoder.cls_token", "embeddings.cls_token"),
        ("encoder.reg_token", "embeddings.register_tokens"),
        ("encoder.patch_embed.proj.", "embeddings.patch_embeddings."),
        ("encoder.norm.", "norm."),
    )
    inside = (
        *same("norm1.", "norm2."),
        *separate("attention.", "q_proj", "k_proj", "v_proj", biases=False),
        ("attn.qkv.q_bias", ("attention.q_proj.bias",)),
        ("attn.qkv.v_bias", ("attention.v_proj.bias",)),
        ("attn.proj.", ("attention.o_proj.",)),
        ("ls1.gamma", ("layer_scale1.lambda1",)),
        ("ls2.gamma", ("layer_scale2.lambda1",)),
        ("mlp.fc1.", ("mlp.up_proj.",)),
        ("mlp.fc2.", ("mlp.down_proj.",)),
    )
    gated = (("mlp.fc1.", ("mlp.gate_proj.", "mlp.up_proj.")),)

    def describe(self, said: Said, kind: str) -> dict[str, Any]:
        biases = [said[name] for name in ("query_bias", "key_bias", "value_bias")]
        if biases != [True, False, True] or said["proj_bias"] != said["mlp_bias"] or said["rope_theta"] != TEMPERATURE:
            raise ValueError(f"query, key and value biases {biases}, proj_bias, mlp_bias or rope_theta are not DINOv3's own")
        activation = "silu" if said["use_gated_mlp"] else "gelu"
        if said.get("hidden_act", activation) != activation:
            raise ValueError(f"hidden_act is {said['hidden_act']!r}; only {activation!r} is supported")
        more: dict[str, Any] = {"mlp_ratio": said["intermediate_size"] / said["hidden_size"], "bias": said["mlp_bias"]}
        return more | {"registers": said["num_register_tokens"], "activation": "swiglu" if said["use_gated_mlp"] else "gelu"}

    def said(self, encoder: VisionTransformer, kind: str) -> dict[str, Any]:
        config = encoder.config
        gated = config.activation == "swiglu"
        said: dict[str, Any] = {
            "intermediate_size": config.hidden,
            "num_register_tokens": config.registers,
            "rope_theta": TEMPERATURE,
        }
        said |= {"use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu"}
        return said | {"query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": config.bias, "mlp_bias": config.bias}

    def complete(self, weights: dict[str, Tensor], width: int) -> dict[str, Tensor]:
        none = {"embeddings.register_tokens": weights["norm.weight"].new_zeros(1, 0, width)}
        return none | weights | {"embeddings.mask_token": weights["norm.weight"].new_zeros(1, 1, width)}


def _periods(count: int) -> Tensor:
    """Returns the periods of the rotary positions."""
    return TEMPERATURE ** (torch.arange(count, dtype=torch.float64) / count)
