"""Loading a model from whatever holds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmm.maskers import MaskerConfig, maskers
from mmm.model import MaskedModel
from mmm.weights.formats import crossmae, crossmae_layout, mae, videomae, videomae_layout
from mmm.weights.formats.run import load_run, run_of
from mmm.weights.formats.transformers import is_transformers, load_transformers
from mmm.weights.initialize import existing, initialise_from, weights_of

__all__ = ["initialise_from", "load"]


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
) -> MaskedModel:
    """The model that a run folder or a file of weights holds, on the CPU and in evaluation mode.

    A run gives its newest whole checkpoint; a folder `checkpoints/step_*` gives that one, and the file `ema.safetensors` in it the
    moving average of the weights instead of the weights. A file (.pth, .pt, .safetensors) may be in the official layout of MAE,
    CrossMAE or VideoMAE, or hold a plain vision transformer of timm's. A folder (or its file of weights) may be transformers'
    ViTMAE or VideoMAE, whose config.json says what the arguments would. Where there is the encoder alone, the model's `decoder` is
    None: `encode` works, a loss does not. Of a classifier the encoder is loaded, with a warning that names what was left out. Files
    are read as data; nothing in them is run.

    Args:
        path: a run folder, a checkpoint in one, a file, or a name on the Hugging Face hub (`facebook/vit-mae-base`).
        heads: of the encoder, which no file says; none: as published for its width.
        decoder_heads: of the decoder; none: as published for its width.
        image_size: that the file's positions are for, in pixels: a side, or height and width; none: the square that fits, and 224
            for VideoMAE, whose files hold no positions.
        norm_pix: whether patches were standardised, which no file says; none: they were, as in MAE's `*_full` files. Its
            `mae_visualize_*` files predict plain pixels: give False.
        predict: fraction of all tokens that the model's own masks ask for, which no file says; none: all hidden ones. CrossMAE's
            files were trained with 0.25 or 0.75; a mask that is given to the model asks for what it likes.
        fusion_blocks: of a file in CrossMAE's layout, the encoder's blocks that are mixed, counted from 1, after a 0 where its
            input is; none: all blocks, with the input where there is one map more.
        frames: of a file in VideoMAE's layout, the length of the clips that it was trained on; none: 16.

    Raises:
        ValueError: one line: what cannot be read, is of no known layout, lacks a name or has one too many, or which argument is
            missing or does not fit.
    """
    path = existing(path)
    run = run_of(path)
    given: dict[str, Any] = {"heads": heads, "decoder_heads": decoder_heads, "image_size": image_size, "norm_pix": norm_pix}
    others = {"predict": predict, "fusion_blocks": fusion_blocks, "frames": frames}
    if run is not None:
        _refuse_surplus(given | others, run / "config.yaml")
        return load_run(path, run).eval()
    if is_transformers(path):
        _refuse_surplus(given | others | {"predict": None}, path)
        return _predicting(load_transformers(path), predict).eval()
    weights = weights_of(path)
    build: Callable[..., MaskedModel] = mae.model_of
    cross, video = crossmae_layout.is_crossmae(weights), videomae_layout.is_videomae(weights)
    if fusion_blocks is not None and not cross:
        raise ValueError(f"fusion_blocks={fusion_blocks} was given, but {path} is not in CrossMAE's layout; leave it out")
    if frames is not None and not video:
        raise ValueError(f"frames={frames} was given, but {path} is not in VideoMAE's layout; leave it out")
    if cross:
        build = partial(crossmae.model_of, fusion_blocks=fusion_blocks)
    elif video:
        build = partial(videomae.model_of, frames=frames)
    return _predicting(build(weights, str(path), **given), predict).eval()


def _refuse_surplus(given: Mapping[str, object], config: Path) -> None:
    """Refuses arguments for what is known."""
    surplus = [name for name, value in given.items() if value is not None]
    if surplus:
        raise ValueError(f"{config} already says what {', '.join(surplus)} would; leave it out")


def _predicting(model: MaskedModel, predict: float | None) -> MaskedModel:
    """The model, its own masks asking for this fraction of all tokens."""
    if predict is not None:
        config = model.masker.config
        assert isinstance(config, MaskerConfig)
        model.masker = maskers.build(replace(config, predict=predict))
    return model
