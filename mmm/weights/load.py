"""Loads models from run folders, published weights and the hub."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mmm.core.types import Input
from mmm.encoders import Encoder
from mmm.maskers import MaskerConfig, RandomMasker, UniformMasker, maskers
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.weights.formats import FORMATS, Format, Model, Options, Stored
from mmm.weights.hub import NAME, pull_folder
from mmm.weights.matching import shorten_list
from mmm.weights.safe_load import PICKLES

__all__ = ["compare_pixels", "find_stored", "load", "load_as", "load_masked", "read_stored", "without_head"]

logger = logging.getLogger(__name__)

M = TypeVar("M")

OTHERS = {  # prefixes of names in layouts that no format reads; the first match counts
    "vit.": "transformers' ViT without its config.json",
    "videomae.": "transformers' VideoMAE without its config.json",
    "embeddings.": "transformers' weights without their config.json",
    "encoder.patch_embed.": "weights of a run without its config.yaml",
}


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    norm_pix: bool | None = None,
    predict: float | None = None,
    fusion_blocks: tuple[int, ...] | None = None,
    frames: int | None = None,
) -> Model:
    """Loads the model in a folder or a file of weights, on the CPU and in evaluation mode.

    From a run folder, the newest complete checkpoint is loaded. A folder `checkpoints/step_*` selects a checkpoint, and the file
    `ema.safetensors` in it selects the moving average of the weights. Published weights may be a file (.pth, .pt, .safetensors) in
    the official layout of MAE, MAE-ST, CrossMAE, VideoMAE, I-JEPA, V-JEPA 2, CAPI, Pixio, Hiera, BEiT, DINOv2 or DINOv3; a folder
    of timm (`vit_*`) or of transformers (ViTMAE, ViT, VideoMAE, I-JEPA, V-JEPA 2, Pixio, BEiT, DINOv2 or DINOv3) with config.json;
    or a folder of any other backbone of timm or vision model of transformers, which is loaded as an encoder. If there is only an
    encoder, the `decoder` of the model is None: the model can encode but has no loss. No code in a file is executed.

    Args:
        path: a run folder, a checkpoint in one, a file, or a name on the Hugging Face hub (`facebook/vit-mae-base`).
        heads: attention heads of the encoder, which files do not contain. None: the published number for its width.
        decoder_heads: attention heads of the decoder. None: the published number for its width.
        image_size: size of the images for which the file has positions, in pixels: a side, or height and width. None: the square
            that fits, and 224 for VideoMAE, whose files contain no positions.
        norm_pix: whether targets were standardised, which files do not contain. None: they were, as in MAE's `*_full` files. MAE's
            `mae_visualize_*` files predict plain pixels and need False.
        predict: fraction of all tokens that are predicted with the masks of the model's masker, which files do not contain. None:
            all hidden tokens. CrossMAE's files were trained with 0.25 or 0.75. It does not limit masks that are given to the model.
        fusion_blocks: for a file in CrossMAE's layout, the fused encoder blocks, counted from 1, preceded by 0 if the encoder's
            input is fused too. None: all blocks, and the input if there is one more map.
        frames: for a file in VideoMAE's layout, the number of frames of its training clips. None: 16.

    Returns:
        A masked model, or, if the weights have a head, a classifier, a segmenter or a detector.

    Raises:
        ValueError: the weights cannot be read, have an unknown format or do not fit, or an argument is missing or does not fit.
    """
    given = Options(
        heads=heads,
        decoder_heads=decoder_heads,
        image_size=image_size,
        norm_pix=norm_pix,
        predict=predict,
        fusion_blocks=fusion_blocks,
        frames=frames,
    )
    return read_stored(find_stored(path), given)


def load_masked(path: str | Path, *, norm_pix: bool | None = None) -> MaskedModel:
    """Loads a model without a head. A classifier becomes a model without a decoder, with a warning."""
    return without_head(load(path, norm_pix=norm_pix), str(path))


def without_head(model: Model, source: str) -> MaskedModel:
    """Returns a masked model unchanged. From a model of another class, returns the encoder as a model without a decoder.

    Raises:
        ValueError: the encoder cannot be used without its head.
    """
    if isinstance(model, MaskedModel):
        return model
    left = [name for name in model.state_dict() if not name.startswith("encoder.")]
    if getattr(model, "relative_bias", False) or getattr(getattr(model, "config", None), "relative", False):
        raise ValueError(f"{source} has learned biases of relative positions, and its encoder cannot be used without them")
    kind = type(model).__name__.lower()
    logger.warning("%s is a %s; only its encoder is used, without %s", source, kind, shorten_list(left))
    data = model.data
    assert data is not None
    target = PixelTarget(PixelTarget.Config(standardise="none"), token=model.tokenizer.size, data=data, encoder=model.encoder)
    masker = maskers.build(masker_without_tokens(model.encoder))
    return MaskedModel(model.tokenizer, masker, model.encoder, None, target, data=data).eval()


def masker_without_tokens(encoder: Encoder) -> MaskerConfig:
    """Returns a masker that fits an encoder without mask tokens, to build an untrained copy of it."""
    return UniformMasker.Config(secondary=0.0) if encoder.shape.whole else RandomMasker.Config()


def compare_pixels(model: MaskedModel, data: Input, path: str) -> None:
    """Warns if the normalisation of samples is not that of a model's training.

    Args:
        path: path of the model, for messages.

    Raises:
        ValueError: the samples have another number of channels.
    """
    own = model.data or data
    if (own.mean, own.std) != (data.mean, data.std):
        logger.warning("data.mean %s and data.std %s are not those of %s, %s and %s", data.mean, data.std, path, own.mean, own.std)
    if model.tokenizer.channels != data.channels:
        raise ValueError(f"data.channels {data.channels}: {path} is a model of {model.tokenizer.channels} channels")


def load_as(kind: type[M], path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> M:
    """Loads a model of one class; see `from_pretrained`.

    Raises:
        ValueError: the stored model has another class.
    """
    model: Model = read_stored(find_stored(path, revision=revision, token=token), Options())
    model = without_head(model, str(path)) if issubclass(kind, MaskedModel) else model
    if not isinstance(model, kind):
        if isinstance(model, MaskedModel):
            raise ValueError(f"{path} holds no head; Classifier.of(mmm.load(path), classes=...) makes one")
        raise ValueError(f"{path} holds a {type(model).__name__}, not a {kind.__name__}")
    return model


def find_stored(path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Stored:
    """Returns the weights at a path. If the path does not exist and is a name on the hub (`user/name`), they are downloaded.

    Raises:
        ValueError: the path does not exist.
    """
    name, path = str(path), Path(path).expanduser()
    if path.exists():
        return Stored(path)
    if NAME.fullmatch(name) and path.suffix not in (*PICKLES, ".safetensors") and not name.startswith("."):
        return Stored(pull_folder(name, revision=revision, token=token))
    raise ValueError(f"{path} does not exist; expected a run folder or a file of weights")


def read_stored(stored: Stored, options: Options) -> Model:
    """Reads a model in the first format that detects it.

    Raises:
        ValueError: no format detects the weights, or the format refuses them.
    """
    form = next((form for form in FORMATS.values() if form.detect(stored)), None)
    if form is None:
        other = next((layout for mark, layout in OTHERS.items() if any(name.startswith(mark) for name in stored.tensors)), None)
        seen = f"looks like {other}" if other else "has no known format"
        titles = ", ".join(form.title for form in FORMATS.values() if type(form).read is not Format.read)
        raise ValueError(f"{stored} {seen}; what can be read: {titles}. Its first names: {shorten_list(stored.tensors)}")
    for name, value in options.given().items():
        if name not in form.options:
            says = ", ".join(sorted(form.options)) or "no argument"
            raise ValueError(f"{name}={value} was given, but {stored} is {form.title}, which takes {says}; leave it out")
    model = form.read(stored, options)
    if options.predict is not None and isinstance(model, MaskedModel):
        config = model.masker.config
        assert isinstance(config, MaskerConfig)
        model.masker = maskers.build(replace(config, predict=options.predict))
    return model.eval()
