"""Tests of optimizers chosen by name: bit-exact resume, gradients that are not finite, and a learning rate for each part."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_layer_decay import settings
from torch import nn

from mmm import MaskedModel
from mmm.train.config import TrainConfig
from mmm.train.loop import step_if_finite
from mmm.train.optimizer import load_optimizer, make_optimizer, optimizer_state
from mmm.train.schedule import set_learning_rate, set_weight_decay

FAMILIES = (
    *("adamw", "lion", "clion", "lamb", "lambc", "lars", "nlars", "muon", "nmuon", "adamuon", "nadamuon", "adan", "madgrad"),
    *("mars", "laprop", "adopt", "nadamw", "adafactorbv", "sgdw", "novograd"),
)


class Net(nn.Module):
    """Has the parts that optimizers treat differently: an encoder with a patch embedding, a decoder with a head, and a token."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"patch_embed": nn.Linear(6, 8), "blocks": nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8)])})
        self.decoder = nn.ModuleDict({"block": nn.Linear(8, 8), "head": nn.Linear(8, 5)})
        self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder["patch_embed"](x) + self.token[0]
        for block in self.encoder["blocks"]:
            hidden = hidden + torch.tanh(block(hidden))
        return self.decoder["head"](self.decoder["block"](hidden))


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**({"batch_size": 4, "steps": 6, "learning_rate": 0.01, "scale_learning_rate": None} | options))


def make(name: str) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    return net, make_optimizer(net, config(optimizer=name))


def train(net: Net, optimizer: torch.optim.Optimizer, first: int, last: int, *, spoil: int | None = None) -> None:
    """Makes updates with a changing learning rate and weight decay, as in a run. `spoil`: the step whose gradients are NaN."""
    for step in range(first, last):
        set_learning_rate(optimizer, 0.01 * (1 - step / 10))
        set_weight_decay(optimizer, 0.05 + step / 100)
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        norm = nn.utils.get_total_norm([weight.grad for weight in net.parameters()])
        if step == spoil:
            norm = norm * torch.nan
            for weight in net.parameters():
                weight.grad.fill_(torch.nan)
        step_if_finite(norm, optimizer, None)
        optimizer.zero_grad()


def names(net: nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in net.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_resume_repeats_every_bit(name: str) -> None:
    """The state is saved as in files: tensors by name, and the rest as JSON. Lamb and Adan count their steps in their groups."""
    whole, optimizer = make(name)
    start = {key: value.clone() for key, value in whole.state_dict().items()}
    train(whole, optimizer, 0, 6)
    assert not [key for key, value in whole.state_dict().items() if torch.equal(value, start[key])]
    half, optimizer = make(name)
    train(half, optimizer, 0, 3)
    tensors, rest = optimizer_state(optimizer, names(half))
    resumed, optimizer = make(name)
    resumed.load_state_dict(half.state_dict())
    load_optimizer(optimizer, names(resumed), tensors, json.loads(json.dumps(rest)))
    train(resumed, optimizer, 3, 6)
    assert same(whole, resumed)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gradient_that_is_not_finite_moves_nothing(name: str) -> None:
    """Neither weights nor state change: the next updates are those of a run without this gradient."""
    spoiled, optimizer = make(name)
    train(spoiled, optimizer, 0, 1)
    train(spoiled, optimizer, 5, 6, spoil=5)
    train(spoiled, optimizer, 1, 3)
    plain, optimizer = make(name)
    train(plain, optimizer, 0, 3)
    assert same(spoiled, plain)
    assert all(weight.isfinite().all() for weight in spoiled.parameters())


def test_adamw_is_torch_s_fused_one_with_the_bits_that_it_had() -> None:
    net, optimizer = make("adamw")
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    torch.manual_seed(0)
    other = Net()
    matrices = [weight for weight in other.parameters() if weight.ndim > 1]
    vectors = [weight for weight in other.parameters() if weight.ndim == 1]
    groups = [{"params": vectors, "weight_decay": 0.0, "decay_scale": 0.0}, {"params": matrices, "decay_scale": 1.0}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), fused=True)
    train(net, optimizer, 0, 4)
    train(other, theirs, 0, 4)
    assert same(net, other)


def test_muon_gets_the_matrices_inside_blocks() -> None:
    net, optimizer = make("muon")
    train(net, optimizer, 0, 1)
    found = {name for parameter, name in names(net).items() if optimizer.state[parameter]["use_muon"]}
    assert found == {"encoder.blocks.0.weight", "decoder.block.weight"}


@pytest.mark.parametrize("name", ["adamw", "lars", "lamb", "lion", "muon"])
def test_each_part_learns_at_its_own_rate(name: str, build: Callable[..., MaskedModel]) -> None:
    """The weight decay also follows its schedule, for all groupings of the optimizers, and vectors are not decayed."""
    model = build()
    optimizer = make_optimizer(model, config(optimizer=name, encoder_rate=0.5, embedding_rate=0.2, decoder_rate=3.0))
    scales = settings(model, optimizer.param_groups, "lr_scale")
    assert scales["encoder.patch_embed.proj.weight"] == pytest.approx(0.1)
    assert scales["encoder.blocks.0.attn.qkv.weight"] == scales["encoder.norm.bias"] == 0.5
    assert scales["decoder.head.weight"] == 3.0
    decays = settings(model, optimizer.param_groups, "weight_decay")
    assert decays["encoder.patch_embed.proj.weight"] == decays["decoder.head.weight"] == 0.05
    set_learning_rate(optimizer, 2.0)
    assert settings(model, optimizer.param_groups, "lr")["decoder.head.weight"] == 6.0
    set_weight_decay(optimizer, 0.4)
    decays = settings(model, optimizer.param_groups, "weight_decay")
    assert (decays["decoder.head.weight"], decays["encoder.blocks.0.attn.qkv.weight"], decays["encoder.norm.bias"]) == (0.4, 0.4, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lyon"}, r"train\.optimizer lyon is not an optimizer of timm.*lion"),
        ({"optimizer": "kron"}, r"kron cannot be resumed"),
        ({"optimizer": "adahessian"}, "adahessian cannot be resumed bit for bit, or needs more than gradients"),
        ({"optimizer": "lion", "momentum": 0.9}, r"train\.momentum 0\.9: train\.optimizer lion has no such option"),
        ({"optimizer": "adan", "betas": (0.9, 0.95)}, r"train\.betas \(0\.9, 0\.95\): train\.optimizer adan"),
        ({"momentum": 0.9}, r"train\.momentum 0\.9: adamw has no momentum"),
    ],
    ids=str,
)
def test_what_an_optimizer_does_not_have_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_optimizer(Net(), config(**options))


IMPOSSIBLE = [{"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"encoder_rate": 0.0}, {"decoder_rate": -1.0}]


@pytest.mark.parametrize("options", IMPOSSIBLE, ids=str)
def test_impossible_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(options))}"):
        config(**options)


def test_fsdp_shards_what_works_on_parts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name in ("muon", "lamb", "lars"):
        with pytest.raises(ValueError, match=rf"train\.optimizer {name} is not computed on parts of a matrix.*adamw or lion"):
            make_optimizer(Net(), config(optimizer=name))
    for name in ("adamw", "lion"):
        make_optimizer(Net(), config(optimizer=name))
