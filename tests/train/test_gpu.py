"""Tests of training on a GPU: the losses of the CPU in every precision, exact resume, compiled steps, DDP, FSDP2 and resizing.

pytest -n 0 -m gpu tests                          on a machine with a GPU
MMM_TEST_DEVICE=cpu pytest -n 0 -m gpu tests      a rehearsal on a CPU, which leaves out what only a GPU can do
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, reset_accelerate
from safetensors.torch import load_file
from test_contract import CASES, VARIANTS, model_of
from test_other_device import check

from mmm import MaskedModel
from mmm.contract import draw
from mmm.train.distributed.fsdp import gather, shard

pytestmark = pytest.mark.gpu
RunRecipe = Callable[..., dict[str, Any]]
REHEARSAL = os.environ.get("MMM_TEST_DEVICE") == "cpu"
FLAGS = ("--train.steps", "4", "--train.save_every", "2", "--train.threads", "1", "--train.warmup_steps", "1")


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """Returns the device under test, with matrix products in full fp32, so that they can be compared with the CPU's."""
    if not REHEARSAL and not torch.cuda.is_available():
        pytest.skip("no GPU here; MMM_TEST_DEVICE=cpu rehearses on the CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cpu" if REHEARSAL else "cuda")


@pytest.fixture
def needs_gpu(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("only a GPU can do this")


@contextmanager
def on_cpu() -> Iterator[None]:
    """Makes trainings inside of this context run on the CPU."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    reset_accelerate()
    try:
        yield
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
        reset_accelerate()


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")


def different(run: Path, other: Path) -> list[str]:
    """Returns the names of weights that are not equal bit for bit."""
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


@pytest.mark.parametrize(("kind", "name", "medium"), CASES)
def test_every_part_trains_as_on_the_cpu(kind: str, name: str, medium: str, device: torch.device) -> None:
    check(lambda: model_of(kind, name, medium), device)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_trains_as_on_the_cpu(variant: str, build: Callable[..., MaskedModel], device: torch.device) -> None:
    check(lambda: build(size=(12, 16), **VARIANTS[variant]), device)


PRECISIONS = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}  # with the largest relative difference of a loss


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recipe", ["image_mae", "image_crossmae", "image_capi", "image_data2vec", "video_mae", "video_vjepa"])
def test_losses_are_those_of_the_cpu(recipe: str, precision: str, run_recipe: RunRecipe, tmp_path: Path) -> None:
    """The GPU gets the same samples, crops and masks as the CPU, and makes the same updates."""
    if REHEARSAL and precision == "fp16":
        pytest.skip("a CPU does not train in fp16")
    with on_cpu():
        run_recipe(recipe, *FLAGS, "--train.precision", "fp32", "--folder", str(tmp_path / "cpu"))
    run_recipe(recipe, *FLAGS, "--train.precision", precision, "--folder", str(tmp_path / "gpu"))
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=PRECISIONS[precision])
    where = json.loads((tmp_path / "gpu" / "environment.json").read_text())[-1]["device"]
    assert (where == "cpu") == REHEARSAL


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recipe", ["image_mae", "image_capi"])
def test_a_strict_run_resumes_bit_for_bit(recipe: str, precision: str, run_recipe: RunRecipe, tmp_path: Path) -> None:
    if REHEARSAL and precision == "fp16":
        pytest.skip("a CPU does not train in fp16")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    strict = ("--train.strict", "true", "--train.micro_batch_size", "8")
    flags = (*FLAGS, *strict, "--train.precision", precision, "--encoder.drop_path", "0.3", "--train.ema", "0.9")
    run_recipe(recipe, *flags, "--folder", str(whole))
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step_00000004")
    run_recipe(recipe, *flags, "--folder", str(stopped), "--resume")
    assert different(whole, stopped) == []


def test_a_compiled_step_computes_the_same(run_recipe: RunRecipe, tmp_path: Path) -> None:
    for name, value in (("eager", "false"), ("compiled", "true")):
        run_recipe("image_mae", *FLAGS, "--train.compile", value, "--train.precision", "fp32", "--folder", str(tmp_path / name))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


def test_ddp_over_one_process_trains_as_none(run_recipe: RunRecipe, tmp_path: Path) -> None:
    flags = [*FLAGS, "--train.batch_size", "8", "--train.log_every", "1", "--train.precision", "fp32", "--evaluate", "masked_loss"]
    run_recipe("image_mae", *flags, "--folder", str(tmp_path / "alone"))
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", str(free_port())]
    command = [*launched, "recipes/image_mae.py", *flags, "--folder", str(tmp_path / "ddp")]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if REHEARSAL else {})
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert losses(tmp_path / "ddp") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_fsdp_over_one_process_trains_as_none(build: Callable[..., MaskedModel], device: torch.device) -> None:
    """The recipes refuse FSDP over one process, which shards nothing, so this test calls its code directly."""
    torch.manual_seed(0)
    plain = build().to(device)
    torch.manual_seed(0)
    sharded = build()
    x, mask = draw(plain)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (plain, sharded)]
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        state = SimpleNamespace(fsdp_plugin=None, dynamo_plugin=SimpleNamespace(backend=SimpleNamespace(value="NO")))
        shard(sharded, optimizers[1], SimpleNamespace(device=device, num_processes=1, mixed_precision="no", state=state))
        for _ in range(3):
            for model, optimizer in zip((plain, sharded), optimizers, strict=True):
                optimizer.zero_grad()
                model(x.to(device), mask=mask.to(device)).loss.backward()
                optimizer.step()
        assert any("DTensor" in type(weight).__name__ for weight in sharded.parameters())
        expected = plain.state_dict()
        for name, value in sharded.state_dict().items():
            torch.testing.assert_close(gather(value), expected[name], rtol=1e-4, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("recipe", ["image_mae", "video_mae"])
def test_samples_that_are_resized_there_train_alike(recipe: str, run_recipe: RunRecipe, tmp_path: Path) -> None:
    """The device resizes with another kernel, whose results differ by at most one 8-bit level."""
    for where in ("worker", "device"):
        size = ("--data.image_size", "64", "--data.resize", where, "--train.precision", "fp32")
        run_recipe(recipe, *FLAGS, *size, "--folder", str(tmp_path / where))
    assert losses(tmp_path / "device") == pytest.approx(losses(tmp_path / "worker"), rel=2e-2)


def test_too_large_a_batch_is_answered_with_advice(
    needs_gpu: None, run_recipe: RunRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 64 * 2**20) / total)
    try:
        with pytest.raises(SystemExit) as end:
            run_recipe("image_mae", "--train.batch_size", "4096", "--folder", str(tmp_path / "run"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert end.value.code == 2
    assert "train.micro_batch_size" in capsys.readouterr().err


def test_evaluations_and_pictures_run_there(run_recipe: RunRecipe, tmp_path: Path) -> None:
    names = ("masked_loss", "knn", "features", "reconstruction", "health")
    few = ("--evaluate.masked_loss.samples", "16", "--evaluate.features.labels_per_class", "3")
    few += ("--evaluate.features.train_samples", "120", "--evaluate.reconstruction.measured", "8")
    found = run_recipe("image_mae", *FLAGS, "--evaluate", *names, *few, "--folder", str(tmp_path / "gpu"))
    with on_cpu():
        known = run_recipe("image_mae", *FLAGS, "--evaluate", *names, *few, "--folder", str(tmp_path / "cpu"))
    assert found.keys() == known.keys()
    assert found["held_out_loss"] == pytest.approx(known["held_out_loss"], rel=2e-2)  # bf16 where the GPU has it
    assert (tmp_path / "gpu" / "pictures" / "reconstruction_00000004.png").stat().st_size > 1000
