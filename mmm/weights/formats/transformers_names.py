"""How transformers names the weights of its ViTMAE and VideoMAE, in the files of its hub.

Its fifth version names some modules otherwise and, saving, mixes both spellings; `hub_name` brings all to the first.
"""

from __future__ import annotations

import re
from typing import Literal

from mmm.weights.formats.shapes import renamed

Kind = Literal["vit_mae", "videomae"]  # config.json's model_type
BASE: dict[Kind, str] = {"vit_mae": "vit.", "videomae": "videomae."}
CLASSIFIER = ("classifier.", "fc_norm.")
POSITIONS = ("encoder.pos_embed", "decoder.pos_embed")

# our name, theirs; those that end in a dot are beginnings
OUTSIDE: dict[Kind, tuple[tuple[str, str], ...]] = {
    "vit_mae": (
        ("encoder.cls_token", "vit.embeddings.cls_token"),
        ("encoder.pos_embed", "vit.embeddings.position_embeddings"),
        ("encoder.patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
        ("encoder.blocks.", "vit.encoder.layer."),
        ("encoder.norm.", "vit.layernorm."),
        ("decoder.embed.", "decoder.decoder_embed."),
        ("decoder.mask_token", "decoder.mask_token"),
        ("decoder.pos_embed", "decoder.decoder_pos_embed"),
        ("decoder.blocks.", "decoder.decoder_layers."),
        ("decoder.norm.", "decoder.decoder_norm."),
        ("decoder.head.", "decoder.decoder_pred."),
    ),
    "videomae": (
        ("encoder.patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection."),
        ("encoder.blocks.", "videomae.encoder.layer."),
        ("encoder.norm.", "videomae.layernorm."),
        ("decoder.embed.", "encoder_to_decoder."),
        ("decoder.mask_token", "mask_token"),
        ("decoder.blocks.", "decoder.decoder_layers."),
        ("decoder.norm.", "decoder.norm."),
        ("decoder.head.", "decoder.head."),
    ),
}
THREE = ("query", "key", "value")
INSIDE = (  # a block
    ("norm1.", ("layernorm_before.",)),
    ("norm2.", ("layernorm_after.",)),
    ("attn.qkv.weight", tuple(f"attention.attention.{one}.weight" for one in THREE)),
    ("attn.qkv.bias", tuple(f"attention.attention.{one}.bias" for one in THREE)),
    ("attn.qkv.", ("attention.attention.",)),  # q_bias and v_bias
    ("attn.proj.", ("attention.output.dense.",)),
    ("mlp.fc1.", ("intermediate.dense.",)),
    ("mlp.fc2.", ("output.dense.",)),
)
LATER = (  # a spelling of the fifth version, the hub's
    (r"^(vit\.)?layers\.", r"\1encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
LATER_VIDEO = ((r"\.query\.bias$", ".q_bias"), (r"\.value\.bias$", ".v_bias"))


def hub_name(name: str, kind: Kind) -> str:
    """The hub's name of a weight of any version."""
    for later, hub in (*LATER, *(LATER_VIDEO if kind == "videomae" else ())):
        name = re.sub(later, hub, name)
    return name


def their_names(ours: str, kind: Kind, alone: bool) -> tuple[str, ...] | None:
    """The hub's names whose tensors, one after the other, make one of our weights; nothing for what files leave out, or none.

    Args:
        ours: our name.
        kind: of their model.
        alone: whether theirs is the bare encoder, whose names have no beginning in common.
    """
    if kind == "videomae" and ours in POSITIONS:
        return ()
    theirs = renamed(ours, OUTSIDE[kind])
    if theirs is None:
        return None
    theirs = theirs.removeprefix(BASE[kind]) if alone else theirs
    block = re.fullmatch(r"(.*\.\d+\.)(.*)", theirs) if ".blocks." in ours else None
    if block is None:
        return (theirs,)
    for own, parts in INSIDE:
        if block[2] == own or (own.endswith(".") and block[2].startswith(own)):
            return tuple(block[1] + part + block[2].removeprefix(own) for part in parts)
    return None
