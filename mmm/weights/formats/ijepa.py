"""I-JEPA's official checkpoints (Assran et al., CVPR 2023): the encoder, its moving average and the predictor under timm's names.

The moving average (`target_encoder`), which the paper evaluates, is read; the trained encoder and the predictor are left out.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mmm.core.types import RequiredFeatures
from mmm.weights.build import build, describe_pixels, official_lines, read_image_encoder
from mmm.weights.formats.base import FILE, Format, Model, Options, Stored, register
from mmm.weights.formats.timm import names, to_timm
from mmm.weights.matching import fill

AVERAGE = "target_encoder."


@register("ijepa")
class IJEPA(Format):
    """Files like IN1K-vit.h.14-300e.pth.tar; an encoder of images without a class token."""

    title = "I-JEPA's layout"
    options = frozenset({"heads", "image_size"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether there is a target encoder."""
        return any(name.startswith(AVERAGE) and name.endswith("patch_embed.proj.weight") for name in stored.tensors)

    def read(self, stored: Stored, options: Options) -> Model:
        average = {name.removeprefix(AVERAGE): value for name, value in stored.tensors.items() if name.startswith(AVERAGE)}
        tensors = {name.removeprefix("module."): value for name, value in average.items()}
        encoder = read_image_encoder(tensors, options, str(stored), optional=True, pixels=stored.processor)
        model = build(encoder.config, tokenizer=encoder.tokenizer, data=encoder.data, required=RequiredFeatures())
        fill(model, tensors, names, f"{stored} (read as {self.title}: {encoder.about})")
        about = f"{encoder.about}; only the target encoder is read"
        self.report(stored, tensors, about, f"{encoder.config.head_count} heads, {describe_pixels(encoder.data)}")
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        weights = to_timm(model)
        if model.encoder.shape.prefix:
            raise ValueError(f"{self.title} has no class token; encoder.class_token must be false")
        torch.save({"target_encoder": weights}, folder / f"{FILE}.tar")
        return official_lines(folder / f"{FILE}.tar", "vision_transformer.VisionTransformer", "target_encoder")
