"""Optimizers by name, their parameter groups, and their state under the parameters' names.

The default is AdamW (Loshchilov and Hutter, ICLR 2019), fused; the others are timm's. Muon (Jordan et al., 2024) orthogonalises the
update of a matrix, and treats fused queries, keys and values as one matrix. AdamW updates patch embeddings, heads and everything
that is not a matrix, as Muon's authors do.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.checks import nearest
from mmm.core.types import UpdateScale
from mmm.train.config import TrainConfig
from mmm.train.distributed.fsdp import DDP, shard_like, sharding_asked

# parameters of a classifier by layer, in the form in which timm's models define them; all others belong to the head's layer
LAYERS: dict[str, Any] = {
    "embedding": r"encoder\.(?:backbone\.)?(?:cls_token|reg_token|mask_token|pos_embed|patch_embed|stem)",
    "blocks": [
        (r"encoder\.(?:backbone\.)?(?:layers|stages)\.(\d+)\.blocks\.(\d+)", None),
        (r"encoder\.(?:backbone\.)?(?:layers|stages)\.(\d+)\.downsample", (0,)),
        (r"encoder\.(?:backbone\.)?blocks\.(\d+)", None),
    ],
}
TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")
# names in our encoders and in timm's: see MAE's main_finetune.py; vectors are not decayed either
UNDECAYED = tuple(f"encoder.{inner}{name}" for inner in ("", "backbone.") for name in TOKENS if name != "mask_token")


ADAMW_BETAS = (0.9, 0.999)
REFUSED = ("kron", "adahessian", "fused", "bnb")  # random state; second derivatives; from other libraries (apex, bitsandbytes)
MOMENTUM = 0.9  # timm's value, for optimizers whose own default is 0
HYBRID = ("muon", "nmuon", "adamuon", "nadamuon")  # update matrices, and contain an AdamW for other parameters
TO_ADAMW = ("patch_embed.", "head.", "last_layer.")  # matrices that a hybrid optimizer updates with AdamW
ELEMENTWISE = ("adamw", "lion")  # can update a part of a parameter, as FSDP2 needs it; tested
OWN = ("params", "lr_scale", "decay_scale", "use_fallback")  # keys of a group that are not options of the optimizer


def make_optimizer(model: nn.Module, config: TrainConfig, *, layer_decay: float | None = None) -> torch.optim.Optimizer:
    """Makes the optimizer of the config for the trained parameters. Vectors and biases are not decayed.

    With `train.decay_tokens`, class tokens, mask tokens and learned positions are decayed, as in MAE: timm's rule exempts only
    tensors of one dimension, and they have three. With `layer_decay`, for fine-tuning a classifier, they are not decayed; see
    `layer_groups`.

    Raises:
        ValueError: the optimizer does not exist, cannot be resumed, lacks an option that is set, or cannot be sharded by FSDP2.
    """
    if layer_decay is None:
        from timm.optim import param_groups_weight_decay

        tokens = [] if config.decay_tokens else [name for name, _ in model.named_parameters() if name.split(".")[-1] in TOKENS]
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=tokens)
    else:
        groups = layer_groups(model, 1.0, layer_decay)
    for group in groups:
        group["decay_scale"] = group["weight_decay"]
        group["weight_decay"] = config.weight_decay * group["decay_scale"]
    rates = {"encoder.": config.encoder_rate, "encoder.patch_embed.": config.embedding_rate, "decoder.": config.decoder_rate}
    groups = scale_groups(model, groups, rates)
    if config.optimizer == "adamw":
        # rate and decay are set before every step; fused is one kernel on every device, the CPU's too
        if config.momentum is not None:
            raise ValueError(f"train.momentum {config.momentum}: adamw has no momentum; set train.betas")
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas or ADAMW_BETAS, fused=True)
    return _named_optimizer(model, config, groups)


def _named_optimizer(model: nn.Module, config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Makes an optimizer of timm by name."""
    from timm.optim import get_optimizer_class, list_optimizers

    name = config.optimizer
    listed: list[str] = [str(one) for one in list_optimizers()]
    if name not in (known := [one for one in listed if not any(part in one for part in REFUSED)]):
        why = "cannot be resumed bit for bit, or needs more than gradients" if name in listed else "is not an optimizer of timm"
        raise ValueError(f"train.optimizer {name} {why}{nearest(name, known)}; for instance adamw, lion, lamb, lars, muon")
    if sharding_asked(os.environ) and name not in ELEMENTWISE:
        raise ValueError(
            f"train.optimizer {name} is not computed on parts of a matrix, as FSDP needs; use {' or '.join(ELEMENTWISE)}, or {DDP}"
        )
    kind: Any = get_optimizer_class(name)
    has, chosen = inspect.signature(kind).parameters, {"betas": config.betas, "momentum": config.momentum}
    options: dict[str, Any] = {option: value for option, value in chosen.items() if value is not None}
    for option, value in options.items():
        if option not in has or (option == "betas" and len(has[option].default) != len(value)):
            raise ValueError(f"train.{option} {value}: train.optimizer {name} has no such option; set train.{option} none")
    if "momentum" in has and not has["momentum"].default:
        options.setdefault("momentum", MOMENTUM)
    if name in HYBRID:
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = [part for group in groups for part in _split_fallback(group, names)]
    made: torch.optim.Optimizer = kind(groups, lr=config.learning_rate, **options)
    return made


def _split_fallback(group: dict[str, Any], names: Mapping[nn.Parameter, str]) -> list[dict[str, Any]]:
    """Splits off the parameters that a hybrid optimizer updates with AdamW by their names. Returns one or two groups."""
    split = []
    for fallback in (False, True):
        members = [one for one in group["params"] if any(f".{part}" in f".{names[one]}" for part in TO_ADAMW) is fallback]
        split += [group | {"params": members} | ({"use_fallback": True} if fallback else {})] if members else []
    return split


def layer_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Returns the groups of a classifier, each with the `lr_scale` of its layer (Clark et al., "ELECTRA", ICLR 2020; BEiT, MAE).

    With L blocks, the factor of layer i is layer_decay^(L + 1 - i). Layer 0 is the embedding with its positions and tokens, 1 to L
    are the blocks, and L + 1 is the rest. The class token and the positions are not decayed.
    """
    from timm.optim import param_groups_layer_decay

    return param_groups_layer_decay(_Layered(model), weight_decay, UNDECAYED, layer_decay=layer_decay)  # type: ignore[arg-type]


def scale_groups(model: nn.Module, groups: list[dict[str, Any]], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Splits groups by the `update_scale` (`mmm.core.types.UpdateScale`) of modules.

    Args:
        rates: factors of the learning rate by the start of a parameter's name. All factors that match are multiplied.
    """
    scales: dict[nn.Parameter, tuple[float, float]] = {}
    for name, parameter in model.named_parameters():
        factor = math.prod(rate for start, rate in rates.items() if name.startswith(start))
        if factor != 1:
            scales[parameter] = factor, 1.0
    for module in model.modules():
        own = getattr(module, "update_scale", UpdateScale())
        for parameter in module.parameters() if own != UpdateScale() else ():
            rate, decay = scales.get(parameter, (1.0, 1.0))
            scales[parameter] = rate * own.rate, decay * own.decay
    split: list[dict[str, Any]] = []
    for group in groups:
        found = [scales.get(parameter, (1.0, 1.0)) for parameter in group["params"]]
        for rate, decay in dict.fromkeys(found):
            members = [parameter for parameter, one in zip(group["params"], found, strict=True) if one == (rate, decay)]
            lr_scale, decay_scale = group.get("lr_scale", 1.0) * rate, group["decay_scale"] * decay
            scaled = {"lr_scale": lr_scale, "decay_scale": decay_scale, "weight_decay": group["weight_decay"] * decay}
            split.append(group | {"params": members} | scaled)
    return split


class _Layered:
    """The interface that timm needs to group the parameters of a model by layer."""

    def __init__(self, model: nn.Module) -> None:
        self.named_parameters = model.named_parameters

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        return LAYERS


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits the state into tensors for safetensors and values for JSON, under "parameter/entry".

    The groups' settings are left out, because they follow from the config, which a resume compares. Counters of the groups are
    included, under "group/entry" with the group's number.

    Args:
        names: names of the parameters.
    """
    entries = {f"{names[p]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items()}
    for number, group in enumerate(optimizer.param_groups):
        entries |= {f"{number}/{key}": value for key, value in group.items() if key not in (*optimizer.defaults, *OWN)}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in entries.items() if name not in tensors}


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """Inverts `optimizer_state`. torch's own loading then places each entry on its parameter's device.

    Args:
        names: names of the parameters, which may be sharded.
        tensors: whole tensors.
    """
    position = {names[p]: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = {name: p for p, name in names.items()}
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for entry in (*tensors, *rest):
        name, key = entry.rsplit("/", 1)
        if name.isdigit():
            groups[int(name)][key] = tensors[entry].clone() if entry in tensors else rest[entry]
            continue
        # copied, because safetensors maps the file, whose space could not be freed during the run
        value = shard_like(parameters[name], tensors[entry]) if entry in tensors else rest[entry]
        state.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
