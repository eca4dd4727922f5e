"""Starting a model from weights that another one left."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from mmm.core.tokens import flat_sine_cosine
from mmm.weights.formats import crossmae, crossmae_layout, mae, mae_layout, videomae, videomae_layout
from mmm.weights.formats.official import HEADS
from mmm.weights.formats.run import load_run, run_of
from mmm.weights.formats.transformers import is_transformers, load_transformers
from mmm.weights.matching import listed, refuse_mismatch, shapes_of
from mmm.weights.safe_load import PICKLES, read_weights

logger = logging.getLogger(__name__)


def initialise_from(model: nn.Module, path: str | Path) -> set[str]:
    """Copies weights into a model of the same shape, part by part; what `--init` does.

    Encoder, decoder and target are each copied whole or refused. One that only the file or only the model has is left as it is,
    with a warning: weights of an encoder alone start a model whose decoder starts afresh.

    Args:
        model: bare, not inside DDP or a compiled module.
        path: as `load` takes it.

    Returns:
        The names of the parts that were copied.

    Raises:
        ValueError: where it cannot be read, or naming what differs: missing, extra or misshapen weights, or numbers of heads.
    """
    path = existing(path)
    run = run_of(path)
    if run is not None or is_transformers(path):
        source = load_transformers(path) if run is None else load_run(path, run)
        found = source.state_dict()
        _refuse_other_heads(model, source, str(path))
    else:
        found, width = _read_official(weights_of(path), model, str(path))
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
    return parts


def existing(path: str | Path) -> Path:
    """The path, if it leads anywhere; a name on the hub (`user/name`, no path and no file's name) is fetched."""
    from mmm.weights.hub import NAME, pull_folder

    name, path = str(path), Path(path).expanduser()
    if not path.exists():
        if NAME.fullmatch(name) and path.suffix not in (*PICKLES, ".safetensors") and not name.startswith("."):
            return pull_folder(name)
        raise ValueError(f"{path} does not exist; expected a run folder or a file of weights")
    return path


def weights_of(path: Path) -> dict[str, Tensor]:
    """The weights in a file, or in a folder as timm's are published."""
    if path.is_dir():
        path = path / "model.safetensors" if (path / "config.json").is_file() else path
        if not path.is_file():
            raise ValueError(f"{path} is no run folder: it has no config.yaml")
    return read_weights(path)


def _read_official(weights: dict[str, Tensor], model: nn.Module, source: str) -> tuple[dict[str, Tensor], int]:
    """Weights of an official layout under our names, and the encoder's width."""
    if crossmae_layout.is_crossmae(weights):
        cross, shapes = crossmae.read_crossmae(weights, source)
        return {ours: cross[name] for name in cross if (ours := crossmae_layout.our_name(name))}, shapes.encoder.width
    if videomae_layout.is_videomae(weights):
        video, told = videomae.read_videomae(weights, source)
        found = {ours: video[name] for name in video if (ours := videomae_layout.our_name(name, told.prefix))}
        return found | _flat_tables(model, {name.split(".")[0] for name in found}, source), told.encoder.width
    kept, layout = mae.read_mae(weights, source)
    return {ours: kept[name] for name in kept if (ours := mae_layout.our_name(name))}, layout.encoder.width


def _flat_tables(model: nn.Module, parts: set[str], source: str) -> dict[str, Tensor]:
    """The model's own positions, which VideoMAE's files leave out, if they are VideoMAE's."""
    tables = {name: value for name, value in model.state_dict().items() if name in videomae.TABLES and name.split(".")[0] in parts}
    for name, table in tables.items():
        flat = flat_sine_cosine(*table.shape[1:]).to(table)
        if not torch.allclose(table[0], flat, atol=1e-3):  # to half precision
            raise ValueError(f"{source} is of a model with flat positions; set {name.split('.')[0]}.positions to flat_sine_cosine")
    return tables


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
