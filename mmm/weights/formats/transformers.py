"""Folders of transformers: ViTMAE, ViT, I-JEPA and VideoMAE, as an encoder, with a decoder or as a classifier.

config.json contains the properties that weights do not show. It may lack values that equal transformers' defaults.
preprocessor_config.json contains the normalisation of pixels. Dropout, which published models do not use, is not read.

Version 5 of transformers has other names for some modules, and saves a mixture of both spellings. All are converted to the first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmm.classifier import Classifier, HeadConfig
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.layers.transformer import QKVBias
from mmm.maskers import MaskerConfig, RandomMasker, TubeMasker
from mmm.model import MaskedModel
from mmm.pools import ClassPool, MeanPool
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, Tubes
from mmm.weights.build import VIDEOMAE_TARGET, build, is_fixed, with_head
from mmm.weights.formats.base import CONFIG, Format, Model, Options, Stored, register, shape_of, write_folder
from mmm.weights.matching import Names, fill, renamed, shorten_list, tensors_under

logger = logging.getLogger(__name__)

Kind = Literal["vit_mae", "vit", "ijepa", "videomae"]  # config.json's model_type
BASE: dict[Kind, str] = {"vit_mae": "vit.", "vit": "vit.", "ijepa": "ijepa.", "videomae": "videomae."}
TOKENED = ("vit_mae", "vit")  # kinds with a class token
CLASSES: dict[Kind, dict[str, str]] = {  # names of classes, by the parts of the model
    "vit_mae": {"encoder": "ViTMAEModel", "decoder": "ViTMAEForPreTraining"},
    "vit": {"classifier": "ViTForImageClassification"},
    "ijepa": {"encoder": "IJepaModel", "classifier": "IJepaForImageClassification"},
    "videomae": {
        "encoder": "VideoMAEModel",
        "decoder": "VideoMAEForPreTraining",
        "classifier": "VideoMAEForVideoClassification",
    },
}
HEAD_EPSILON = 1e-5  # epsilon of the norms before VideoMAE's heads, which does not depend on config.json

# --- config.json: transformers' default values -------------------------------------------------------------------------------

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
    "vit": SHARED | {"qkv_bias": True},
    "ijepa": SHARED | {"qkv_bias": True},
    "videomae": SHARED | dict(zip(DECODER, (384, 4, 6, 1536), strict=True)) | CLIPS,
}

# --- names of weights --------------------------------------------------------------------------------------------------------

# name in mmm, name in transformers; names that end in a dot are prefixes
IMAGE_ENCODER = (
    ("encoder.cls_token", "vit.embeddings.cls_token"),
    ("encoder.pos_embed", "vit.embeddings.position_embeddings"),
    ("encoder.patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("encoder.blocks.", "vit.encoder.layer."),
    ("encoder.norm.", "vit.layernorm."),
)
OUTSIDE: dict[Kind, tuple[tuple[str, str], ...]] = {
    "vit_mae": (
        *IMAGE_ENCODER,
        ("decoder.embed.", "decoder.decoder_embed."),
        ("decoder.mask_token", "decoder.mask_token"),
        ("decoder.pos_embed", "decoder.decoder_pos_embed"),
        ("decoder.blocks.", "decoder.decoder_layers."),
        ("decoder.norm.", "decoder.decoder_norm."),
        ("decoder.head.", "decoder.decoder_pred."),
    ),
    "vit": (*IMAGE_ENCODER, ("head.linear.", "classifier.")),
    "ijepa": (
        *((ours, theirs.replace("vit.", "ijepa.")) for ours, theirs in IMAGE_ENCODER if ours != "encoder.cls_token"),
        ("head.linear.", "classifier."),
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
        ("head.fc_norm.", "fc_norm."),
        ("head.linear.", "classifier."),
    ),
}
TABLES = ("encoder.pos_embed", "decoder.pos_embed")  # VideoMAE's files do not contain them
THREE = ("query", "key", "value")
INSIDE = (  # names inside a block
    ("norm1.", ("layernorm_before.",)),
    ("norm2.", ("layernorm_after.",)),
    ("attn.qkv.weight", tuple(f"attention.attention.{one}.weight" for one in THREE)),
    ("attn.qkv.bias", tuple(f"attention.attention.{one}.bias" for one in THREE)),
    ("attn.qkv.", ("attention.attention.",)),  # q_bias and v_bias
    ("attn.proj.", ("attention.output.dense.",)),
    ("mlp.fc1.", ("intermediate.dense.",)),
    ("mlp.fc2.", ("output.dense.",)),
)
LATER = (  # names in the fifth version, and in the first
    (r"^(vit\.|ijepa\.)?layers\.", r"\1encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
LATER_VIDEO = ((r"\.query\.bias$", ".q_bias"), (r"\.value\.bias$", ".v_bias"))


def names_of(kind: Kind, *, alone: bool) -> Names:
    """Returns the function that maps names in mmm to names in transformers. Without a head, names have no common prefix."""

    def names(ours: str) -> tuple[str, ...] | None:
        if kind == "videomae" and ours in TABLES:
            return ()
        theirs = renamed(ours, OUTSIDE[kind])
        if theirs is None:
            return None
        return block_names(theirs.removeprefix(BASE[kind]) if alone else theirs)

    return names


def block_names(name: str) -> tuple[str, ...] | None:
    """Returns transformers' names of a weight from its name inside a block. None: a block has no such weight."""
    block = re.fullmatch(r"(.*\.(?:layer|decoder_layers)\.\d+\.)(.*)", name)
    if block is None:
        return (name,)
    for own, parts in INSIDE:
        if block[2] == own or (own.endswith(".") and block[2].startswith(own)):
            return tuple(block[1] + part + block[2].removeprefix(own) for part in parts)
    return None


def first_spelling(weights: Mapping[str, Tensor], video: bool, source: str) -> dict[str, Tensor]:
    """Returns weights under the names of transformers' first version.

    Raises:
        ValueError: two spellings of a name occur.
    """
    found = {}
    for name, value in weights.items():
        for later, first in (*LATER, *(LATER_VIDEO if video else ())):
            name = re.sub(later, first, name)
        found[name] = value
    if len(found) < len(weights):
        raise ValueError(f"{source} holds the same weights under two names; save it again")
    return found


# --- the format --------------------------------------------------------------------------------------------------------------


@register("transformers")
class Transformers(Format):
    """Folders that `save_pretrained` of transformers wrote."""

    title = "transformers' layout"
    options = frozenset({"predict"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether config.json names a known kind of model."""
        return stored.config.get("model_type") in BASE

    def read(self, stored: Stored, options: Options) -> Model:
        kind: Kind = stored.config["model_type"]
        source, at = str(stored.file), str(stored.folder / CONFIG)
        tensors = first_spelling(stored.tensors, kind == "videomae", source)
        said = _read_config(stored.config, kind, at)
        alone = not any(name.startswith(BASE[kind]) for name in tensors)
        decoded = any(name.startswith("decoder.") for name in tensors)
        tensors, headed = self._head(tensors, said, kind, decoded, stored)
        last = f"{'' if alone else BASE[kind]}encoder.layer.{said['num_hidden_layers'] - 1}."
        if not any(name.startswith(last) for name in tensors):
            raise ValueError(f"{source} does not fit: it lacks {last.rstrip('.')}, which {at} names")
        grid, size = _sizes(said, kind, at)
        encoder = _encoder(said, kind)
        table = tensors.get("embeddings.position_embeddings" if alone else f"{BASE[kind]}embeddings.position_embeddings")
        if table is not None and not is_fixed(table, grid):
            encoder = replace(encoder, positions="learned")
        data = stored.input(size, said["num_channels"])
        tokenizer, masker, target = _method(said, kind)
        masked = build(
            encoder,
            tokenizer=tokenizer,
            data=data,
            required=RequiredFeatures(last=kind != "videomae" or not said["use_mean_pooling"]),
            decoder=_decoder(said, kind) if decoded else None,
            target=target,
            masker=masker,
        )
        model: Model = masked
        if headed:
            pool: PartConfig = ClassPool.Config() if kind == "vit" else MeanPool.Config()
            head = HeadConfig(norm="layer", epsilon=HEAD_EPSILON) if kind == "videomae" else HeadConfig(norm="none")
            classes, labels = len(tensors["classifier.weight"]), _labels(stored.config)
            model = with_head(masked, classes=classes, pool=pool, head=head, labels=labels)
        fill(model, tensors, names_of(kind, alone=alone), source)
        normalised = "nothing" if "image_mean" in stored.processor else f"mean {data.mean} and std {data.std}"
        self.report(stored, tensors, kind, normalised)
        return model

    def _head(
        self, tensors: dict[str, Tensor], said: Mapping[str, Any], kind: Kind, decoded: bool, stored: Stored
    ) -> tuple[dict[str, Tensor], bool]:
        """Returns the tensors to use, and whether a classifier's head is among them."""
        if decoded:
            return tensors, False
        readable = kind != "videomae" or said["use_mean_pooling"]
        headed = readable and "classifier.weight" in tensors
        pooler = ("pooler.", f"{BASE[kind]}pooler.")
        unread = pooler if headed else ("classifier.", "fc_norm.", *pooler)
        left = [name for name in tensors if name.startswith(unread)]
        if left:
            reason = "" if readable else ": it reads the first token, which no pool does"
            logger.warning("%s: left out %s%s", stored, shorten_list(left), reason)
        return {name: value for name, value in tensors.items() if name not in left}, headed

    def write(self, model: Model, folder: Path) -> list[str]:
        alone = not isinstance(model, Classifier) and model.decoder is None
        kind: Kind = "vit" if isinstance(model, Classifier) else "vit_mae"
        if len(model.tokenizer.size) == 3:
            kind = "videomae"
        elif not model.encoder.shape.prefix and (alone or isinstance(model, Classifier)):
            kind = "ijepa"
        config = _write_config(model, kind)
        weights = tensors_under(model, names_of(kind, alone=alone), f"transformers' {kind}")
        write_folder(folder, weights, config)
        name = config["architectures"][0]
        return [f"from transformers import {name}", f"model = {name}.from_pretrained({str(folder)!r})"]

    def usage(self, model: Model) -> list[str]:
        clips = len(model.tokenizer.size) == 3
        pixels = f"x: normalised pixels, {'(B, T, C, H, W)' if clips else shape_of(model)}"
        if isinstance(model, Classifier):
            return [f"logits = model(x).logits  # {pixels}"]
        if model.decoder is not None:
            given = ", bool_masked_pos=hidden" if clips else ""
            return [f"loss = model(x{given}).loss  # {pixels}" + "; hidden: which tubes are, bool (B, N)" * clips]
        if clips or not model.encoder.shape.prefix:
            return [f"features = model(x).last_hidden_state  # {pixels}"]
        return [
            "model.config.mask_ratio = 0.0  # ViTMAEModel hides tokens otherwise; it returns them in a random order",
            f"found = model(x)  # {pixels}",
            "order = found.ids_restore[..., None].expand(-1, -1, found.last_hidden_state.shape[2])",
            "features = found.last_hidden_state[:, 1:].gather(1, order)  # of all tokens; the class token comes first",
        ]


# --- reading config.json -----------------------------------------------------------------------------------------------------


def _read_config(config: Mapping[str, Any], kind: Kind, source: str) -> dict[str, Any]:
    """Returns the values of a config.json, completed by transformers' defaults.

    Raises:
        ValueError: a value has another type or is not supported.
    """
    said = DEFAULTS[kind] | dict(config)
    for name, default in DEFAULTS[kind].items():
        if type(said[name]) is not type(default) and name not in ("image_size", "patch_size"):
            raise ValueError(f"{source}: {name} is {said[name]!r}; expected something like {default!r}")
    if said["hidden_act"] != "gelu":
        raise ValueError(f"{source}: hidden_act is {said['hidden_act']!r}; only 'gelu' is supported")
    return said


def _sizes(said: Mapping[str, Any], kind: Kind, source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the grid, and the size of a sample in pixels (and frames)."""
    height, width = _pair(said, "image_size", source)
    side, across = _pair(said, "patch_size", source)
    if side != across or min(height // side, width // side) < 1:
        raise ValueError(
            f"{source}: patch_size {side} x {across} and image_size {height} x {width} make no square patches that fit"
        )
    grid, size = (height // side, width // side), (height // side * side, width // side * side)
    if kind != "videomae":
        return grid, size
    tubes = said["num_frames"] // said["tubelet_size"]
    return (tubes, *grid), (tubes * said["tubelet_size"], *size)


def _method(said: Mapping[str, Any], kind: Kind) -> tuple[PartConfig, MaskerConfig, PixelTarget.Config]:
    """Returns the configs of tokenizer, masker and target."""
    side = said["patch_size"] if isinstance(said["patch_size"], int) else said["patch_size"][0]
    if kind == "videomae":
        target = VIDEOMAE_TARGET if said["norm_pix_loss"] else PixelTarget.Config(standardise="none", pixels="unit")
        return Tubes.Config(size=side, frames=said["tubelet_size"]), TubeMasker.Config(), target
    masker = RandomMasker.Config(ratio=said.get("mask_ratio", IMAGES["mask_ratio"]))
    return Patches.Config(size=side), masker, PixelTarget.Config(standardise="patch" if said.get("norm_pix_loss") else "none")


def _encoder(said: Mapping[str, Any], kind: Kind) -> VisionTransformer.Config:
    config = VisionTransformer.Config(
        width=said["hidden_size"],
        depth=said["num_hidden_layers"],
        heads=said["num_attention_heads"],
        mlp_ratio=said["intermediate_size"] / said["hidden_size"],
        norm_epsilon=said["layer_norm_eps"],
    )
    if kind != "videomae":
        return replace(config, class_token=kind in TOKENED, qkv_bias="all" if said["qkv_bias"] else "none")
    biases: QKVBias = "qv" if said["qv_bias"] else "none"
    return replace(config, class_token=False, positions="flat_sine_cosine", qkv_bias=biases)


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


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the names of the classes in order. None: there are only LABEL_0, LABEL_1 and so on."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not all(str(number).isdecimal() for number in names):
        return None
    found = tuple(str(names[number]) for number in sorted(names, key=int))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(found)) else found


def _pair(said: Mapping[str, Any], name: str, source: str) -> tuple[int, int]:
    """Returns height and width. A single number is used for both."""
    value = said[name]
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{source}: {name} is {value!r}; expected a side, or height and width, in pixels")
    return sides[0], sides[1]


# --- writing config.json -----------------------------------------------------------------------------------------------------


def _write_config(model: Model, kind: Kind) -> dict[str, Any]:
    """Returns the config.json of a model.

    Raises:
        ValueError: config.json does not support an option that changes the computation. Options that only change training are named
            in a warning.
    """
    encoder, decoder = model.encoder, model.decoder if isinstance(model, MaskedModel) else None
    if not isinstance(encoder, VisionTransformer) or not isinstance(decoder, (SelfAttentionDecoder, type(None))):
        parts = f"encoder.name {encoder.config.name}" + ("" if decoder is None else f" and decoder.name {decoder.config.name}")
        raise ValueError(f"transformers' {kind} holds encoder.name vit, and decoder.name self_attention or none; not {parts}")
    own = encoder.config
    _refuse_others(model, encoder, None if decoder is None else decoder.config, kind)
    side, home = model.tokenizer.size[-1], encoder.home
    what = "classifier" if isinstance(model, Classifier) else "encoder" if decoder is None else "decoder"
    said: dict[str, Any] = {
        "architectures": [CLASSES[kind][what]],
        "model_type": kind,
        "hidden_size": own.shape.width,
        "num_hidden_layers": own.shape.depth,
        "num_attention_heads": own.head_count,
        "intermediate_size": own.hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": own.norm_epsilon,
        "image_size": side * home[-1] if home[-1] == home[-2] else [side * home[-2], side * home[-1]],
        "patch_size": side,
        "num_channels": model.tokenizer.channels,
    }
    if isinstance(model, Classifier):
        labels = model.labels or tuple(f"LABEL_{number}" for number in range(model.head.classes))
        said |= {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}
    else:
        said |= _objective(model, kind)
    if decoder is not None:
        inner = decoder.config
        hidden = round(inner.width * inner.mlp_ratio)
        said |= dict(zip(DECODER, (inner.width, inner.depth, inner.heads, hidden), strict=True))
        if kind == "videomae" and decoder.norm.eps != HEAD_EPSILON:
            logger.warning("transformers' last norm has an epsilon of %g, not %g", HEAD_EPSILON, decoder.norm.eps)
    if kind != "videomae":
        return said | {"qkv_bias": own.qkv_bias == "all"}
    frames = model.tokenizer.size[0]
    clips = {"num_frames": frames * home[0], "tubelet_size": frames, "use_mean_pooling": not encoder.required.last}
    return said | clips | {"qv_bias": own.qkv_bias == "qv"}


def _objective(model: Any, kind: Kind) -> dict[str, Any]:
    """Returns the fields of config.json about masks and loss. A warning names options that it does not support."""
    target, masker = model.target.config, model.masker.config
    images = kind != "videomae"
    pixels = isinstance(target, PixelTarget.Config)
    standardised = pixels and target.standardise != "none"
    theirs = PixelTarget.Config(standardise="patch") if images else VIDEOMAE_TARGET
    theirs = theirs if standardised else replace(theirs, standardise="none")
    lost = [] if pixels else [f"target.name {target.name}"]
    if pixels:
        relevant = (
            ("standardise", "epsilon", "epsilon_inside", "unbiased", "pixels", "loss") if standardised else ("pixels", "loss")
        )
        lost += [f"target.{name} {getattr(target, name)}" for name in relevant if getattr(target, name) != getattr(theirs, name)]
    usual = RandomMasker.Config(ratio=masker.ratio)
    if not images:  # masks are given to their model
        lost += [f"masker.predict {masker.predict}"] if masker.predict is not None else []
    elif isinstance(masker, RandomMasker.Config):
        lost += [f"masker.{name} {value}" for name, value in vars(masker).items() if value != getattr(usual, name)]
    else:
        lost.append(f"masker.name {masker.name}")
    if lost and model.decoder is not None:
        logger.warning(
            "transformers' %s does not support %s; a training continued with transformers will differ", kind, shorten_list(lost)
        )
    said: dict[str, Any] = {"norm_pix_loss": standardised}
    return said | ({"mask_ratio": masker.ratio} if images else {}) if kind != "ijepa" else {}


def _refuse_others(model: Model, encoder: VisionTransformer, decoder: SelfAttentionDecoder.Config | None, kind: Kind) -> None:
    """Raises ValueError for options that transformers' model does not have."""
    own, images = encoder.config, kind != "videomae"
    wrong = {
        f"encoder.class_token {own.class_token}": own.class_token != (kind in TOKENED),
        f"encoder.qkv_bias {own.qkv_bias}": own.qkv_bias not in ("all" if images else "qv", "none"),
        f"encoder.positions {own.positions}": not images and own.positions != "flat_sine_cosine",
        "an encoder without a final norm": images and not encoder.required.last,
    }
    if isinstance(model, Classifier):
        pool, head = model.pool.config, model.head.config
        wrong |= {f"pool.name {pool.name}": not isinstance(pool, ClassPool.Config if kind == "vit" else MeanPool.Config)}
        wrong |= {f"head.norm {head.norm}": head.norm != ("none" if images else "layer")}
        if not images and head.norm == "layer" and head.epsilon != HEAD_EPSILON:
            logger.warning("transformers' norm before the head has an epsilon of %g, not %g", HEAD_EPSILON, head.epsilon)
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
        mean = kind == "vit" and isinstance(model, Classifier) and isinstance(model.pool.config, MeanPool.Config)
        advice = "; fine-tune with --pool.name class, or export --to timm" if mean else ""
        raise ValueError(f"transformers' {kind} cannot hold {shorten_list(said)}{advice}")
