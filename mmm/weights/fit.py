"""Fits the weights of a part to a model of another size: resizes positions to another grid, and inflates image models to tubes.

Shapes: D width, C channels, (p, p) a patch or (t, p, p) a tube, k prefix tokens, N tokens of a frame, T' tubes of a clip.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmm.core.positions import positions

logger = logging.getLogger(__name__)

Inflation = Literal["average", "centre"]
EMBEDDING = "patch_embed.proj.weight"
TABLE, SPATIAL, TEMPORAL, CLASS = "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"


def fitted_state(own: Any, other: Any, where: str, inflate: Inflation | None = None) -> dict[str, Tensor]:
    """Returns the state of a part, converted to the home grid of another part.

    Args:
        own: the part into which the weights will be copied.
        other: the part from the file.
        where: name of the file for messages.
        inflate: how to convert the weights of an image's patch to those of a tube.

    Raises:
        ValueError: one part is for images and the other for clips, and `inflate` is not given.
    """
    home, theirs = getattr(own, "home", None), getattr(other, "home", None)
    kinds = [getattr(getattr(part, "config", None), "positions", None) for part in (other, own)]
    if kinds == ["separate", "learned"] and len(own.home) == len(other.home):
        apart = (SPATIAL, TEMPORAL, CLASS)  # positions of places and of times become one table
        state = {name: value for name, value in other.state_dict().items() if name not in apart}
        return state | {TABLE: other.positions_of(own.home).detach()}
    if home is None or theirs is None or home == theirs:
        return other.state_dict()
    if len(home) == len(theirs):
        logger.info("%s: positions from a grid of %s to one of %s", where, theirs, home)
        return _state_at(other, home)
    if len(home) < len(theirs):
        raise ValueError(f"{where} is a model of clips, and this model is of images; choose a tokenizer of tubes")
    if inflate is None:
        raise ValueError(f"{where} is a model of images, and this model is of clips; give --inflate average or --inflate centre")
    return _inflated(own, _state_at(other, home[1:]), inflate)


def _state_at(part: Any, grid: tuple[int, ...]) -> dict[str, Tensor]:
    """Returns the state of an encoder or a decoder for another home grid."""
    if hasattr(part, "state_at"):
        return part.state_at(grid)
    state, table = part.state_dict(), getattr(part, TABLE, None)
    if table is None:
        return state
    options = part.config.positions, part.config.resize_positions
    return state | {TABLE: positions(table.detach(), part.home, grid, part.prefix, *options)}


def _inflated(own: nn.Module, state: dict[str, Tensor], how: Inflation) -> dict[str, Tensor]:
    """Converts the state of a part for images to that of a part for clips.

    For a constant clip, a tube has the same output as the patch. Its frames have the weights of the patch divided by the tube's
    depth (average: Carreira and Zisserman, CVPR 2017), or the middle frame has the weights and the others have zeros (centre:
    Arnab et al., ViViT, ICCV 2021). Learned positions are repeated over time; fixed positions are those of the clip model.
    """
    mine = own.state_dict()
    if EMBEDDING in state:
        weight, depth = state[EMBEDDING], mine[EMBEDDING].shape[2]
        tube = weight.new_zeros(*weight.shape[:2], depth, *weight.shape[2:])  # (D, C, t, p, p)
        if how == "average":
            tube += weight[:, :, None] / depth
        else:
            tube[:, :, depth // 2] = weight
        state = state | {EMBEDDING: tube}
    table = state.pop(TABLE, None)
    if table is None:
        return state
    if SPATIAL in mine:  # one table for positions in space and one for positions in time
        places = mine[SPATIAL].shape[1]
        prefix, table = table.split([table.shape[1] - places, places], dim=1)
        state |= {CLASS: prefix} if prefix.shape[1] else {}
        return state | {SPATIAL: table, TEMPORAL: torch.zeros_like(mine[TEMPORAL])}
    if not getattr(own, TABLE).requires_grad:
        return state | {TABLE: mine[TABLE]}
    home: Any = own.home
    tokens = math.prod(home[1:])
    prefix, places = table.split([table.shape[1] - tokens, tokens], dim=1)  # (1, k, D), (1, N, D)
    return state | {TABLE: torch.cat([prefix, places.repeat(1, home[0], 1)], dim=1)}  # (1, k + T' N, D)
