"""What timm must be told to build the vision transformer that exported weights fit."""

from __future__ import annotations

from typing import Any

from mmm.encoders import VisionTransformer
from mmm.encoders.vit import SIZES
from mmm.model import MaskedModel

NAME = "vit_{}_patch16_224"
EPSILON = 1e-6  # of timm's norms


def timm_arguments(model: MaskedModel) -> tuple[str, dict[str, Any]]:
    """The name and the keyword arguments for `timm.create_model`, beside `checkpoint_path`.

    Raises:
        ValueError: where timm's differs in what no argument says.
    """
    encoder = model.encoder
    assert isinstance(encoder, VisionTransformer)
    config = encoder.config
    if config.norm_epsilon != EPSILON:
        raise ValueError(f"encoder.norm_epsilon {config.norm_epsilon:g}: timm's norms have {EPSILON:g}, and no argument says so")
    own = (config.shape.width, config.shape.depth, config.head_count)
    size = next((name for name, known in SIZES.items() if known == own and name != "huge"), "base")
    usual: dict[str, Any] = dict(zip(("embed_dim", "depth", "num_heads"), SIZES[size], strict=True))
    usual |= {"patch_size": 16, "img_size": (224, 224), "in_chans": 3, "mlp_ratio": 4.0, "qkv_bias": True}
    usual |= {"class_token": True, "final_norm": True}
    height, width = (tokens * side for tokens, side in zip(encoder.home, model.tokenizer.size, strict=True))
    sides = set(model.tokenizer.size)
    if len(sides) > 1:
        raise ValueError(f"tokenizer.size {model.tokenizer.size}: timm's patches are square")
    given: dict[str, Any] = dict(zip(("embed_dim", "depth", "num_heads"), own, strict=True))
    given |= {"patch_size": sides.pop(), "img_size": (height, width), "in_chans": model.tokenizer.channels}
    hidden = round(config.shape.width * config.mlp_ratio)
    ratio = hidden / config.shape.width
    if int(config.shape.width * ratio) != hidden:  # timm truncates
        ratio = (hidden + 0.5) / config.shape.width
    given |= {"mlp_ratio": ratio, "qkv_bias": config.qkv_bias == "all"}
    given |= {"class_token": config.class_token, "final_norm": encoder.reads.last}
    changed = {name: value for name, value in given.items() if value != usual[name]}
    if not config.class_token:
        changed |= {"global_pool": "avg", "fc_norm": False}  # the default reads the class token; the norm comes before the mean
    return NAME.format(size), {"num_classes": 0, **changed}


def timm_call(model: MaskedModel, file: str) -> str:
    """The call, as a line of Python."""
    name, arguments = timm_arguments(model)
    words = [repr(name), *(f"{key}={value!r}" for key, value in arguments.items()), f"checkpoint_path={file!r}"]
    return f"timm.create_model({', '.join(words)})"
