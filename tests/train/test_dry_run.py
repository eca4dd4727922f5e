"""The numbers of a dry run are compared with numbers calculated by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.memory import dry_run as module
from mmm.train.memory.batch_size_finder import Trial
from mmm.train.memory.dry_run import count_flops, count_parameters, dry_run, measure_micro_step
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import make_plan
from mmm.train.state import Training

CONFIG = TrainConfig(batch_size=32, micro_batch_size=16, learning_rate=0.1, epochs=2, precision="fp32", threads=1)


def loss_of(model, batch, step):
    return model(batch).square().mean()


@pytest.fixture
def training():
    before = torch.get_num_threads()
    model = nn.Sequential(nn.Linear(100, 300), nn.GELU(), nn.Linear(300, 7))
    model[0].bias.requires_grad_(False)
    yield Training.prepare(start(CONFIG), model, make_optimizer(model, CONFIG), identity={})
    torch.set_num_threads(before)


def test_counts(training):
    forward = 2 * (100 * 300 + 300 * 7)
    # backward: gradients of both weights, and of the second layer's input
    assert count_flops(training.unwrapped, torch.randn(1, 100), loss_of) == (forward, forward * 2 + 2 * 300 * 7)
    assert count_parameters(training.unwrapped) == (100 * 300 + 300 + 300 * 7 + 7, 100 * 300 + 300 * 7 + 7)


def test_table(training):
    plan = make_plan(CONFIG, samples=80, processes=1)
    before = {name: value.clone() for name, value in training.unwrapped.state_dict().items()}
    text = dry_run(
        training, Trial(lambda n: torch.randn(n, 100), loss_of), plan=plan, tokens={"seen": 49, "predicted": 147}, notes={}
    )
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["parameters"] == "32,407 (32,107 trainable)"
    assert rows["tokens seen"] == "49"
    assert rows["steps"] == "5"
    assert rows["epochs"] == "2 of 80 samples"
    assert rows["batch"].startswith("32 samples = 1 x 16 x 2")
    assert rows["peak learning rate"] == "0.0125"
    assert rows["micro-step on this cpu"].startswith("16 samples: ")  # the whole micro-batch, which takes little time
    assert "GiB" in rows["micro-step on this cpu"]
    assert all(torch.equal(value, before[name]) for name, value in training.unwrapped.state_dict().items())
    assert all(parameter.grad is None for parameter in training.unwrapped.parameters())


def test_memory_of_a_micro_step(training):
    def hungry(model, batch, step):
        return (model(batch) * torch.ones(2**26).sum()).mean()  # 256 MiB for a moment

    assert measure_micro_step(training, Trial(lambda n: torch.randn(n, 100), hungry), 2).memory > 2**27


def test_of_a_slow_step_few_samples_are_measured(training, monkeypatch):
    monkeypatch.setattr(module, "CPU_SECONDS", 0.0)
    assert measure_micro_step(training, Trial(lambda n: torch.randn(n, 100), loss_of), 64).samples == 8


def test_where_memory_does_not_suffice_half_is_tried(training, monkeypatch):
    monkeypatch.setattr(module, "CPU_SAMPLES", 100)

    def greedy(model, batch, step):
        if len(batch) > 5:
            raise torch.OutOfMemoryError("too much")
        return loss_of(model, batch, step)

    assert measure_micro_step(training, Trial(lambda n: torch.randn(n, 100), greedy), 16).samples == 4
