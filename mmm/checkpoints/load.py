"""Loading a model from whatever holds one, and starting a model from such weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from mmm.checkpoints import crossmae, crossmae_layout, mae, mae_layout
from mmm.checkpoints.account import listed, refuse_mismatch, shapes_of
from mmm.checkpoints.files import read_weights
from mmm.checkpoints.official import HEADS
from mmm.checkpoints.run_folder import load_run, run_of
from mmm.maskers import RandomMasker
from mmm.model import MaskedModel

logger = logging.getLogger(__name__)


def load(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    norm_pix: bool | None = None,
    predict: float | None = None,
    fusion_blocks: tuple[int, ...] | None = None,
) -> MaskedModel:
    """The model that a run folder or a file of weights holds, on the CPU.

    A run gives its newest whole checkpoint; a folder `checkpoints/step_*` gives that one, and the file `ema.safetensors` in it the
    moving average of the weights instead of the weights. A file (.pth, .pt, .safetensors) may be in the official layout of MAE or
    of CrossMAE. Where it holds the encoder alone, the model's `decoder` is None: `encode` works, a loss does not. Of a fine-tuned
    file the encoder is loaded, with a warning that names what was left out. Files are read as data; nothing in them is run.

    Args:
        path: a run folder, a checkpoint in one, or a file.
        heads: of the encoder, which no file says; none: as published for its width.
        decoder_heads: of the decoder; none: as published for its width.
        image_size: that the file's positions are for, in pixels: a side, or height and width; none: the square that fits.
        norm_pix: whether patches were standardised, which no file says; none: they were, as in MAE's `*_full` files. Its
            `mae_visualize_*` files predict plain pixels: give False.
        predict: fraction of all tokens that the model's own masks ask for, which no file says; none: all hidden ones. CrossMAE's
            files were trained with 0.25 or 0.75; a mask that is given to the model asks for what it likes.
        fusion_blocks: of a file in CrossMAE's layout, the encoder's blocks that are mixed, counted from 1, after a 0 where its
            input is; none: all blocks, with the input where there is one map more.

    Raises:
        ValueError: one line: what cannot be read, is of no known layout, lacks a name or has one too many, or which argument is
            missing or does not fit.
    """
    path = _existing(path)
    run = run_of(path)
    if run is not None:
        given: dict[str, object] = {"heads": heads, "decoder_heads": decoder_heads, "image_size": image_size, "norm_pix": norm_pix}
        given |= {"predict": predict, "fusion_blocks": fusion_blocks}
        surplus = [name for name, value in given.items() if value is not None]
        if surplus:
            raise ValueError(f"{run / 'config.yaml'} already says what {', '.join(surplus)} would; leave it out")
        return load_run(path, run)
    weights = _weights(path)
    build: Callable[..., MaskedModel] = mae.model_of
    if crossmae_layout.is_crossmae(weights):
        build = partial(crossmae.model_of, fusion_blocks=fusion_blocks)
    elif fusion_blocks is not None:
        raise ValueError(f"fusion_blocks={fusion_blocks} was given, but {path} is not in CrossMAE's layout; leave it out")
    model = build(weights, str(path), heads=heads, decoder_heads=decoder_heads, image_size=image_size, norm_pix=norm_pix)
    if predict is not None:
        model.masker = RandomMasker(RandomMasker.Config(predict=predict))
    return model


def initialise_from(model: nn.Module, path: str | Path) -> None:
    """Copies weights into a model of the same shape, part by part; what `--init` does.

    Encoder, decoder and target are each copied whole or refused. One that only the file or only the model has is left as it is,
    with a warning: weights of an encoder alone start a model whose decoder starts afresh.

    Args:
        model: bare, not inside DDP or a compiled module.
        path: as `load` takes it.

    Raises:
        ValueError: where it cannot be read, or naming what differs: missing, extra or misshapen weights, or numbers of heads.
    """
    path = _existing(path)
    run = run_of(path)
    if run is not None:
        source = load_run(path, run)
        found = source.state_dict()
        _refuse_other_heads(model, source, str(path))
    else:
        found, width = _read_official(_weights(path), str(path))
        _warn_of_heads(model, width, str(path))
    own = model.state_dict()
    parts = {name.split(".")[0] for name in own} & {name.split(".")[0] for name in found}
    if "encoder" not in parts:
        raise ValueError(f"{path} cannot start a model without an encoder: it has {listed(own)}")
    chosen = {name: value for name, value in found.items() if name.split(".")[0] in parts}
    wanted = {name: shape for name, shape in shapes_of(own).items() if name.split(".")[0] in parts}
    refuse_mismatch(chosen, wanted, str(path))
    model.load_state_dict(own | chosen)
    logger.info("started from %s: all %d weights of %s", path, len(chosen), listed(sorted(parts)))
    for where, names in (("the model", own), (str(path), found)):
        alone = sorted({name.split(".")[0] for name in names} - parts)
        if alone:
            logger.warning("--init: only %s has a %s; it was left as it is", where, listed(alone))


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected a run folder or a file of weights")
    return path


def _weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        raise ValueError(f"{path} is no run folder: it has no config.yaml")
    return read_weights(path)


def _read_official(weights: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], int]:
    """Weights of an official layout under our names, and the encoder's width."""
    if crossmae_layout.is_crossmae(weights):
        cross, shapes = crossmae.read_crossmae(weights, source)
        return {ours: cross[name] for name in cross if (ours := crossmae_layout.our_name(name))}, shapes.encoder.width
    kept, layout = mae.read_mae(weights, source)
    return {ours: kept[name] for name in kept if (ours := mae_layout.our_name(name))}, layout.encoder.width


def _heads(model: nn.Module) -> dict[str, int]:
    return {name: int(module.num_heads) for name, module in model.named_modules() if hasattr(module, "num_heads")}


def _refuse_other_heads(model: nn.Module, source: nn.Module, where: str) -> None:
    """The number of heads changes what weights mean and shows in no shape."""
    own, other = _heads(model), _heads(source)
    differ = [f"{name} has {own[name]}, there {other[name]}" for name in own if other.get(name, own[name]) != own[name]]
    if differ:
        raise ValueError(f"{where} is of a model with other numbers of attention heads: {listed(differ)}")


def _warn_of_heads(model: nn.Module, width: int, where: str) -> None:
    """A file does not say its heads, and a width has its published number of them."""
    own = {heads for name, heads in _heads(model).items() if name.startswith("encoder.")}
    if width in HEADS and own != {HEADS[width]}:
        logger.warning("%s does not say its heads; published for a width of %d are %d, not %s", where, width, HEADS[width], own)
