"""Folders of any other vision model of transformers, which transformers itself computes, for evaluations or as a frozen teacher.

From a model of images and texts (CLIP, SigLIP), only the vision model is read.
"""

from __future__ import annotations

import logging
from typing import Any

from mmm.encoders.transformers_model import TransformersEncoder, describe
from mmm.maskers import RandomMasker
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.weights.build import describe_pixels
from mmm.weights.formats.base import PICKLED, Format, Model, Options, Stored, register
from mmm.weights.matching import shorten_list

logger = logging.getLogger(__name__)


@register("transformers_model")
class TransformersModel(Format):
    """Folders that `save_pretrained` of transformers wrote."""

    title = "a vision model of transformers"

    def detect(self, stored: Stored) -> bool:
        """Returns whether config.json names a kind of model of transformers.

        Raises:
            ValueError: config.json names a kind of model, and transformers is not installed.
        """
        kind = stored.config.get("model_type")
        if not isinstance(kind, str) or not stored.path.is_dir():
            return False
        try:
            from transformers import CONFIG_MAPPING
        except ImportError as error:
            raise ValueError(f"{stored} is a folder of transformers ({kind}), which reads it; pip install transformers") from error
        return kind in CONFIG_MAPPING

    def read(self, stored: Stored, options: Options) -> Model:
        from transformers import AutoConfig, AutoModel

        if stored.file.name == PICKLED:
            raise ValueError(f"{stored.file} is a pickle; save it again as model.safetensors, which contains only tensors")
        settings = AutoConfig.from_pretrained(stored.folder, local_files_only=True)
        try:
            whole, info = AutoModel.from_pretrained(
                stored.folder, config=settings, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"{stored} cannot be read as {self.title}: {error}") from error
        parts: Any = getattr(whole, "vision_model", whole)
        settings = getattr(settings, "vision_config", settings) if parts is not whole else settings
        lacks = [name for name in info["missing_keys"] if "pooler" not in name and (parts is whole or "vision_model" in name)]
        if lacks:
            raise ValueError(f"{stored} does not fit: it lacks {shorten_list(sorted(lacks))}")
        if left := [*info["unexpected_keys"], *([] if parts is whole else ["everything but its vision model"])]:
            logger.warning("%s: left out %s", stored, shorten_list(sorted(left)))
        backbone = parts.eval().requires_grad_(False)
        size = _side(getattr(settings, "image_size", None)) or _side(stored.processor.get("crop_size")) or 224
        channels = getattr(settings, "num_channels", 3)
        config = describe(backbone, settings, size=size, channels=channels)
        data = stored.input((size, size), channels)
        tokenizer = Patches(Patches.Config(size=config.side), channels=channels)
        encoder = TransformersEncoder(config, backbone, grid=tokenizer.grid_of(data.size))
        target = PixelTarget(PixelTarget.Config(standardise="none"), token=tokenizer.size, data=data, encoder=encoder)
        masker = RandomMasker(RandomMasker.Config(blank=True))
        about = f"{config.kind_of_model}, features of {config.side} pixels' side; only for evaluations and as a teacher"
        self.report(stored, dict(backbone.state_dict()), about, describe_pixels(data))
        return MaskedModel(tokenizer, masker, encoder, None, target, data=data)


def _side(value: Any) -> int | None:
    """Returns the side of an image from a config's value: a number, [height, width] or {height, width}."""
    if isinstance(value, dict):
        value = list(value.values())
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, int) else None
