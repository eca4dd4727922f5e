"""Folders of timm with a backbone other than a plain vision transformer. It is read as an encoder: `encoder.name timm`.

A folder on the hub (`timm/beit_base_patch16_224...`, `timm/convnext_tiny...`) names its architecture in config.json. The head of a
classifier is left out.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from mmm.classifier import Classifier
from mmm.core.types import RequiredFeatures
from mmm.encoders import TimmEncoder
from mmm.encoders.timm_model import create, describe
from mmm.maskers import RandomMasker
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.weights.build import describe_pixels, pretrained_config
from mmm.weights.formats.base import CONFIG, Format, Model, Options, Stored, data_of, find_input, register, shape_of, write_folder
from mmm.weights.matching import fill, shorten_list, tensors_under

logger = logging.getLogger(__name__)

PREFIX = "encoder.backbone."
KNOWN = ("num_classes", "img_size", "in_chans", "global_pool")  # supported model_args; others change the computation


def names(ours: str) -> tuple[str, ...] | None:
    """Returns timm's name for a weight of mmm."""
    return (ours.removeprefix(PREFIX),) if ours.startswith(PREFIX) else None


@register("timm_backbone")
class TimmBackbone(Format):
    """A folder of timm, as on the hub."""

    title = "timm's layout of another backbone"

    def detect(self, stored: Stored) -> bool:
        """Returns whether config.json names an architecture of timm that is not a plain vision transformer."""
        name = stored.config.get("architecture")
        if not isinstance(name, str):
            return False
        import timm

        return timm.is_model(name) and not is_plain(name)

    def read(self, stored: Stored, options: Options) -> Model:
        name, at = stored.config["architecture"], stored.folder / CONFIG
        given = stored.config.get("model_args") or {}
        if strange := [key for key in given if key not in KNOWN]:
            raise ValueError(f"{at}: model_args {shorten_list(strange)} cannot be read here")
        said: dict[str, Any] = stored.config.get("pretrained_cfg") or {}
        channels, *size = said.get("input_size") or (3, 224, 224)
        described = describe(name)
        data = find_input(tuple(size), channels, said.get("mean"), said.get("std"))
        token = Patches(Patches.Config(size=described.token), channels=channels)
        config = TimmEncoder.Config(model=name)
        grid = token.grid_of(data.size)
        encoder = TimmEncoder(config, token=token.size, channels=channels, grid=grid, required=RequiredFeatures())
        target = PixelTarget(PixelTarget.Config(standardise="none"), token=token.size, data=data, encoder=encoder)
        model = MaskedModel(token, RandomMasker(RandomMasker.Config(blank=True)), encoder, None, target, data=data)
        own = {key.removeprefix(PREFIX) for key in model.state_dict() if key.startswith(PREFIX)}
        classifier = said.get("classifier") or ()
        heads = {f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier)} | {"head.", "fc_norm."}
        left = tuple(sorted(one for one in heads if not any(mine.startswith(one) for mine in own)))
        moved = "norm.weight" in own and "norm.weight" not in stored.tensors and "fc_norm.weight" in stored.tensors
        if moved:
            logger.warning("%s: fc_norm is applied to every token here, and to the mean of the tokens in timm", stored)
            left = tuple(one for one in left if one != "fc_norm.")
        tensors = self.leave_out(stored, *left, reason="this is read as an encoder") if left else dict(stored.tensors)
        if moved:
            tensors = {key.replace("fc_norm.", "norm."): value for key, value in tensors.items()}
        fill(model, tensors, names, f"{stored} (read as {self.title}: {name})")
        self.report(stored, tensors, name, "nothing" if "mean" in said else describe_pixels(data))
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        encoder = model.encoder
        if not isinstance(encoder, TimmEncoder) or isinstance(model, Classifier) or model.decoder is not None:
            raise ValueError(f"{self.title} holds only encoder.name timm; export --to folder, or a vit --to timm")
        weights: dict[str, Tensor] = tensors_under(model, names, self.title)
        config = {"architecture": encoder.config.model, "num_classes": 0, "num_features": encoder.shape.width}
        data, backbone = data_of(model), encoder.backbone
        arguments: dict[str, Any] = {"global_pool": ""} if getattr(backbone, "global_pool", None) == "" else {}
        if takes_size(encoder.config.model, data.size):
            arguments["img_size"] = list(data.size)
        config |= {"model_args": arguments, "pretrained_cfg": pretrained_config(data, 0)}
        write_folder(folder, weights, config)
        return ["import timm", f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"]

    def usage(self, model: Model) -> list[str]:
        return [f"features = model.forward_features(x)  # x: normalised pixels, {shape_of(model)}"]


def takes_size(name: str, size: tuple[int, ...]) -> bool:
    """Returns whether an architecture of timm is built for one size of images, (h, w)."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            timm.create_model(name, pretrained=False, img_size=size)
    except TypeError:
        return False
    return True


def is_plain(name: str) -> bool:
    """Returns whether an architecture of timm is a vision transformer that `encoder.name vit` computes in timm's layout."""
    import torch
    from timm.models.vision_transformer import Block, VisionTransformer
    from torch import nn

    with torch.device("meta"):
        found = create(name)
    if type(found) is not VisionTransformer or type(found.blocks[0]) is not Block or found.reg_token is not None:
        return False
    block = found.blocks[0]
    plain = isinstance(block.ls1, nn.Identity) and isinstance(block.attn.q_norm, nn.Identity)
    return plain and isinstance(getattr(block.mlp, "act", None), nn.GELU) and isinstance(found.norm_pre, nn.Identity)
