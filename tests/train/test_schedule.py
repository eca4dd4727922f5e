"""Values derived from a TrainConfig: steps, micro-batches, learning rate, parameter groups, identity."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmm.config.diff import differences, flatten
from mmm.core.types import UpdateScale
from mmm.train.config import TrainConfig, identity
from mmm.train.ema import EMA
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import due, learning_rate, make_plan, set_learning_rate, set_weight_decay, split_batch, weight_decay


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "learning_rate": 1e-3, "steps": 10, **changes})


# MAE: warm-up of 40 of 800 epochs from exactly 0, then half a cosine to the end; values calculated by hand
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (20, 1.2e-3),
        (40, 2.4e-3),
        (230, 2.4e-3 * (2 + 2**0.5) / 4),
        (420, 1.2e-3),
        (610, 2.4e-3 * (2 - 2**0.5) / 4),
        (800, 0.0),
    ],
)
def test_learning_rate_follows_the_table(step, expected):
    assert learning_rate(step, 800, 2.4e-3, 40.0, 0.0) == pytest.approx(expected, abs=1e-15)


def test_learning_rate_ends_at_its_final_value_and_may_start_at_the_peak():
    assert learning_rate(0, 10, 1.0, 0.0, 0.1) == 1.0
    assert learning_rate(10, 10, 1.0, 2.0, 0.1) == pytest.approx(0.1)


def test_a_line_and_steps_follow_the_rise():
    """BEiT's segmentation decreases the learning rate linearly to 0; ViTDet divides it by ten twice."""
    line = make_plan(config(schedule="linear", warmup_steps=2, scale_learning_rate=None), samples=80, processes=1)
    assert [line.learning_rate(step) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.0, 5e-4, 1e-3, 5e-4, 1.25e-4])
    steps = make_plan(config(schedule="steps", steps=1000, warmup_steps=250, scale_learning_rate=None), samples=80, processes=1)
    found = [steps.learning_rate(step) for step in (125, 250, 888, 889, 962, 963, 999)]
    assert found == pytest.approx([5e-4, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_the_rise_may_begin_above_0():
    """I-JEPA's learning rate rises from 2e-4 to 1e-3."""
    plan = make_plan(config(warmup_steps=4, warmup_start=0.2, scale_learning_rate=None), samples=80, processes=1)
    assert [plan.learning_rate(step) for step in (0, 2, 4)] == pytest.approx([2e-4, 6e-4, 1e-3])
    with pytest.raises(ValueError, match=r"train\.warmup_start 2"):
        config(warmup_start=2)


def test_learning_rate_of_a_group_is_scaled():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr_scale": 0.25}, {"params": weights[1:]}], lr=1.0)
    set_learning_rate(optimizer, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4]


def test_plan_of_the_paper():
    paper = config(batch_size=4096, micro_batch_size=64, learning_rate=1.5e-4, steps=None, epochs=800)
    plan = make_plan(paper, samples=1_281_167, processes=8)
    assert (plan.steps, plan.accumulation, plan.peak) == (250_228, 8, pytest.approx(2.4e-3))
    assert plan.epoch(plan.steps) == pytest.approx(800, abs=0.004)


@pytest.mark.parametrize("epochs", [800, 1600])
def test_warm_up_of_forty_epochs_is_forty_epochs_at_any_length(epochs):
    paper = config(batch_size=4096, learning_rate=1.5e-4, steps=None, epochs=epochs, warmup_epochs=40)
    plan = make_plan(paper, samples=1_281_167, processes=1)
    assert plan.epoch(plan.warmup) == pytest.approx(40)
    highest = max(range(plan.steps), key=plan.learning_rate)
    assert plan.epoch(highest) == pytest.approx(40, abs=0.01)
    assert make_plan(config(warmup_epochs=40, warmup_steps=3), samples=8, processes=1).warmup == 3


def test_a_final_learning_rate_is_scaled_like_the_peak():
    small, large = (make_plan(config(batch_size=size, final_learning_rate=0.1), samples=8, processes=1) for size in (8, 64))
    assert (large.peak / small.peak, large.final / small.final) == (8, 8)
    assert large.learning_rate(large.steps) == pytest.approx(0.1 * large.peak)


def test_a_warm_up_longer_than_the_run_is_said(caplog):
    plan = make_plan(config(warmup_steps=20), samples=8, processes=1)
    assert "rises over 20 updates and the run has 10" in caplog.text
    assert plan.learning_rate(5) == pytest.approx(plan.peak / 4)


@pytest.mark.parametrize(("epochs", "samples", "steps"), [(1, 8, 1), (1, 9, 2), (0.1, 240, 3), (3, 4, 2)])
def test_part_of_an_update_is_one_more(epochs, samples, steps):
    assert make_plan(config(steps=None, epochs=epochs), samples=samples, processes=1).steps == steps


def test_unscaled_learning_rate():
    assert make_plan(config(scale_learning_rate=None), samples=8, processes=1).peak == 1e-3


def test_micro_batches_follow_from_the_processes():
    assert split_batch(config(), 2) == (4, 1)
    assert split_batch(config(micro_batch_size=2), 2) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"batch_size": 10}, 4, ("train.batch_size 10", "4 processes", "8 or 12")),
        ({"batch_size": 10, "micro_batch_size": 4}, 1, ("train.batch_size 10", "train.micro_batch_size 4", "8 or 12")),
        ({"batch_size": 2}, 4, ("train.batch_size 2", "use 4,")),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(changes, processes, words):
    with pytest.raises(ValueError, match=r"train\.batch_size") as error:
        make_plan(config(**changes), samples=100, processes=processes)
    assert all(word in str(error.value) for word in words)


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"train\.steps or train\.epochs"):
        make_plan(config(steps=None), samples=100, processes=1)


OUTSIDE = {"steps": 0, "batch_size": -1, "ema": 1.0, "clip_norm": 0.0, "learning_rate": -1.0, "weight_decay": -1.0}
OUTSIDE |= {"betas": (0.9, 1.0), "final_learning_rate": 1.1, "warmup_epochs": -1.0}


@pytest.mark.parametrize("changes", [{name: value} for name, value in OUTSIDE.items()])
def test_values_outside_their_range_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"train\.{name}"):
        config(**changes)


def test_due():
    assert [step for step in range(1, 8) if due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if due(step, None, 7)] == [7]


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_groups_are_those_of_mae():
    model = Parts()
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, config(weight_decay=0.3, betas=(0.9, 0.95)))
    groups = {group["weight_decay"]: {names[p] for p in group["params"]} for group in optimizer.param_groups}
    assert groups == {0.0: {"proj.bias", "norm.weight", "norm.bias"}, 0.3: {"proj.weight", "cls_token"}}
    assert all(group["fused"] and group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


def test_ema_of_weights_and_of_a_teacher():
    live, teacher = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    average = EMA.of(live)
    with torch.no_grad():
        live.weight.fill_(2.0)
        live.num_batches_tracked.fill_(5)
    average.update(live, 0.75)
    EMA(teacher.state_dict()).update(live, 0.75)
    for state in (average.averages, teacher.state_dict()):
        assert state["weight"].tolist() == [1.25, 1.25]
        assert state["num_batches_tracked"] == 5
    with average.applied(live):
        assert live.weight.tolist() == [1.25, 1.25]
    assert live.weight.tolist() == [2.0, 2.0]


def test_identity_leaves_out_what_may_change_on_resume():
    tree = {"seed": 0, "train": {"batch_size": 8, "betas": (0.9, 0.95), "log_every": 5}, "data": {"workers": 2}}
    assert flatten(tree)["data.workers"] == 2
    before = identity(tree, runtime=["data.workers"])
    assert before == {"seed": 0, "train.batch_size": 8, "train.betas": [0.9, 0.95]}
    assert differences(before, before | {"train.batch_size": 16}) == ["train.batch_size was 8, is 16"]


# --- learning rates and weight decays of single parts ------------------------------------------------------------------------


class Marked(nn.Module):
    """Has a module inside a module, each with an update scale, and a module without one."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.outer = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.outer.update_scale = UpdateScale(rate=0.5)  # type: ignore
        self.outer[1].update_scale = UpdateScale(rate=0.5, decay=0.1)  # type: ignore


def rates_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


def test_a_module_names_its_own_rate_and_decay():
    model = Marked()
    optimizer = make_optimizer(model, config(weight_decay=0.2))
    set_learning_rate(optimizer, 0.4)
    expected = {
        "plain.bias": (0.4, 0.0),
        "plain.weight": (0.4, 0.2),
        "outer.0.bias": (0.2, 0.0),
        "outer.0.weight": (0.2, 0.2),
        "outer.1.bias": (0.1, 0.0),
        "outer.1.weight": (0.1, 0.2 * 0.1),
    }
    assert rates_of(model, optimizer) == {name: pytest.approx(both) for name, both in expected.items()}
    set_weight_decay(optimizer, 0.3)
    assert rates_of(model, optimizer) == {name: pytest.approx((rate, decay * 1.5)) for name, (rate, decay) in expected.items()}


def test_weight_decay_of_a_group_follows_its_schedule():
    """I-JEPA's weight decay rises from 0.04 to 0.4. A decay that begins at 0 still applies to matrices only."""
    assert [weight_decay(step, 10, 0.04, 0.4) for step in (0, 5, 10)] == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay(7, 10, 0.05, None) == 0.05
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, config(weight_decay=0.0, weight_decay_end=0.4))
    set_weight_decay(optimizer, weight_decay(10, 10, 0.0, 0.4))
    assert rates_of(model, optimizer) == {"bias": (1e-3, 0.0), "weight": (1e-3, 0.4)}
