"""Tests of the measures of health without labels: plain formulas, the detection of a collapse, and use during a training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmm
from mmm import MaskedModel
from mmm.config.serialize import load
from mmm.core.rng import sample_keys
from mmm.evaluate.evaluator import Context
from mmm.evaluate.health import Health, collapse, deviations, feature_std, gradient_norms, moments, rankme, tokens_of
from mmm.targets import LatentTarget
from tasks import pretrain

Build = Callable[..., MaskedModel]
Run = Callable[..., dict[str, Any]]
SMALL = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2")
LATENT = (*SMALL, "--target.name", "latent", "--train.steps", "4")


def test_rankme_counts_directions() -> None:
    """RankMe is exp of the entropy of singular values: 3 for 3 orthogonal directions of equal length, and 1 for one line."""
    features = torch.randn(40, 6)
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = singular / singular.sum()
    assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert rankme(torch.eye(8)[:3].repeat(5, 1)) == pytest.approx(3, rel=1e-4)
    assert rankme(torch.ones(9, 1) * torch.randn(8)) == pytest.approx(1, rel=1e-4)


def test_spreads_equal_plain_formulas() -> None:
    assert feature_std(torch.randn(2000, 50)) == pytest.approx(1, abs=0.02)  # all directions have the same distribution
    assert feature_std(torch.randn(1, 50).expand(20, -1)) < 1e-6
    batches = [torch.randn(4, 7, 5) * 3 + 1, torch.randn(2, 7, 5)]
    flat = torch.cat([one.flatten(0, 1) for one in batches]).double()
    expected = (flat.var(0, correction=0) + 1e-6).sqrt().mean().item()
    stds, used = deviations([{"values": moments(one, 5)} for one in batches])
    assert (stds["values"], used) == (pytest.approx(expected, rel=1e-6), {})


def test_classes_have_a_perplexity() -> None:
    """The perplexity is exp of the entropy of the frequencies of classes as targets. Targets of class tokens are left out."""
    values, pooled, shares = torch.randn(2, 3, 4), torch.randn(2, 4), torch.rand(2, 3, 4).softmax(2)
    codes = torch.tensor([[0, 1, 1], [3, 1, 0]])
    found = dict(tokens_of(((values, pooled), codes, shares)))
    assert list(found) == ["values 0 0", "classes 1", "classes 2"]
    assert found["values 0 0"] is values
    halves = [{name: moments(one[half], 5) for name, one in found.items()} for half in (slice(0, 1), slice(1, 2))]
    stds, used = deviations(halves)
    assert list(stds) == ["values 0 0"]
    often = np.array([2, 3, 1]) / 6
    assert used["classes 1"] == pytest.approx(np.exp(-(often * np.log(often)).sum()), rel=1e-6)
    mean = shares.flatten(0, 1).mean(0).double().numpy()
    assert used["classes 2"] == pytest.approx(np.exp(-(mean * np.log(mean)).sum()), rel=1e-5)
    assert collapse({"rankme": 9.0, "target_perplexity": 1.5}, learned=True) == ["the effective number of classes is 1.5, below 2"]


def test_gradient_norms_are_those_of_a_backward_pass(build: Build) -> None:
    model = build(target=LatentTarget.Config())
    x = torch.randn(3, 3, 12, 16)
    mask = model.masker(sample_keys(0, 0, torch.arange(3)), (3, 4))
    found = gradient_norms(model, model(x, mask=mask).loss)
    assert all(weight.grad is None for weight in model.parameters())
    model(x, mask=mask).loss.backward()
    for name in ("encoder", "decoder"):
        squares = [weight.grad.square().sum() for weight in getattr(model, name).parameters() if weight.grad is not None]
        assert found.pop(f"grad_norm_{name}") == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-5)
    assert not found  # the teacher has no gradients


def test_a_latent_target_is_watched_and_nothing_else_changes(run_recipe: Run, tmp_path: Path) -> None:
    """Its numbers are in the metrics after the last update, or as often as chosen, and do not change the losses."""
    run_recipe("image_mae", *LATENT, "--folder", str(tmp_path / "a"))
    often = ("--evaluate", "health", "--evaluate.health.every", "2", "--evaluate.health.samples", "40")
    run_recipe("image_mae", *LATENT, *often, "--folder", str(tmp_path / "b"))
    lines = {name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in "ab"}
    assert {name: [one["step"] for one in lines[name] if "rankme" in one] for name in "ab"} == {"a": [4], "b": [2, 4]}
    assert [one["loss"] for one in lines["a"] if "loss" in one] == [one["loss"] for one in lines["b"] if "loss" in one]
    assert {"feature_std", "target_std", "prediction_std", "grad_norm_encoder", "grad_norm_decoder"} <= lines["a"][-1].keys()
    run_recipe("image_mae", *SMALL, "--folder", str(tmp_path / "c"))
    assert "rankme" not in (tmp_path / "c" / "metrics.jsonl").read_text()


def test_a_collapse_is_found(run_recipe: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An encoder whose last norm has weights of 0 gives every token the same feature."""
    run = tmp_path / "run"
    run_recipe("image_mae", *LATENT, "--folder", str(run))
    model, config = mmm.load(run), load(pretrain.Config, run / "config.yaml")
    context = Context(
        data=config.data, masker=model.masker, device=torch.device("cpu"), title="run", untrained=lambda: model, test_split="test"
    )
    with caplog.at_level(logging.WARNING):
        healthy = Health(Health.Config(samples=64)).run(model, context)
        assert "the representation collapses" not in caplog.text
        for encoder in (model.encoder, model.target.teacher.encoder):
            torch.nn.init.zeros_(encoder.norm.weight)
            torch.nn.init.ones_(encoder.norm.bias)
        found = Health(Health.Config(samples=64)).run(model, context)
    assert healthy["rankme"] > 2 > found["rankme"]
    assert "the representation collapses: RankMe is 1" in caplog.text
    assert "the targets' deviation over tokens is 0.001, below 0.1" in caplog.text
    assert collapse({"rankme": 5.0, "target_std": 0.05}, learned=False) == []
