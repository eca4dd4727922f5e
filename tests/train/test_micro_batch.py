"""The search for a micro-batch that fits chooses the right size, has no side effects, and is not repeated by a resume."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.memory import batch_size_finder as module
from mmm.train.memory.batch_size_finder import Trial, can_compute, find_micro_batch_size, first_that_fits, state_bytes
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import make_plan, sizes
from mmm.train.state import Training

CONFIG = TrainConfig(batch_size=24, learning_rate=0.1, steps=1, precision="fp32", threads=1)
PLAN = make_plan(CONFIG, samples=24, processes=1)
WIDE = 1 << 14


class Model(nn.Module):
    """Keeps WIDE numbers per sample for its backward pass, and has running statistics, which each forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, WIDE), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.layer(self.norm(x))).square().mean()


@pytest.fixture
def training():
    before = torch.get_num_threads()
    model = Model()
    yield Training.prepare(start(CONFIG), model, make_optimizer(model, CONFIG), identity={})
    torch.set_num_threads(before)


def trial(limit: int = 10**9, tried: list[int] | None = None) -> Trial:
    """Returns a trial that runs out of memory above `limit` samples."""

    def make_batch(samples: int):
        if tried is not None:
            tried.append(samples)
        return torch.randn(samples, 4)

    def loss_of(model, batch, step):
        loss = model(batch)
        if len(batch) > limit:
            raise torch.OutOfMemoryError("too much")
        return loss

    return Trial(make_batch, loss_of)


@pytest.mark.parametrize(
    ("share", "unit", "limit", "found", "tried"),
    [
        (64, 1, 64, 64, [64]),
        (64, 1, 20, 16, [64, 32, 16]),
        (24, 1, 9, 6, [24, 12, 6]),
        (45, 1, 14, 5, [45, 15, 5]),
        (24, 4, 5, 4, [24, 12, 4]),
        (7, 1, 3, 1, [7, 1]),
    ],
)
def test_the_first_that_fits_is_taken(share, unit, limit, found, tried):
    asked = []
    assert first_that_fits(sizes(share, unit), lambda size: asked.append(size) or size <= limit) == asked[-1]
    assert asked == tried


def test_where_nothing_fits_the_error_says_what_to_do():
    with pytest.raises(ValueError, match=r"a micro-batch of 4 samples, the smallest there is.*train\.checkpoint_blocks"):
        first_that_fits(sizes(24, 4), lambda size: False)


def as_on_a_gpu(training, trials):
    return lambda size: can_compute(training, trials, size, lambda: torch.empty(state_bytes(training), dtype=torch.uint8))


def test_trials_decide_and_leave_no_trace(training, monkeypatch):
    monkeypatch.setattr(module, "fits_when_counted", as_on_a_gpu)
    before = {name: value.clone() for name, value in training.unwrapped.state_dict().items()}
    random, asked = torch.get_rng_state(), []
    plan = find_micro_batch_size(training, PLAN, [trial(7), trial(9, asked)])
    assert (plan.micro_batch_size, plan.accumulation, plan.batch_size) == (6, 4, 24)
    assert asked == [6]  # larger sizes did not fit for the first kind of batch
    assert all(torch.equal(value, before[name]) for name, value in training.unwrapped.state_dict().items())
    assert all(weight.grad is None for weight in training.unwrapped.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not training.optimizer.state


def test_an_error_that_is_no_lack_of_memory_is_seen(training, monkeypatch):
    monkeypatch.setattr(module, "fits_when_counted", as_on_a_gpu)

    def wrong(model, batch, step):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        find_micro_batch_size(training, PLAN, [Trial(lambda samples: None, wrong)])


@pytest.mark.parametrize(("samples", "found"), [(25, 24), (23, 12), (11, 6), (1.5, 1)])
def test_on_a_cpu_what_a_step_keeps_is_compared_with_what_is_free(training, monkeypatch, samples, found):
    """The dropout's mask, its result and the square keep about 3 x WIDE floats of a sample."""
    sample = module._saved_bytes(training, trial(), 2) / 2
    assert 2 * WIDE * 4 < sample < 4 * WIDE * 4
    weights = sum(weight.nbytes for weight in training.unwrapped.parameters())
    free = (module.PASSING * sample * samples + 3 * weights) / module.SHARE
    monkeypatch.setattr(module, "free_memory", lambda: int(free))
    assert find_micro_batch_size(training, PLAN, [trial()]).micro_batch_size == found


def test_all_processes_take_the_least(training, monkeypatch):
    import accelerate.utils

    monkeypatch.setattr(module, "fits_when_counted", lambda training, trials: lambda size: True)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda found: [*found, len(answers) and answers.pop(0)])
    answers = [False, True]
    assert find_micro_batch_size(training, PLAN, []).micro_batch_size == 12


def test_what_was_found_is_kept_for_a_resume_on_the_same_machine(training, tmp_path, monkeypatch):
    rule = {"limit": 12}
    monkeypatch.setattr(module, "fits_when_counted", lambda training, trials: lambda size: size <= rule["limit"])
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 12
    rule["limit"] = 3
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 12
    kept = json.loads((tmp_path / module.FILE).read_text())
    (tmp_path / module.FILE).write_text(json.dumps(kept | {"for": kept["for"] | {"device": "another"}}))
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 3
    rule["limit"] = 1
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 3
    training.identity["train.steps"] = 9  # the memory does not depend on it
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 3
    training.identity["data.image_size"] = [64, 64]  # another run in the same folder, whose first start died early
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 1
    rule["limit"] = 6
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path, checkpointed=True).micro_batch_size == 6
    training.unwrapped.more = nn.Parameter(torch.zeros(1))
    rule["limit"] = 3
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path, checkpointed=True).micro_batch_size == 3
    (tmp_path / module.FILE).write_text("{torn")
    assert find_micro_batch_size(training, PLAN, [], folder=tmp_path).micro_batch_size == 3


def test_the_optimizers_state_is_counted_until_it_is_there(training):
    weights = sum(weight.nbytes for weight in training.unwrapped.parameters())
    assert state_bytes(training) == 2 * weights
    training.unwrapped(torch.randn(4, 4)).backward()
    training.optimizer.step()
    assert state_bytes(training) == 0
