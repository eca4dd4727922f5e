"""Folders that transformers reads, written from models: ViTMAE of images, VideoMAE of clips."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.weights.formats.transformers_config import DECODER, HEAD_EPSILON
from mmm.weights.formats.transformers_names import Kind, their_names
from mmm.weights.matching import listed

logger = logging.getLogger(__name__)

CLASSES: dict[Kind, tuple[str, str]] = {
    "vit_mae": ("ViTMAEModel", "ViTMAEForPreTraining"),
    "videomae": ("VideoMAEModel", "VideoMAEForPreTraining"),
}


def write_transformers(model: MaskedModel, folder: str | Path) -> str:
    """Writes config.json and model.safetensors, which `from_pretrained` of the class that is returned takes.

    The weights are the same bit for bit. Their VideoMAE computes the norm before its head with an epsilon of 1e-5, whatever the
    decoder's is: its predictions then differ a little, and a warning says so.

    Returns:
        The name of their class: ViTMAEForPreTraining, VideoMAEForPreTraining or, without a decoder, ViTMAEModel, VideoMAEModel.

    Raises:
        ValueError: naming what their models cannot hold.
    """
    kind: Kind = "vit_mae" if len(model.tokenizer.size) == 2 else "videomae"
    config = _config(model, kind)
    weights = _weights(model, kind)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})  # from_pretrained asks for the format
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    decoder = model.decoder
    if kind == "videomae" and decoder is not None and decoder.norm.eps != HEAD_EPSILON:  # type: ignore[union-attr]
        logger.warning("%s: their last norm has an epsilon of %g, not %g", folder, HEAD_EPSILON, decoder.norm.eps)  # type: ignore[union-attr]
    return str(config["architectures"][0])


def _weights(model: MaskedModel, kind: Kind) -> dict[str, Tensor]:
    """The weights under the hub's names; q, k and v apart."""
    alone, foreign = model.decoder is None, []
    written: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        parts = their_names(name, kind, alone)
        if parts is None:
            foreign.append(name)
        elif parts:
            written |= {part: share.contiguous() for part, share in zip(parts, value.chunk(len(parts)), strict=True)}
    if foreign:
        raise ValueError(f"transformers' {kind} has no place for {listed(foreign)}")
    return written


def _config(model: MaskedModel, kind: Kind) -> dict[str, Any]:
    """Their config.json.

    Raises:
        ValueError: naming the choices that it cannot say.
    """
    encoder, decoder = model.encoder, model.decoder
    if not isinstance(encoder, VisionTransformer) or not isinstance(decoder, (SelfAttentionDecoder, type(None))):
        raise ValueError(f"transformers' {kind} is an encoder called vit, with a decoder called self_attention or none")
    own = encoder.config
    _refuse_others(encoder, None if decoder is None else decoder.config, kind)
    side, home = model.tokenizer.size[-1], encoder.home
    said: dict[str, Any] = {
        "architectures": [CLASSES[kind][decoder is not None]],
        "model_type": kind,
        "hidden_size": own.shape.width,
        "num_hidden_layers": own.shape.depth,
        "num_attention_heads": own.head_count,
        "intermediate_size": round(own.shape.width * own.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": own.norm_epsilon,
        "image_size": side * home[-1] if home[-1] == home[-2] else [side * home[-2], side * home[-1]],
        "patch_size": side,
        "num_channels": model.tokenizer.channels,
        "norm_pix_loss": isinstance(model.target, PixelTarget) and model.target.config.standardise != "none",
    }
    if decoder is not None:
        inner = decoder.config
        said |= dict(zip(DECODER, (inner.width, inner.depth, inner.heads, round(inner.width * inner.mlp_ratio)), strict=True))
    if kind == "vit_mae":
        return said | {"qkv_bias": own.qkv_bias == "all"}
    frames = model.tokenizer.size[0]
    clips = {"num_frames": frames * home[0], "tubelet_size": frames, "use_mean_pooling": not encoder.reads.last}
    return said | clips | {"qv_bias": own.qkv_bias == "qv"}


def _refuse_others(encoder: VisionTransformer, decoder: SelfAttentionDecoder.Config | None, kind: Kind) -> None:
    """Refuses choices that theirs does not have."""
    own, images = encoder.config, kind == "vit_mae"
    wrong = {
        f"encoder.class_token {own.class_token}": own.class_token != images,
        f"encoder.qkv_bias {own.qkv_bias}": own.qkv_bias not in ("all" if images else "qv", "none"),
        f"encoder.positions {own.positions}": not images and own.positions != "flat_sine_cosine",
        "an encoder without a final norm": images and not encoder.reads.last,
    }
    if decoder is not None:
        height, width = encoder.home[-2:]
        wrong |= {
            f"positions of {height} x {width} tokens": images and height != width,  # its decoder counts a square of them
            f"decoder.qkv_bias {decoder.qkv_bias}": decoder.qkv_bias != own.qkv_bias,
            f"decoder.norm_epsilon {decoder.norm_epsilon:g}": decoder.norm_epsilon != own.norm_epsilon,
            f"decoder.embed_bias {decoder.embed_bias}": decoder.embed_bias != images,
            f"decoder.positions {decoder.positions}": not images and decoder.positions != "flat_sine_cosine",
            f"decoder.fusion {decoder.fusion}": decoder.fusion != "none",
            f"decoder.head_epsilon {decoder.head_epsilon}": images and decoder.head_epsilon not in (None, own.norm_epsilon),
        }
    said = [choice for choice, refused in wrong.items() if refused]
    if said:
        raise ValueError(f"transformers' {kind} cannot hold {listed(said)}")
