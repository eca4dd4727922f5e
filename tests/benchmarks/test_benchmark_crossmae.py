"""The CrossMAE benchmark compares equal steps: the published steps have the same losses, and peak memory is counted correctly."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import measure
from mmm import Mask, MaskedModel
from mmm.decoders import CrossAttentionDecoder


@pytest.fixture
def bench() -> Callable[[str], ModuleType]:
    """Returns a function that imports a file of the benchmarks by its short name."""
    return lambda name: importlib.import_module(f"benchmarks.train.{name}")


def test_the_published_step_is_mae(bench, build: Callable[..., MaskedModel]) -> None:
    model = build(size=(16, 16)).double()
    published = bench("published").PublishedMAE(model, visible=4)
    x, noise = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.rand(3, 16)
    order = noise.argsort(dim=1)
    ours, theirs = model(x, mask=Mask(order[:, :4], order[:, 4:])).loss, published(x, noise)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    weights = [w for w in model.parameters() if w.requires_grad]
    for mine, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        assert (mine - other).abs().max() <= 1e-12


def test_the_published_fusion_is_fusion(bench, build: Callable[..., MaskedModel]) -> None:
    model = build(size=(16, 16), decoder=CrossAttentionDecoder.Config(width=16, depth=3, heads=2, fusion="linear")).double()
    other = bench("crossmae_variants").stacked(model)
    assert model.decoder.fusion is not other.decoder.fusion
    assert model.decoder.blocks is other.decoder.blocks
    order = torch.rand(2, 16).argsort(dim=1)
    x, mask = torch.randn(2, 3, 16, 16, dtype=torch.float64), Mask(order[:, :4], order[:, 4:9])
    weights = [w for w in model.parameters() if w.requires_grad]
    losses = [one(x, mask=mask).loss for one in (model, other)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(loss, weights) for loss in losses), strict=True):
        assert (mine - theirs).abs().max() <= 1e-12


def test_memory_is_the_most_that_is_held_at_once(bench) -> None:
    million = 1_000_000

    def step() -> None:
        first = torch.zeros(million)  # 4 MB
        second = first + 1
        del first
        third = second * 2
        del second, third

    assert measure.peak_bytes(step, torch.device("cpu")) == pytest.approx(8 * million, rel=0.01)


def test_steps_take_turns(bench) -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measure.interleaved(steps, repeats=2, warmup=1, device=torch.device("cpu"))
    assert calls == ["a", "b"] * 3
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.slow
def test_it_runs(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--size", "tiny", "--image", "32", "--batch", "1", "--repeats", "2", "--precision", "fp32", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/train/crossmae_cost.py", *flags])
    bench("crossmae_cost").main()
    found = json.loads((tmp_path / "crossmae_cost.json").read_text())
    assert len(found["found"]["fp32"]) == 8
    assert str(tmp_path) not in json.dumps(found)
    assert "| CrossMAE 25 %" in (tmp_path / "crossmae_cost.md").read_text()
