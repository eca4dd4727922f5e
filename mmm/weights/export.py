"""Weights for other people's code: the official layouts, timm and transformers."""

from __future__ import annotations

from torch import Tensor

from mmm.encoders import VisionTransformer
from mmm.model import MaskedModel
from mmm.weights.formats.crossmae import to_crossmae
from mmm.weights.formats.mae import to_mae
from mmm.weights.formats.transformers_export import write_transformers
from mmm.weights.formats.videomae import to_videomae
from mmm.weights.matching import listed

__all__ = ["to_crossmae", "to_mae", "to_timm", "to_videomae", "write_transformers"]


def to_timm(model: MaskedModel) -> dict[str, Tensor]:
    """An image encoder's weights under timm's names, as views, for its plain vision transformers of the same size.

    `timm.create_model("vit_base_patch16_224", num_classes=0, checkpoint_path=...)` takes a file of them; with `class_token=False`
    or `final_norm=False` where the encoder has none, and `img_size=` where its home is of another size.

    Raises:
        ValueError: where the encoder is none of timm's plain ones.
    """
    encoder = model.encoder
    if not isinstance(encoder, VisionTransformer) or len(encoder.home) != 2:
        raise ValueError("timm's plain vision transformers take images; this encoder is another, or of clips")
    weights = dict(encoder.state_dict())
    foreign = [name for name in weights if name == "mask_token" or name.endswith(("q_bias", "v_bias"))]
    if foreign:
        raise ValueError(f"timm's plain vision transformers have no place for {listed(foreign)}")
    return weights
