"""Initialisation of a model with the weights of another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmm.weights.build import HEADS
from mmm.weights.fit import Inflation, fitted_state
from mmm.weights.formats import FORMATS, Model, Options, Stored
from mmm.weights.load import find_stored, read_stored, without_head
from mmm.weights.matching import match_state_dict, shorten_list

logger = logging.getLogger(__name__)

MASK_TOKEN = "encoder.mask_token"


def initialise_from(model: nn.Module, path: str | Path, *, inflate: Inflation | None = None) -> set[str]:
    """Copies weights into a model of the same width and depth, part by part (`--init` on the command line).

    Encoder, decoder and target are each copied completely or refused. A part that only the file or only the model has is skipped
    with a warning: for example, if the file contains only an encoder, the decoder keeps its random initialisation; likewise a mask
    token of the encoder that only one of them has. Positions of another grid are resized as the model in the file resizes them.
    With `inflate`, a model of clips can start from one of images.

    Args:
        model: the unwrapped model, not inside DDP or a compiled module.
        path: see `load`.
        inflate: how to convert the weights of an image's patch to those of a tube; see `fit`.

    Returns:
        The names of the parts that were copied.

    Raises:
        ValueError: the weights cannot be read or do not fit. The message names the differences.
    """
    stored = find_stored(path)
    form = next((form for form in FORMATS.values() if form.detect(stored)), None)
    known = {name: value for name, value in _options_of(model).items() if form is not None and name in form.options}
    if "decoder_heads" in known and not any(name.startswith("decoder") for name in stored.tensors):
        del known["decoder_heads"]
    source = without_head(_read(stored, known), str(path))
    own, found = model.state_dict(), source.state_dict()
    parts = {name.split(".")[0] for name in own} & {name.split(".")[0] for name in found}
    if "encoder" not in parts:
        raise ValueError(f"{path} cannot initialise this model, because it has no encoder: it has {shorten_list(own)}")
    if inflate is not None and (left := parts - {"encoder"}):
        parts -= left
        logger.warning("--inflate: only the encoder of %s is used; %s of images predict other values", path, shorten_list(left))
    refuse_other_heads(model, source, str(path))
    for part in parts:
        mine, theirs = getattr(model, part), getattr(source, part)
        _refuse_other_positions(part, mine, theirs, str(path))
        if part in ("encoder", "decoder"):
            state = fitted_state(mine, theirs, str(path), inflate)
            found = {name: value for name, value in found.items() if not name.startswith(f"{part}.")}
            found |= {f"{part}.{name}": value for name, value in state.items()}
    chosen = _with_mask_token({name: value for name, value in found.items() if name.split(".")[0] in parts}, own, str(path))
    match_state_dict(chosen, {name: value for name, value in own.items() if name.split(".")[0] in parts}, str(path))
    if "heads" in known:
        _warn_of_heads(model, source, str(path))
    model.load_state_dict(own | chosen)
    logger.info("started from %s: all %d weights of %s", path, len(chosen), shorten_list(sorted(parts)))
    for where, names in (("the model", own), (str(path), found)):
        alone = sorted({name.split(".")[0] for name in names} - parts)
        if alone:
            logger.warning("--init: only %s has a %s; it was left as it is", where, shorten_list(alone))
    return parts


def _with_mask_token(chosen: dict[str, Tensor], own: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Returns the weights without a mask token of the encoder that the model lacks, or with the model's own if the file has
    none."""
    if (MASK_TOKEN in chosen) == (MASK_TOKEN in own):
        return chosen
    if MASK_TOKEN in own:
        logger.warning("--init: %s has no mask token for the encoder; it keeps its random initialisation", where)
        return chosen | {MASK_TOKEN: own[MASK_TOKEN]}
    logger.warning("--init: the mask token of %s is left out, because this model's encoder has none", where)
    return {name: value for name, value in chosen.items() if name != MASK_TOKEN}


def _read(stored: Stored, options: dict[str, Any]) -> Model:
    """Returns the model in a file, whose size may differ from that of the options.

    Raises:
        ValueError: it can be read neither with the size of the options nor with its own.
    """
    try:
        return read_stored(stored, Options(**options))
    except ValueError as first:
        other = {name: value for name, value in options.items() if name not in ("image_size", "frames")}
        if other == options:
            raise
        try:
            return read_stored(stored, Options(**other))
        except ValueError:
            raise first from None


def refuse_other_heads(model: nn.Module, source: nn.Module, where: str) -> None:
    """Refuses different numbers of attention heads, which shapes do not show."""
    own, other = _heads(model), _heads(source)
    differ = [f"{name} has {own[name]} here, {other[name]} there" for name in own if other.get(name, own[name]) != own[name]]
    if differ:
        raise ValueError(f"{where} comes from a model with other numbers of attention heads: {shorten_list(differ)}")


def _options_of(model: Any) -> dict[str, Any]:
    """Returns the values of the model for options that files do not contain."""
    heads, data = _heads(model), getattr(model, "data", None)
    found: dict[str, Any] = {"decoder_heads": 1}  # for a decoder without heads, which does not fit any stored decoder
    for name, beginning in (("heads", "encoder."), ("decoder_heads", "decoder.")):
        counts = [count for part, count in heads.items() if part.startswith(beginning)]
        found |= {name: counts[0]} if counts else {}
    if data is not None:
        *frames, height, width = data.size
        found |= {"image_size": (height, width), **({"frames": frames[0]} if frames else {})}
    blocks = getattr(getattr(getattr(model, "encoder", None), "required", None), "blocks", ())
    return found | ({"fusion_blocks": blocks} if blocks else {})


def _heads(model: nn.Module) -> dict[str, int]:
    return {name: int(module.num_heads) for name, module in model.named_modules() if hasattr(module, "num_heads")}


def _refuse_other_positions(name: str, own: Any, other: Any, where: str) -> None:
    """Refuses flat positions for a model with other positions, and the reverse, because files do not contain them."""
    kinds = [getattr(getattr(part, "config", None), "positions", None) for part in (own, other)]
    if "flat_sine_cosine" in kinds and kinds[0] != kinds[1]:
        raise ValueError(f"{where} comes from a model with {kinds[1]} positions; set {name}.positions to {kinds[1]}")


def _warn_of_heads(model: nn.Module, source: Any, where: str) -> None:
    """Warns if the number of heads, which files do not contain, is not the published one for this width."""
    width, own = source.encoder.shape.width, {heads for name, heads in _heads(model).items() if name.startswith("encoder.")}
    if width in HEADS and own != {HEADS[width]}:
        logger.warning(
            "%s does not state its number of heads; models of width %d have %d, not %s",
            where,
            width,
            HEADS[width],
            own,
        )
