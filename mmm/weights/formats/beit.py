"""BEiT (Bao et al., ICLR 2022), BEiT v2, and data2vec for images: the official files, whose names of weights timm uses too, and
folders of transformers.

The number of heads and the grid follow from the tables of relative positions. The indices into the tables are computed; those in a
file are not read. A model that was fine-tuned on the mean of its tokens has no norm after the last block, so its encoder has none
either.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmm.core.types import Input, RequiredFeatures
from mmm.encoders import VisionTransformer
from mmm.weights.build import HEADS
from mmm.weights.formats.base import Model, Options, Stored, find_input, register
from mmm.weights.formats.transformers import LATER
from mmm.weights.formats.vits import OfficialViT, Said, TransformersViT, ViTFormat, same, separate
from mmm.weights.matching import renamed, shorten_list

logger = logging.getLogger(__name__)

TABLE = "relative_position_bias_table"
TABLES = (f"rel_pos_bias.{TABLE}", f"blocks.0.attn.{TABLE}")  # one table for all blocks, or that of the first block
CHOICES: dict[str, Any] = {"qkv_bias": "qv", "class_token": True}
FREE = ("layer_scale", "relative_bias", "positions")
REASON = "this is read as an encoder"
KINDS = {"beit": "BeitModel", "data2vec-vision": "Data2VecVisionModel"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "layer_scale_init_value": 0.1,
}


class BEiTLayout(ViTFormat):
    """The common part of both layouts."""

    choices, free = CHOICES, FREE

    def input(self, stored: Stored, size: tuple[int, ...], channels: int) -> Input:
        """Assumes a mean and std of 0.5, as published for BEiT; BEiT v2 has ImageNet's."""
        second = "beitv2" in str(stored).lower() or any(name.startswith("cls_pt_layers.") for name in stored.tensors)
        if second or "image_mean" in stored.processor:
            return super().input(stored, size, channels)
        return find_input(size, channels, (0.5,) * channels, (0.5,) * channels)

    def required(self, tensors: Mapping[str, Tensor]) -> RequiredFeatures:
        return RequiredFeatures(last=renamed("encoder.norm.weight", self.outside) in tensors)

    def encoder_tensors(self, model: Model) -> tuple[VisionTransformer, dict[str, Tensor]]:
        encoder, weights = super().encoder_tensors(model)
        if encoder.config.positions not in ("none", "learned"):
            raise ValueError(f"{self.title} cannot hold encoder.positions {encoder.config.positions}; export --to folder")
        return encoder, weights


@register("beit")
class BEiT(BEiTLayout, OfficialViT):
    """Files like beit_base_patch16_224_pt22k.pth, and weights of timm's `beit_*` and `beitv2_*`."""

    title = "BEiT's layout"
    options = frozenset({"image_size"})
    blocks, heads, key = "blocks.", HEADS, "model"
    outside = (
        ("encoder.cls_token", "cls_token"),
        ("encoder.mask_token", "mask_token"),
        ("encoder.pos_embed", "pos_embed"),
        ("encoder.patch_embed.", "patch_embed."),
        ("encoder.rel_pos_bias.", "rel_pos_bias."),
        ("encoder.norm.", "norm."),
    )
    inside = (
        *same("norm1.", "norm2.", "attn.qkv.weight", "attn.proj.", "mlp.fc1.", "mlp.fc2.", f"attn.{TABLE}"),
        ("attn.qkv.q_bias", ("attn.q_bias",)),
        ("attn.qkv.v_bias", ("attn.v_bias",)),
        ("ls1.gamma", ("gamma_1",)),
        ("ls2.gamma", ("gamma_2",)),
    )

    def detect(self, stored: Stored) -> bool:
        """Returns whether there is a table of relative positions under BEiT's names."""
        return any(name in stored.tensors for name in TABLES)

    def read(self, stored: Stored, options: Options) -> Model:
        table = next(stored.tensors[name] for name in TABLES if name in stored.tensors)
        return super().read(stored, replace(options, heads=table.shape[-1]))

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        found = {name: value for name, value in stored.tensors.items() if not name.endswith("relative_position_index")}
        parts = ("lm_head.", "fc_norm.", "head.", "cls_pt_layers.")
        return self.leave_out(stored, *parts, reason=REASON, what="rest", tensors=found)

    def describe(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "relative_bias": "shared" if TABLES[0] in tensors else "blocks",
            "positions": "learned" if "pos_embed" in tensors else "none",
            "layer_scale": 0.1 if "blocks.0.gamma_1" in tensors else None,
            "qkv_bias": "qv" if "blocks.0.attn.q_bias" in tensors else "none",
        }

    def size(
        self, tensors: Mapping[str, Tensor], config: VisionTransformer.Config, token: list[int], options: Options, source: str
    ) -> tuple[int, ...]:
        """Returns the size of images whose relative positions fill the table: the given one, or a square."""
        rows = next(tensors[name] for name in TABLES if name in tensors).shape[0] - 3
        given = options.image_size
        sides = (given, given) if isinstance(given, int) else given
        if sides is None:
            side = (math.isqrt(max(rows, 0)) + 1) // 2 * token[-1]
            sides = (side, side)
        if math.prod(2 * (side // token[-1]) - 1 for side in sides) != rows:
            raise ValueError(f"{source} has {rows} relative positions, not those of {sides} pixels; give image_size=")
        return sides

    def encoder_tensors(self, model: Model) -> tuple[VisionTransformer, dict[str, Tensor]]:
        encoder, weights = super().encoder_tensors(model)
        if encoder.config.relative_bias == "none":
            raise ValueError(f"{self.title} cannot hold encoder.relative_bias none; export --to folder")
        return encoder, weights


@register("beit_transformers")
class BEiTTransformers(BEiTLayout, TransformersViT):
    """Folders of transformers' BeitModel, and of its Data2VecVisionModel, which is the same model."""

    title = "transformers' BEiT"
    kinds, defaults = KINDS, DEFAULTS
    unread = ("classifier.", "lm_head.", "pooler.", "decode_head.", "auxiliary_head.", "fpn")
    spellings = (
        (r"^data2vec_vision\.", ""),
        *LATER,
        (r"^shared_position_bias\.", "encoder.relative_position_bias."),
        (r"(layer\.\d+)\.relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
    )
    blocks = "encoder.layer."
    outside = (
        ("encoder.cls_token", "embeddings.cls_token"),
        ("encoder.mask_token", "embeddings.mask_token"),
        ("encoder.pos_embed", "embeddings.position_embeddings"),
        ("encoder.patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("encoder.rel_pos_bias.", "encoder.relative_position_bias."),
        ("encoder.norm.", "layernorm."),
    )
    inside = (
        ("norm1.", ("layernorm_before.",)),
        ("norm2.", ("layernorm_after.",)),
        *separate("attention.attention.", "query", "key", "value", biases=False),
        ("attn.qkv.q_bias", ("attention.attention.query.bias",)),
        ("attn.qkv.v_bias", ("attention.attention.value.bias",)),
        (f"attn.{TABLE}", (f"attention.attention.relative_position_bias.{TABLE}",)),
        ("attn.proj.", ("attention.output.dense.",)),
        ("mlp.fc1.", ("intermediate.dense.",)),
        ("mlp.fc2.", ("output.dense.",)),
        ("ls1.gamma", ("lambda_1",)),
        ("ls2.gamma", ("lambda_2",)),
    )

    def detect(self, stored: Stored) -> bool:
        """Returns whether config.json names such a model, with relative positions of at most one kind."""
        both = ("use_shared_relative_position_bias", "use_relative_position_bias")
        return super().detect(stored) and not all(stored.config.get(name) for name in both)

    def spelled(self, tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
        found = {name: value for name, value in tensors.items() if not name.endswith("relative_position_index")}
        if "beit.layernorm.weight" in found:  # the head of BeitForMaskedImageModeling has another norm
            head = [name for name in found if name.startswith("layernorm.")]
            if head:
                logger.warning("the norm of the head is left out (%s), because %s", shorten_list(head), REASON)
            found = {name: value for name, value in found.items() if name not in head}
        return super().spelled(found, kind)

    def describe(self, said: Said, kind: str) -> dict[str, Any]:
        shared, each = said["use_shared_relative_position_bias"], said["use_relative_position_bias"]
        return {
            "mlp_ratio": said["intermediate_size"] / said["hidden_size"],
            "relative_bias": "shared" if shared else "blocks" if each else "none",
            "positions": "learned" if said["use_absolute_position_embeddings"] else "none",
            "layer_scale": said["layer_scale_init_value"] or None,
        }

    def said(self, encoder: VisionTransformer, kind: str) -> dict[str, Any]:
        config = encoder.config
        return {
            "intermediate_size": config.hidden,
            "use_shared_relative_position_bias": config.relative_bias == "shared",
            "use_relative_position_bias": config.relative_bias == "blocks",
            "use_absolute_position_embeddings": config.positions == "learned",
            "layer_scale_init_value": config.layer_scale or 0.0,
            "use_mask_token": encoder.mask_token is not None,
            "use_mean_pooling": not encoder.required.last,  # then there is no norm after the last block
        }
