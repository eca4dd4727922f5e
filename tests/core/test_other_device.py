"""Every part and every task on a device that is not the CPU and has no float64: see `other_device`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import load_recipe, reset_accelerate
from other_device import on_accelerate
from probe_data import write_digits
from test_contract import CASES, VARIANTS, model_of

from mmm import Mask, MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.config.cli import main as run_main
from mmm.contract import draw
from mmm.core.rng import sample_keys
from mmm.maskers import maskers
from mmm.pools import pools
from tasks.__main__ import main

Build = Callable[..., MaskedModel]


@pytest.fixture
def device() -> Iterator[torch.device]:
    with on_accelerate() as device:
        yield device
    reset_accelerate()


def step(model: MaskedModel, x: torch.Tensor, mask: Mask) -> list[float]:
    """Losses before and after an update, and the norm of its gradient."""
    before = model(x, mask=mask).loss
    before.backward()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    torch.optim.AdamW(weights, lr=1e-2, fused=True).step()
    with torch.no_grad():
        return [before.item(), norm.item(), model(x, mask=mask).loss.item()]


def check(make: Callable[[], MaskedModel], device: torch.device) -> None:
    """An update, an encoding and a picture come out on the device as they do on the CPU; the masker is never moved."""
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(0)
    other = make().to(device)
    x, mask = draw(model)
    keys = sample_keys(0, 0, torch.arange(len(x)))
    drawn = other.draw_masks(x.to(device), keys.to(device), masker=maskers.build(model.masker.config))
    assert torch.equal(drawn.visible.cpu(), mask.visible)
    assert step(other, x.to(device), drawn) == pytest.approx(step(model, x, mask), rel=1e-4)
    with torch.no_grad():
        assert (other.encode(x.to(device)).last.cpu() - model.encode(x).last).abs().max() < 1e-3
        shown = other.target.show(other(x.to(device)).prediction, other.tokenizer.split(x.to(device)), drawn)
    assert shown is None or shown.device == device


@pytest.mark.parametrize(("kind", "name", "medium"), CASES)
def test_every_part_trains_there_as_on_the_cpu(kind: str, name: str, medium: str, device: torch.device) -> None:
    check(lambda: model_of(kind, name, medium), device)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_trains_there_as_on_the_cpu(variant: str, build: Build, device: torch.device) -> None:
    check(lambda: build(size=(12, 16), **VARIANTS[variant]), device)


@pytest.mark.parametrize("name", list(pools.parts))
def test_every_pool_trains_there(name: str, build: Build, device: torch.device) -> None:
    classifier = Classifier.of(build(), classes=3, pool=pools[name].Config(), head=HeadConfig(norm="batch"), frozen=True).to(device)
    classifier(torch.randn(4, 3, 24, 16).to(device)).square().sum().backward()  # not the home grid
    assert all(weight.grad.device == device for weight in classifier.head.parameters())


def test_positions_of_another_grid_are_made_there(build: Build, device: torch.device) -> None:
    for resize in ("interpolate", "antialias", "recompute"):
        encoder = build().encoder.config
        model = build(encoder=type(encoder)(width=24, depth=1, heads=2, resize_positions=resize)).to(device)
        assert model(torch.randn(2, 3, 20, 24).to(device)).loss.isfinite()


def test_every_task_runs_there(tmp_path: Path, device: torch.device) -> None:
    folder, run, recipe = write_digits(tmp_path / "digits"), tmp_path / "run", load_recipe("image_mae")
    data = f"--data.source {folder} --data.image_size 8 --data.channels 1 --data.mean 0.3 --data.std 0.4 --data.eval_split test"
    data += " --data.workers 0 --data.flip 0"
    parts = "--masker.name block --masker.predict 0.25 --tokenizer.size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2"
    parts += " --decoder.name cross_attention --decoder.width 16 --decoder.depth 2 --decoder.heads 2 --decoder.fusion linear"
    train = "--train.steps 2 --train.batch_size 8 --train.micro_batch_size 4 --train.log_every 1"
    looks = "--train.evaluate_every 2 --train.ema 0.9 --evaluate masked_loss knn few_shot reconstruction"
    few = "--evaluate.masked_loss.samples 16 --evaluate.few_shot.steps 2 --evaluate.few_shot.labels_per_class 4"
    argv = f"{data} {parts} {train} {looks} {few} --folder {run}".split()
    found = run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=argv)
    assert {"held_out_loss", "knn_top1", "few_shot", "reconstruction"} <= set(found)

    for task in (
        "knn --labels_per_class 4",
        "reconstruct",
        "attention",
        "retrieve",
        f"extract --out {tmp_path / 'all.safetensors'}",
    ):
        name, *flags = task.split()
        assert main([name, str(run), *flags]) == 0
    tuned = f"--model {run} {data} {train.replace('micro_batch_size 4', 'micro_batch_size 8')}"
    for task in ("finetune", "linear_probe --methods trained exact", "attentive_probe"):
        assert main([*task.split(), *tuned.split(), "--folder", str(tmp_path / task.split()[0])]) == 0
