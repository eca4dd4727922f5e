"""With every part, a resumed training equals an uninterrupted one bit for bit, and two processes give the results of one.

Run as a script, this file starts two processes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import reset_accelerate
from test_contract import ONLY, PARTS
from test_loop import CONFIG, ids
from test_sharding import content, fork, several
from torch import Tensor

from mmm import MaskedModel
from mmm.contract import SIZES, small_config, small_model
from mmm.core.rng import sample_keys
from mmm.objectives.masked import MaskedObjective
from mmm.train.distributed.setup import start
from mmm.train.loop import fit
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import make_plan
from mmm.train.state import Training

SAMPLES, STEPS, STOP = 4, 3, 2
SETTINGS = replace(CONFIG, steps=STEPS, batch_size=SAMPLES, warmup_steps=1, ema=None, clip_norm=None, save_every=STEPS)
QUICK = {("decoder", "convolution"), ("target", "prototypes"), ("masker", "bernoulli")}  # noise, a centre, a schedule of keys


def model_of(kind: str, name: str) -> MaskedModel:
    torch.manual_seed(0)
    return small_model(SIZES[ONLY.get(name, "images")], {kind: small_config(kind, name)}).double()


def train(folder: Path, kind: str, name: str, *, until: int | None = None, resume: bool = False) -> None:
    # noise is drawn per micro-batch; targets may compute over a whole micro-batch, so they get all samples at once
    config = replace(SETTINGS, micro_batch_size=None if kind == "target" else SAMPLES // 2)
    accelerator = start(config)
    plan = make_plan(config, samples=SAMPLES, processes=accelerator.num_processes)
    model = model_of(kind, name)
    training = Training.prepare(accelerator, model, make_optimizer(model, config), identity={})
    whole: MaskedModel = training.unwrapped  # type: ignore[assignment]
    MaskedObjective.connect(training)
    assert model.data is not None
    x = torch.randn(STEPS, SAMPLES, 3, *model.data.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = plan.accumulation * accelerator.process_index
    parts = [slice(plan.micro_batch_size * part, plan.micro_batch_size * (part + 1)) for part in range(SAMPLES)]
    mine = parts[first : first + plan.accumulation]
    if resume:
        training.restore(folder / "checkpoints")

    def loss_of(model: torch.nn.Module, batch: tuple[Tensor, slice], step: int) -> Tensor:
        keys = sample_keys(0, step, torch.arange(SAMPLES))[batch[1]]
        return model(batch[0], mask=whole.draw_masks(batch[0], keys, step=step, steps=STEPS)).loss

    batches = iter([(step[part], part) for step in x[training.step :] for part in mine])
    for update in fit(training, batches, loss_of, config=config, plan=plan, seed=0, name_samples=ids):
        whole.target.update(whole, update.step, STEPS, update.made)
        if update.save or update.step == until:
            training.save(folder / "checkpoints", 2, needed=True)
        if update.step == until:
            break
    training.wait_for_checkpoint()


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*part, marks=() if part in QUICK else pytest.mark.slow, id="-".join(part)) for part in PARTS],
)
def test_every_part_goes_on_where_it_was_stopped(kind: str, name: str, tmp_path: Path) -> None:
    """The results are equal bit for bit, with the noise, masks, teachers and averages of each step."""
    train(tmp_path / "whole", kind, name)
    train(tmp_path / "stopped", kind, name, until=STOP)
    train(tmp_path / "stopped", kind, name, resume=True)
    reset_accelerate()
    whole, stopped = content(tmp_path / "whole", STEPS), content(tmp_path / "stopped", STEPS)
    assert whole.keys() == stopped.keys()
    assert [key for key, value in whole.items() if not torch.equal(value, stopped[key])] == []
    start, moved = model_of(kind, name), 0
    for key, weight in start.named_parameters():
        moved += weight.requires_grad and not torch.equal(weight.detach(), whole[f"model/{key}"])
    assert moved > 10


def all_parts(folder: Path) -> None:
    for kind, name in PARTS:
        train(folder / f"{kind}_{name}", kind, name)
    if os.environ.get("RANK", "0") == "0":
        print("done", flush=True)


@pytest.mark.slow
def test_every_part_does_on_two_processes_what_it_does_on_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    all_parts(tmp_path / "one")
    assert several(tmp_path / "two", 2, __file__).count("done") == 1
    reset_accelerate()
    for kind, name in PARTS:
        one, two = (content(tmp_path / count / f"{kind}_{name}", STEPS) for count in ("one", "two"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            message = f"{kind} {name}: {key}"
            torch.testing.assert_close(two[key], value, rtol=1e-7, atol=1e-8, msg=lambda text, at=message: f"{at}: {text}")


if __name__ == "__main__":
    fork(Path(sys.argv[1]), int(sys.argv[2]), all_parts)
