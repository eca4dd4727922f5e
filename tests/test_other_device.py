"""Every part and every task on a device that is not the CPU and has no float64: see `other_device`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import load_recipe, reset_accelerate
from other_device import DEVICE, other_device
from probe_data import write_digits
from test_contract import CASES, data_of, model_of

from mmm import MaskedModel
from mmm.config import main as run_main
from tasks.__main__ import main

Build = Callable[..., MaskedModel]
DIGITS = ("image_size 8", "channels 1", "mean 0.3", "std 0.4", "eval_split test", "workers 0", "flip 0")


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device, which Accelerate and every task without --device then choose."""
    import accelerate.state

    place = mock.patch.object(accelerate.state.PartialState, "set_device", lambda state: setattr(state, "device", DEVICE))
    default = mock.patch.object(accelerate.state.PartialState, "default_device", DEVICE)
    current = mock.patch("torch.accelerator.current_accelerator", lambda check_available=False: DEVICE)
    with place, default, current, other_device() as found:
        yield found
    reset_accelerate()


@pytest.mark.parametrize(("kind", "name", "modality"), CASES)
def test_every_part_trains_there_as_on_the_cpu(kind: str, name: str, modality: str, build: Build) -> None:
    here = model_of(kind, name, modality, build)
    x, mask = data_of(here, modality)
    losses = [one_step(here, x, mask), here(x, mask=mask).loss]
    there = model_of(kind, name, modality, build)
    there.load_state_dict(here.state_dict())


def digits(folder: Path) -> list[str]:
    return ["--data.source", str(folder), *(token for flag in DIGITS for token in f"--data.{flag}".split())]


def test_every_task_runs_there(tmp_path: Path, device: torch.device) -> None:
    data, run, recipe = digits(write_digits(tmp_path / "digits")), tmp_path / "run", load_recipe("image_mae")
    size = "--tokenizer.size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 --decoder.width 16 --decoder.depth 1 --decoder.heads 2"
    short = "--train.steps 2 --train.batch_size 8 --train.micro_batch_size 4 --train.log_every 1 --train.evaluate_every 1"
    more = "--train.ema 0.9 --neighbours.every 1 --masker.name block --evaluate features transfer reconstruct --transfer.steps 2"
    argv = [*data, *size.split(), *short.split(), *more.split(), "--held_out", "16", "--representation.labels_per_class", "4", "--folder", str(run)]
    found = run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=argv)
    print(found)
    for argv in (["knn"], ["reconstruct"], ["attention"], ["retrieve"], ["extract", "--out", str(tmp_path / "f.safetensors")]):
        print(main([argv[0], str(run), *argv[1:]]))
