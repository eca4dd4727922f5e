"""Runs every part and every task on a device that is not the CPU and has no float64: see `other_device`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, load_recipe, reset_accelerate
from other_device import on_accelerate
from probe_data import write_digits
from test_contract import CASES, VARIANTS, model_of
from test_depth_and_propagation import davis, few_scenes  # noqa: F401
from test_detector import DETECTOR, write_coco
from test_detector import small as small_detection
from test_segment_data import write_pair
from test_segmenter import HEADS
from test_segmenter import small as small_segmentation

from mmm import Input, Mask, MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.config.cli import main as run_main
from mmm.contract import draw, small_model
from mmm.core.registry import REGISTRIES
from mmm.core.rng import sample_keys
from mmm.data.annotated.detection import open_objects
from mmm.data.loading.loader import train_batches
from mmm.dense.detector import Detr
from mmm.dense.heads import LinearHead
from mmm.dense.segmenter import Segmenter
from mmm.maskers import maskers
from mmm.objectives.detect import DetectObjective, build_detector
from mmm.play.models import Models
from mmm.play.player import Player
from mmm.play.sample import builtin
from mmm.pools import pools
from tasks import depth, detect, segment
from tasks.__main__ import main

Build = Callable[..., MaskedModel]
DETECTORS = {"mask_rcnn": DETECTOR, "detr": Detr.Config(window=2, queries=4, width=16, depth=1, heads=2, hidden=32, detections=3)}


@pytest.fixture
def device() -> Iterator[torch.device]:
    with on_accelerate() as device:
        yield device
    reset_accelerate()


def step(model: MaskedModel, x: torch.Tensor, mask: Mask) -> list[float]:
    """Returns the losses before and after an update, and the norm of its gradient."""
    before = model(x, mask=mask).loss
    before.backward()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    torch.optim.AdamW(weights, lr=1e-2, fused=True).step()
    with torch.no_grad():
        return [before.item(), norm.item(), model(x, mask=mask).loss.item()]


def check(make: Callable[[], MaskedModel], device: torch.device) -> None:
    """Asserts that an update, features and an image are equal on the device and on the CPU; the masker is never moved."""
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
    classifier(torch.randn(4, 3, 24, 16).to(device)).square().sum().backward()  # another grid than the model was built for
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
        "evaluate --evaluate masked_loss health --evaluate.masked_loss.samples 16",
    ):
        name, *flags = task.split()
        assert main([name, str(run), *flags]) == 0, task
    tuned = f"--model {run} {data} {train.replace('micro_batch_size 4', 'micro_batch_size 8')}"
    for task in ("finetune", "linear_probe --methods trained exact", "attentive_probe"):
        assert main([*task.split(), *tuned.split(), "--folder", str(tmp_path / task.split()[0])]) == 0
    assert main(["predict", str(tmp_path / "finetune"), str(folder / "test")]) == 0


@pytest.mark.usefixtures("few_scenes")
def test_every_dense_task_runs_there(build: Build, tmp_path: Path, device: torch.device) -> None:
    model = build((24, 32))
    model.data = Input(size=(24, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    model.save_pretrained(tmp_path / "model")
    for number in range(6):
        labels = np.random.default_rng(number).integers(0, 3, (3, 4)).repeat(8, 0).repeat(8, 1)
        write_pair(tmp_path / "pairs", f"{number}", labels, split="training" if number < 4 else "validation")
    masks = small_segmentation(tmp_path / "pairs", tmp_path / "segment")
    assert 0 <= segment.run(replace(masks, train=replace(masks.train, steps=1, save_every=1)))["miou"] <= 1
    frozen = replace(masks, model=str(tmp_path / "model"), frozen=True, relative_bias=False, head=LinearHead.Config(), knn=True)
    segment.run(replace(frozen, folder=str(tmp_path / "frozen"), train=replace(masks.train, steps=1, save_every=1)))
    objects = small_detection(write_coco(tmp_path), tmp_path / "detect")
    assert detect.run(replace(objects, train=replace(objects.train, steps=1)))["samples"] == 3
    demo = load_recipe("depth").PRESETS["demo"]
    train = replace(demo.train, steps=1, batch_size=2, warmup_steps=None)
    depths = replace(
        demo, train=train, model=str(tmp_path / "model"), data=replace(demo.data, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    )
    depth.run(replace(depths, folder=str(tmp_path / "depth"), test_split="validation"))
    for name, source in (("segment", tmp_path / "pairs" / "images" / "validation"), ("detect", tmp_path / "val")):
        assert main(["predict", str(tmp_path / name), str(source), "--masks", str(tmp_path / "masks")]) == 0
    (davis(tmp_path / "davis") / "JPEGImages" / "480p" / "camel" / "00000.png").unlink()
    images = ["--source", str(tmp_path / "train"), "--samples", "4", "--batch_size", "4", "--workers", "0"]
    assert main(["inspect", str(tmp_path / "model"), *images, "--out", str(tmp_path / "inside")]) == 0
    assert main(["propagate", str(tmp_path / "model"), "--source", str(tmp_path / "davis"), "--side", "32"]) == 0


@pytest.mark.parametrize("name", list(REGISTRIES["dense_head"].parts))
def test_every_dense_head_trains_there(name: str, build: Build, device: torch.device) -> None:
    model = build((24, 32))
    segmenter = Segmenter.build(model.tokenizer, model.encoder, HEADS[name], classes=3, relative_bias=True).to(device)
    sum(logits.square().sum() for logits in segmenter(torch.randn(2, 3, 24, 32).to(device))).backward()
    assert all(weight.grad.device == device for weight in segmenter.head.parameters())


@pytest.mark.parametrize("name", list(REGISTRIES["detector"].parts))
def test_every_detector_trains_there(name: str, tmp_path: Path, device: torch.device) -> None:
    config = small_detection(write_coco(tmp_path), tmp_path / "run", detector=DETECTORS[name])
    detector = build_detector(config, None, 2, None).to(device)
    batch = next(train_batches(open_objects(config.data, "train"), config.data, seed=0, batch_size=4, steps=1))
    loss = DetectObjective(config.data, device).loss(detector, batch, 0)
    loss.backward()
    assert loss.device == device
    assert loss.isfinite()
    found = detector.eval()(torch.rand(1, 3, 32, 32).to(device))
    assert all(value.device == device for value in found[0].values())


def test_the_answers_of_the_page_are_computed_there(tmp_path: Path, device: torch.device) -> None:
    for name in ("random", "attention"):
        small_model((32, 32), {"masker": maskers[name].Config()}).save_pretrained(tmp_path / name)
        player = Player(Models([str(tmp_path / name)], device=device))
        player.open("me", builtin("chelsea"), name)
        player.draw("me", name, name, 0.5, 0, {})
        player.show("me", [name])
        player.look("me", name, 1, None)


def test_no_task_is_left_out() -> None:
    """A new task must be tested above, or must not compute on a model's device."""
    trained = {"pretrain", "finetune", "linear_probe", "attentive_probe", "segment", "detect", "depth"}
    read = {"knn", "reconstruct", "attention", "retrieve", "extract", "evaluate", "inspect", "predict", "propagate", "play"}
    idle = {"check", "compare", "export", "launch", "prepare_video", "push", "report", "runs", "scan", "stats"}
    assert trained | read | idle == {path.stem for path in (REPOSITORY / "tasks").glob("[!_]*.py")}
