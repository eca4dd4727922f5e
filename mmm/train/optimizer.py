"""AdamW (Loshchilov and Hutter, ICLR 2019), its groups, and any optimizer's state under the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.types import UpdateScale
from mmm.train.config import TrainConfig
from mmm.train.distributed.fsdp import shard_like

# a classifier's parameters by layer, as timm's models say it of themselves; what is not named comes last, with the head
LAYERS = {"embedding": r"encoder\.(?:cls_token|mask_token|pos_embed|patch_embed)", "blocks": r"encoder\.blocks\.(\d+)"}
TOKENS = ("cls_token", "mask_token", "pos_embed")
UNDECAYED = ("encoder.cls_token", "encoder.pos_embed")  # MAE's main_finetune.py; vectors and biases are not decayed either


def make_optimizer(model: nn.Module, config: TrainConfig, *, layer_decay: float | None = None) -> torch.optim.Optimizer:
    """Fused AdamW over the parameters that train; vectors and biases are not decayed.

    Class tokens, mask tokens and learned positions are decayed where `train.decay_tokens` says so, as in MAE: they have three
    dimensions, and its rule (timm's) spares only one. With `layer_decay`, for fine-tuning a classifier, they are not: see
    `layer_groups`.
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
    # rate and decay are set before every step; fused is one kernel on every device, the CPU's too
    return torch.optim.AdamW(scale_groups(model, groups), lr=config.learning_rate, betas=config.betas, fused=True)


def layer_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """The groups of a classifier, each with the `lr_scale` of its layer (Clark et al., "ELECTRA", ICLR 2020; BEiT, MAE).

    Of L blocks, layer i learns at layer_decay^(L + 1 - i) of the rate: 0 is the embedding with its positions and tokens, 1 to L
    are the blocks, and L + 1 is all the rest. The class token and the positions are not decayed.
    """
    from timm.optim import param_groups_layer_decay

    return param_groups_layer_decay(_Layered(model), weight_decay, UNDECAYED, layer_decay=layer_decay)  # type: ignore[arg-type]


def scale_groups(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same groups, split where modules bear an `update_scale` (`mmm.core.types.UpdateScale`) of their own."""
    scales: dict[nn.Parameter, tuple[float, float]] = {}
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

    def group_matcher(self, coarse: bool) -> dict[str, str]:
        return LAYERS


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits the state into what safetensors and what JSON can hold, under "parameter/entry".

    The groups' settings are not in it: they follow from the config, which a resume compares.

    Args:
        names: of the parameters.
    """
    entries = {f"{names[p]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items()}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in entries.items() if name not in tensors}


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """The inverse of `optimizer_state`; torch's own loading then places each entry on its parameter's device.

    Args:
        names: of the parameters, which may be sharded.
        tensors: whole.
    """
    position = {names[p]: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = {name: p for p, name in names.items()}
    state: dict[int, dict[str, Any]] = {}
    for entry in (*tensors, *rest):
        name, key = entry.rsplit("/", 1)
        # copied, for safetensors maps the file: it could not be freed while the run lives
        value = shard_like(parameters[name], tensors[entry]) if entry in tensors else rest[entry]
        state.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
