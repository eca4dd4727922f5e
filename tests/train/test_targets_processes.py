"""On two processes, targets that learn give the results of one, with DDP, sharding and several masks a sample, and resume exactly.

Run as a script, this file starts two processes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import CONFIG, ids
from test_sharding import content, fork, several
from torch import Tensor

from mmm import Input, Mask, MaskedModel, ModelConfig
from mmm.core.rng import sample_keys
from mmm.data import ImagesConfig, register_source
from mmm.decoders import CrossAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.objectives.masked import DataStream, MaskedObjective, initialise
from mmm.targets import ClusterTarget, CodeTarget, LatentTarget, PairTarget, PrototypeTarget, TargetConfig
from mmm.tokenizers import Patches
from mmm.train.distributed.setup import start
from mmm.train.loop import fit
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import make_plan
from mmm.train.state import Training

SAMPLES, STEPS = 8, 3
SETTINGS = replace(CONFIG, steps=STEPS, batch_size=SAMPLES, micro_batch_size=None, ema=None, clip_norm=None, save_every=STEPS)
TARGETS: dict[str, TargetConfig] = {
    "latent": LatentTarget.Config(decay=0.8, decay_end=0.9),
    "clusters": ClusterTarget.Config(clusters=6, decay=0.8),
    "prototypes": PrototypeTarget.Config(prototypes=6, hidden=8, bottleneck=4, decay=0.8),
    "pair": PairTarget.Config(
        first=CodeTarget.Config(codes=6, samples=8), second=LatentTarget.Config(decay=0.8, blocks=(1, 2), join=True)
    ),
}


def model_of(target: TargetConfig) -> MaskedModel:
    parts = ModelConfig(
        tokenizer=Patches.Config(size=4),
        masker=RandomMasker.Config(),
        encoder=VisionTransformer.Config(width=12, depth=2, heads=2),
        decoder=CrossAttentionDecoder.Config(width=8, depth=2, heads=2),
        target=target,
    )
    return MaskedModel.build(parts, Input(size=(8, 12)), seed=0).double()


def masks(step: int) -> Mask:
    """Returns two masks of each sample, with different ratios."""
    keys = sample_keys(0, step, torch.arange(SAMPLES))
    first, second = (RandomMasker(RandomMasker.Config(ratio=ratio)) for ratio in (0.5, 0.67))
    return replace(first(keys, (2, 3)), also=(second(keys + 1, (2, 3)),))


def part_of(mask: Mask, rows: slice) -> Mask:
    return Mask(mask.visible[rows], mask.predict[rows], also=tuple(part_of(one, rows) for one in mask.also))


def own_samples() -> DataStream:
    """Opens images that differ between processes. A vocabulary made of them must be that of the first process."""
    images = np.random.default_rng(int(os.environ.get("RANK", "0"))).integers(0, 256, (SAMPLES, 8, 12, 3), dtype=np.uint8)
    register_source("own", {"train": images})
    config = ImagesConfig(source="registered:own", image_size=(8, 12), workers=0, holdout=0.0)
    return DataStream.open("", config, RandomMasker.Config())


def train(folder: Path, name: str, sharded: bool = False, until: int | None = None, resume: bool = False) -> None:
    accelerator = start(SETTINGS)
    plan = make_plan(SETTINGS, samples=SAMPLES, processes=accelerator.num_processes)
    model = model_of(TARGETS[name])
    initialise(model, None, own_samples(), accelerator.device)
    training = Training.prepare(accelerator, model, make_optimizer(model, SETTINGS), identity={}, sharded=sharded)
    MaskedObjective.connect(training)
    x = torch.randn(STEPS, SAMPLES, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = plan.micro_batch_size
    mine = slice(share * accelerator.process_index, share * (accelerator.process_index + 1))

    def loss_of(model: torch.nn.Module, batch: Tensor, step: int) -> Tensor:
        return model(batch, part_of(masks(step), mine)).loss

    if resume:
        training.restore(folder / "checkpoints")
    batches = iter([step[mine] for step in x[training.step :]])
    for update in fit(training, batches, loss_of, config=SETTINGS, plan=plan, seed=0, name_samples=ids):
        training.unwrapped.target.update(training.unwrapped, update.step, STEPS, update.made)
        if update.save or update.step == until:
            training.save(folder / "checkpoints", 2, needed=True)
        if update.step == until:
            break
    training.wait_for_checkpoint()


def both(folder: Path) -> None:
    for name in TARGETS:
        train(folder / f"{name}_ddp", name)
        train(folder / f"{name}_sharded", name, sharded=True)
    for kind in ("ddp", "sharded"):
        for stop in ({"until": 2}, {"resume": True}):
            train(folder / f"latent_{kind}_stopped", "latent", sharded=kind == "sharded", **stop)
    if os.environ["RANK"] == "0":
        print("done", flush=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in TARGETS:
        train(folder / f"{name}_one", name)
    assert several(folder, 2, __file__).count("done") == 1
    return folder


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_two_processes_do_what_one_does(runs: Path, name: str, kind: str) -> None:
    one, two = content(runs / f"{name}_one", STEPS), content(runs / f"{name}_{kind}", STEPS)
    assert one.keys() == two.keys()
    for key, value in one.items():  # a key's bias has a gradient of 0, whose rounding Adam divides by 1e-8: 6e-12 was seen
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    start = model_of(TARGETS[name]).state_dict()
    held = {key: value for key, value in start.items() if key.startswith("target.")}
    assert any(not torch.equal(value, one[f"model/{key}"]) for key, value in held.items())


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_a_teacher_goes_on_where_it_was_stopped(runs: Path, kind: str) -> None:
    """On two processes, the resumed run equals an uninterrupted one bit for bit."""
    whole, stopped = content(runs / f"latent_{kind}", STEPS), content(runs / f"latent_{kind}_stopped", STEPS)
    assert whole.keys() == stopped.keys()
    assert [key for key, value in whole.items() if not torch.equal(value, stopped[key])] == []


if __name__ == "__main__":
    import sys

    fork(Path(sys.argv[1]), int(sys.argv[2]), both)
