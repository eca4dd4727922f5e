"""timm's plain vision transformers (`vit_*`), encoders or classifiers of images. The weights of MAE's encoders and classifiers have
the same names.

A folder's config.json contains the architecture, its changes, and the normalisation of pixels (`pretrained_cfg`). A single file
contains none of these: the assumed values are logged.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmm.classifier import Classifier, HeadConfig
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.encoders import VisionTransformer
from mmm.encoders.vit import SIZES
from mmm.pools import ClassPool, MeanPool
from mmm.weights.build import (
    ENCODER,
    build,
    describe_pixels,
    pretrained_config,
    read_image_encoder,
    with_head,
)
from mmm.weights.formats.base import CONFIG, Format, Model, Options, Stored, data_of, find_input, register, shape_of, write_folder
from mmm.weights.matching import fill, renamed, shorten_list, tensors_under

logger = logging.getLogger(__name__)

NAMES = (*ENCODER, ("head.fc_norm.", "fc_norm."), ("head.linear.", "head."))
MARKS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")  # a file with one of these names has this layout
ARCHITECTURE = "vit_{}_patch16_224"
EPSILON = 1e-6  # epsilon of timm's norms
ARGUMENTS = (  # arguments in config.json that are passed to timm; weights with other names, which others cause, are refused
    *(
        "img_size",
        "patch_size",
        "in_chans",
        "embed_dim",
        "depth",
        "num_heads",
        "mlp_ratio",
        "qkv_bias",
        "class_token",
        "final_norm",
    ),
    *("fc_norm", "global_pool", "init_values", "qk_norm", "reg_tokens", "no_embed_class", "dynamic_img_size", "drop_path_rate"),
)


def names(ours: str) -> tuple[str, ...] | None:
    """Returns timm's name for a weight of mmm."""
    theirs = renamed(ours, NAMES)
    return None if theirs is None or theirs.endswith(("q_bias", "v_bias")) else (theirs,)


@register("timm")
class Timm(Format):
    """A folder of timm, as on the hub, or a file with only the weights."""

    title = "timm's layout (which is that of MAE's encoders)"
    options = frozenset({"heads", "image_size"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether blocks or patch embedding have timm's names. Other formats with these names come earlier in the list."""
        return any(mark in stored.tensors for mark in MARKS)

    def read(self, stored: Stored, options: Options) -> Model:
        tensors, source = stored.tensors, str(stored)
        strange = [name for name in tensors if renamed(name, [(there, ours) for ours, there in NAMES]) is None]
        if strange:
            raise ValueError(f"{source} does not fit: it has {shorten_list(strange)}, which the model does not have")
        theirs = _described(stored)
        if theirs is not None:
            options = replace(options, heads=theirs.blocks[0].attn.num_heads, image_size=tuple(theirs.patch_embed.img_size))
        encoder = read_image_encoder(tensors, options, source, optional=True)
        config = encoder.config
        if theirs is not None:  # a single file may also be MAE's, which interpolates positions without antialiasing
            config = replace(config, norm_epsilon=_epsilon(theirs), resize_positions="antialias")
        normed = "norm.weight" in tensors or "fc_norm.weight" not in tensors
        said = stored.config.get("pretrained_cfg") or {}
        data = find_input(encoder.data.size, encoder.data.channels, said.get("mean"), said.get("std"))
        if said.get("interpolation", "bicubic") != "bicubic":
            logger.warning("%s was trained on images resized %s; here they are resized bicubic", stored, said["interpolation"])
        masked = build(config, tokenizer=encoder.tokenizer, data=data, required=RequiredFeatures(last=normed))
        model: Model = masked
        if "head.weight" in tensors:
            averaged = stored.config.get("global_pool", "token" if normed and config.class_token else "avg") == "avg"
            pool: PartConfig = MeanPool.Config() if averaged else ClassPool.Config()
            head = HeadConfig(norm="none" if "fc_norm.weight" not in tensors else "layer", epsilon=config.norm_epsilon)
            labels = tuple(map(str, stored.config.get("label_names") or ())) or None
            model = with_head(masked, classes=len(tensors["head.weight"]), pool=pool, head=head, labels=labels)
        else:
            tensors = self.leave_out(stored, "fc_norm.", reason="a norm alone is not a head; the encoder ends without one")
        fill(model, tensors, names, f"{source} (read as {self.title}: {encoder.about})")
        unsaid = [] if theirs is not None else [f"{config.head_count} heads"]
        unsaid += [] if "mean" in said else [describe_pixels(data)]
        self.report(stored, tensors, encoder.about, ", ".join(unsaid) or "nothing")
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        architecture, arguments = timm_arguments(model)
        weights = to_timm(model)
        classes = model.head.classes if isinstance(model, Classifier) else 0
        config = {"architecture": architecture, "num_classes": classes, "num_features": model.encoder.shape.width}
        config |= {
            "global_pool": arguments["global_pool"],
            "model_args": arguments,
            "pretrained_cfg": pretrained_config(data_of(model), classes),
        }
        if isinstance(model, Classifier) and model.labels is not None:
            config["label_names"] = list(model.labels)
        write_folder(folder, weights, config)
        return ["import timm", f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"]

    def usage(self, model: Model) -> list[str]:
        call = "logits = model(x)" if isinstance(model, Classifier) else "features = model.forward_features(x)"
        return [f"{call}  # x: normalised pixels, {shape_of(model)}"]


def to_timm(model: Model) -> dict[str, Tensor]:
    """Returns the weights of an encoder of images, and of a classifier's head, under timm's names, as views.

    Raises:
        ValueError: timm's plain vision transformer has no such encoder or head.
    """
    title = "timm's plain vision transformer"
    encoder = model.encoder
    if not isinstance(encoder, VisionTransformer):
        raise ValueError(f"{title} cannot hold the encoder {encoder.config.name}; export --to folder, which mmm.load takes")
    if len(encoder.home) != 2:
        raise ValueError(f"{title} takes images, and this model is of clips; export --to folder, or --to transformers")
    if isinstance(model, Classifier) and not isinstance(model.pool, (ClassPool, MeanPool)):
        raise ValueError(f"{title} cannot hold pool.name {model.pool.config.name}; export --to folder")
    parts = {"encoder": encoder} | ({"head": model.head} if isinstance(model, Classifier) else {})
    return tensors_under(nn.ModuleDict(parts), names, title)


def timm_arguments(model: Model) -> tuple[str, dict[str, Any]]:
    """Returns the most similar architecture of timm, and the arguments in which the model differs from it.

    Raises:
        ValueError: timm has no argument for a difference.
    """
    to_timm(model)
    encoder = model.encoder
    assert isinstance(encoder, VisionTransformer)
    config, sides = encoder.config, set(model.tokenizer.size)
    if config.norm_epsilon != EPSILON:
        raise ValueError(f"encoder.norm_epsilon {config.norm_epsilon:g}: timm's norms have {EPSILON:g}, and no argument says so")
    if len(sides) > 1:
        raise ValueError(f"tokenizer.size {model.tokenizer.size}: timm's patches are square")
    width, hidden = config.shape.width, config.hidden
    ratio = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width  # timm truncates
    own = (width, config.shape.depth, config.head_count)
    size = next((name for name, known in SIZES.items() if known == own and name != "huge"), "base")
    usual: dict[str, Any] = dict(zip(("embed_dim", "depth", "num_heads"), SIZES[size], strict=True))
    usual |= {"patch_size": 16, "img_size": [224, 224], "in_chans": 3, "mlp_ratio": 4.0, "qkv_bias": True}
    usual |= {"class_token": True, "final_norm": True, "fc_norm": False}
    shape = [tokens * side for tokens, side in zip(encoder.home, model.tokenizer.size, strict=True)]
    given: dict[str, Any] = dict(zip(("embed_dim", "depth", "num_heads"), own, strict=True))
    given |= {"patch_size": sides.pop(), "img_size": shape, "in_chans": model.tokenizer.channels}
    given |= {"mlp_ratio": ratio, "qkv_bias": config.qkv_bias == "all", "class_token": config.class_token}
    normed = isinstance(model, Classifier) and model.head.config.norm == "layer"
    if normed and encoder.required.last:
        raise ValueError(
            "timm's classifiers have one norm, before or after the pool; this one has the encoder's last norm and head.norm layer"
        )
    given |= {"final_norm": encoder.required.last or normed, "fc_norm": normed}
    changed = {name: value for name, value in given.items() if value != usual[name]}
    averaged = isinstance(model.pool, MeanPool) if isinstance(model, Classifier) else not config.class_token
    changed |= {"global_pool": "avg" if averaged else "token", "fc_norm": normed}
    return ARCHITECTURE.format(size), changed


def _described(stored: Stored) -> Any:
    """Returns the architecture that config.json names, on the meta device. None: it names no architecture.

    Raises:
        ValueError: the architecture is not a plain vision transformer, or has an unsupported argument.
    """
    name = stored.config.get("architecture")
    if name is None:
        return None
    import timm
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer

    arguments = {key: value for key, value in (stored.config.get("model_args") or {}).items() if key != "num_classes"}
    path = stored.folder / CONFIG
    if not isinstance(name, str) or not timm.is_model(name):  # a name may also be an address from which timm downloads
        raise ValueError(f"{path}: timm has no architecture {name!r}")
    strange = [key for key in arguments if key not in ARGUMENTS]
    if strange or arguments.get("depth", 0) > len(stored.tensors):
        raise ValueError(f"{path}: model_args {shorten_list(strange) or 'depth'} cannot be read here")
    try:
        with torch.device("meta"):
            found = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{path}: timm refuses {name} with {arguments}: {error}") from error
    if not isinstance(found, TimmTransformer) or not isinstance(getattr(found.blocks[0].mlp, "act", None), nn.GELU):
        raise ValueError(f"{stored} is timm's {name}; what can be read are its plain vision transformers with GELU")
    return found


def _epsilon(theirs: nn.Module) -> float:
    """Returns the epsilon of the layer norms."""
    [epsilon] = {module.eps for module in theirs.modules() if isinstance(module, nn.LayerNorm)}
    return epsilon
