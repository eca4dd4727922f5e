"""CAPI (Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", 2025): the encoder of official
files. The predictor and the head of the clusters are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmm.weights.build import HEADS
from mmm.weights.formats.base import Stored, register
from mmm.weights.formats.vits import OfficialViT

BACKBONE = "backbone."
FREQUENCIES = "residual1.fn.rope.freqs"
CHOICES: dict[str, Any] = {
    "class_token": False,
    "registers": 16,
    "register_places": "around",
    "positions": "none",
    "rotary": "capi",
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "last_norm_weight": False,
    "bias": False,
    "qkv_bias": "none",
}


@register("capi")
class CAPI(OfficialViT):
    """Files like capi_vitl14_in22k.pth."""

    title = "CAPI's layout"
    blocks = "encoder.blocks."
    choices, heads = CHOICES, HEADS
    free = ("registers",)
    output = ("residual2.fn.fc2.weight",)
    outside = (("encoder.reg_token", "registers"), ("encoder.patch_embed.proj.", "patch_embed."))
    inside = (
        ("norm1.", ("residual1.norm.",)),
        ("norm2.", ("residual2.norm.",)),
        ("attn.qkv.weight", tuple(f"residual1.fn.{one}_proj.weight" for one in "qkv")),
        ("attn.proj.weight", ("residual1.fn.proj.weight",)),
        ("mlp.fc1.weight", ("residual2.fn.fc1.weight",)),
        ("mlp.fc2.weight", ("residual2.fn.fc2.weight",)),
    )

    def detect(self, stored: Stored) -> bool:
        """Returns whether there are registers and blocks under CAPI's names."""
        return any(name.removeprefix(BACKBONE) == "encoder.blocks.0.residual1.norm.weight" for name in stored.tensors)

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        found = self.leave_out(
            *(stored, f"{BACKBONE}decoder.", "decoder.", f"{BACKBONE}mask_token", "mask_token", "head."),
            reason="this is read as an encoder",
            what="predictor",
        )
        tensors = {name.removeprefix(BACKBONE): value for name, value in found.items()}
        for name in [name for name in tensors if name.endswith(FREQUENCIES)]:
            freqs = tensors.pop(name)
            if freqs.dim() != 2 or not torch.allclose(freqs.float(), frequencies(freqs.shape[1]), rtol=1e-2):
                raise ValueError(f"{stored} has other frequencies than CAPI's under {name}")
        return tensors

    def describe(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"registers": tensors["registers"].shape[1]} if "registers" in tensors else {}

    def complete(self, weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
        made = {f"{BACKBONE}{name}": value for name, value in weights.items()}
        table = frequencies(weights["registers"].shape[2] // heads)
        depth = sum(name.endswith("residual1.norm.weight") for name in weights)
        return made | {f"{BACKBONE}{self.blocks}{number}.{FREQUENCIES}": table for number in range(depth)}


def frequencies(channels: int) -> Tensor:
    """Returns CAPI's table of rotation angles for a distance of 1 along each axis: (2, c)."""
    half = 2 * math.pi * 7 * 10000.0 ** -torch.linspace(0, 1, channels // 4)
    table = torch.zeros(2, channels)
    table[0, : channels // 2] = torch.cat([half, half])
    table[1, -(channels // 2) :] = torch.cat([half, half])
    return table
