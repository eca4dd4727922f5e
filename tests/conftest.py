"""Fixtures for all tests: small models of images and clips, and a folder of real files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from mmm import Input, MaskedModel, ModelConfig
from mmm.config.cli import main
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, Tubes

REPOSITORY = Path(__file__).parents[1]


def share_cores() -> None:
    """Gives each test process a separate set of cores, because several processes on the same cores would wait for each other."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[int(worker.removeprefix("gw")) % len(cores) :: count]
        os.sched_setaffinity(0, mine)
        torch.set_num_threads(len(mine))


share_cores()


@pytest.fixture(autouse=True)
def _memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training keeps freed memory for its next step; hundreds of runs in one test process would take too much of it to fork."""
    monkeypatch.setattr("mmm.train.distributed.setup.keep_memory", lambda: False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Sets the global generator to the same state before every test."""
    torch.manual_seed(0)


@pytest.fixture
def build() -> Callable[..., MaskedModel]:
    """Returns a function for a small model: MAE on 3 x 4 patches of 4 pixels unless other parts, sizes or channels are given.

    Trainable weights get noise, so that no error is hidden by a bias of 0 or a norm weight of 1.
    """

    def make(size: tuple[int, ...] = (12, 16), channels: int = 3, **parts: object) -> MaskedModel:
        chosen: dict[str, object] = {
            "tokenizer": Patches.Config(size=4) if len(size) == 2 else Tubes.Config(size=4, frames=2),
            "masker": RandomMasker.Config(),
            "encoder": VisionTransformer.Config(width=24, depth=2, heads=2),
            "decoder": SelfAttentionDecoder.Config(width=16, depth=2, heads=2),
            "target": PixelTarget.Config(),
        }
        mean, std = tuple(0.1 * (i + 3) for i in range(channels)), tuple(0.05 * (i + 3) for i in range(channels))
        data = Input(size=size, channels=channels, mean=mean, std=std)
        return disturb(MaskedModel.build(ModelConfig(**(chosen | parts)), data))  # type: ignore

    return make


def disturb(model: nn.Module, scale: float = 0.05) -> nn.Module:
    """Adds noise to every trainable weight."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=scale)
    return model


@pytest.fixture(name="disturb")
def _disturb() -> Callable[..., nn.Module]:
    return disturb


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Returns the folder of real files for tests: MMM_TEST_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MMM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here: set MMM_TEST_DATA to a folder with images/train/<class>/*.JPEG")
    return folder


@pytest.fixture
def run_recipe() -> Callable[..., dict[str, object]]:
    """Runs a recipe in this process like its command: two steps of eight images and the masked loss, unless flags change that."""

    def run(name: str, *flags: str) -> dict[str, object]:
        recipe = load_recipe(name)
        start = [] if "--config" in flags else ["--preset", "demo"]
        short = [*start, "--train.steps", "2", "--train.batch_size", "8", "--train.log_every", "1"]
        loss = ["--evaluate", "masked_loss", "--evaluate.masked_loss.samples", "16"]
        short += [] if "--evaluate" in flags else loss
        return main(recipe.pretrain.run, presets=recipe.PRESETS, doc=recipe.__doc__, argv=[*short, *flags])

    yield run
    reset_accelerate()


def load_recipe(name: str) -> ModuleType:
    """Returns a recipe as a module."""
    return importlib.import_module(f"recipes.{name}")


def reset_accelerate() -> None:
    """Resets the state of Accelerate, which is kept per process, for a run with other settings."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
