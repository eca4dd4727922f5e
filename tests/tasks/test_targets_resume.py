"""Targets with state that changes in training: a resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mmm

RunRecipe = Callable[..., dict[str, Any]]
TARGETS: dict[str, list[str]] = {
    "latent": ["--target.name", "latent", "--target.decay", "0.9"],
    "pair": ["--target.name", "pair", "--target.first.name", "codes", "--target.first.codes", "16", "--target.first.samples", "64"],
    "prototypes": ["--target.name", "prototypes", "--target.prototypes", "32", "--target.hidden", "24", "--target.decay", "0.9"],
    "clusters": ["--target.name", "clusters", "--target.clusters", "32", "--target.decay", "0.9"],
}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


QUICK = ("latent", "clusters")


@pytest.mark.parametrize("target", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TARGETS])
def test_a_run_with_a_learning_target_resumes_bit_for_bit(target: str, run_recipe: RunRecipe, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = [*TARGETS[target], "--train.steps", "4", "--train.save_every", "2"]
    run_recipe("image_mae", *flags, "--folder", str(whole))
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step_00000004")
    run_recipe("image_mae", *flags, "--folder", str(stopped), "--resume")
    one, other = weights(whole, 4), weights(stopped, 4)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    before = {name: value for name, value in weights(whole, 2).items() if name.startswith("target.")}
    assert [name for name, value in before.items() if not torch.equal(value, one[name])]  # the state of the target has changed


def test_samples_that_are_assigned_together_belong_to_a_run(run_recipe: RunRecipe, tmp_path: Path, capsys: Any) -> None:
    """The number is the batch size, or `train.micro_batch_size` if given; a change of it would change the method."""
    flags = ["--target.name", "clusters", "--target.clusters", "32", "--folder", str(tmp_path / "run")]
    run_recipe("image_mae", *flags)
    with pytest.raises(SystemExit):
        run_recipe("image_mae", *flags, "--train.micro_batch_size", "4", "--resume")
    assert "target.samples_together was 8, is 4" in capsys.readouterr().err


def test_a_run_learns_the_features_of_a_frozen_run(
    run_recipe: RunRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In SALT's second stage the checkpoints load without the teacher, and a resume with another teacher is refused."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    run_recipe("image_mae", "--folder", str(teacher))
    flags = ["--target.name", "latent", "--target.teacher", str(teacher), "--train.steps", "4", "--train.save_every", "2"]
    run_recipe("image_mae", *flags, "--folder", str(student))
    assert not [name for name in weights(student, 4) if name.startswith("target.")]
    shutil.rmtree(student / "checkpoints" / "step_00000004")
    run_recipe("image_mae", "--seed", "7", "--folder", str(tmp_path / "other"))
    shutil.rmtree(teacher)
    (tmp_path / "other").rename(teacher)
    with pytest.raises(SystemExit):
        run_recipe("image_mae", *flags, "--folder", str(student), "--resume")
    assert "target.weights was" in capsys.readouterr().err
    shutil.rmtree(teacher)
    loaded = mmm.load(student)
    assert loaded.encode(torch.randn(1, 1, 32, 32)).tokens.shape == (1, 64, 128)
