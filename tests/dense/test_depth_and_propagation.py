"""Depth by a linear head, and the propagation of masks through videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load_recipe, reset_accelerate
from PIL import Image

import mmm
from mmm import MaskedModel
from mmm.core.types import Input
from mmm.data.sources.scenes import COUNTS, render, scenes
from mmm.dense.bins import FLOOR, depth_of
from mmm.evaluate.dense.depth import depth_errors
from mmm.evaluate.dense.propagation import (
    PropagationConfig,
    boundary,
    contour_accuracy,
    mean_scores,
    near,
    patch_shares,
    propagate,
    region_similarity,
    score_clip,
    to_pixels,
)
from mmm.objectives.depth import depth_loss
from tasks import depth
from tasks import propagate as task


@pytest.fixture(autouse=True)
def _one_accelerator() -> Iterator[None]:
    yield
    reset_accelerate()


# --- depth ------------------------------------------------------------------------------------------------------------------


def test_depth_is_the_mean_of_the_bins() -> None:
    logits = torch.full((1, 11, 1, 1), -5.0)  # below 0: every bin has the same small weight
    assert depth_of(logits, (0.0, 10.0)).item() == pytest.approx(5)
    logits[0, 8] = 1e6
    assert depth_of(logits, (0.0, 10.0)).item() == pytest.approx(8, abs=1e-4)
    logits[0, 8] = 2.0
    weights = [FLOOR] * 11
    weights[8] += 2.0
    assert depth_of(logits, (0.0, 10.0)).item() == pytest.approx(np.average(np.arange(11), weights=weights))


def test_errors_and_loss_are_those_of_plain_formulas() -> None:
    guess, truth = torch.rand(6, 7) * 5 + 1, torch.rand(6, 7) * 5 + 1
    truth[0] = float("nan")
    g, t = guess[1:].double().numpy(), truth[1:].double().numpy()
    expected = [(np.maximum(g / t, t / g) < 1.25).mean(), np.sqrt(((g - t) ** 2).mean()), (np.abs(g - t) / t).mean()]
    assert depth_errors(guess, truth).tolist() == pytest.approx(expected)
    error = np.log(g + 0.001) - np.log(t + 0.001)
    assert depth_loss(guess, truth).item() == pytest.approx(np.sqrt(error.var(ddof=1) + 0.15 * error.mean() ** 2), rel=1e-4)
    assert depth_loss(guess, torch.full_like(truth, float("nan"))).isfinite()


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Renders a dozen scenes instead of hundreds."""
    scenes.cache_clear()
    for split in COUNTS:
        monkeypatch.setitem(COUNTS, split, 12)
    yield
    scenes.cache_clear()


def test_a_probe_of_depth_runs_and_is_no_model(few_scenes: None, tmp_path: Path) -> None:
    demo = load_recipe("depth").PRESETS["demo"]
    train = replace(demo.train, steps=2, batch_size=4, log_every=1, evaluate_every=1, warmup_steps=None)
    small = replace(demo, train=train, encoder=replace(demo.encoder, width=16, depth=1, heads=2), test_split="validation")
    result = depth.run(replace(small, folder=str(tmp_path / "run")))
    assert result["samples"] == 12
    assert 0 <= result["delta1"] <= 1
    assert (tmp_path / "run" / "pictures" / "depth_00000002.png").exists()
    with pytest.raises(ValueError, match="a depth probe, whose head is not loaded"):
        mmm.load(tmp_path / "run")


# --- propagation ------------------------------------------------------------------------------------------------------------


def test_labels_follow_patches_that_move() -> None:
    """Every patch has a different feature, and the frames shift by one patch, so that the labels must shift, too."""
    random = torch.Generator().manual_seed(0)
    plane = torch.nn.functional.normalize(torch.randn(5, 12, 16, generator=random), dim=2)
    features = torch.stack([plane[:, shift : shift + 7].flatten(0, 1) for shift in range(4)])
    mask = np.zeros((20, 28), np.uint8)
    mask[8:16, 16:24] = 2
    mask[0:8, 20:28] = 1
    first = patch_shares(mask, (5, 7), 3)
    assert first.argmax(1).view(5, 7)[2:4, 4:6].unique().tolist() == [2]
    found = propagate(features, (5, 7), first, PropagationConfig(neighbours=1, radius=2, frames=2))
    masks = to_pixels(found, (5, 7), (5, 7))
    for frame in range(4):
        known = masks[frame][:, : 7 - frame]  # the other columns are not in the first frame
        assert np.argwhere(known == 2).tolist() == [[row, column - frame] for row in (2, 3) for column in (4, 5)]
    still = propagate(features, (5, 7), first, PropagationConfig(neighbours=1, radius=3, frames=1))
    far = propagate(features[[0, 3]], (5, 7), first, PropagationConfig(neighbours=1, radius=2, frames=1))
    columns = [one[-1].argmax(1).view(5, 7)[:, :4] for one in (found, still, far)]
    assert torch.equal(columns[0], columns[1])
    assert not torch.equal(columns[0], columns[2])  # the patches are three apart, and the search radius is two


def test_neighbours_are_weighed_over_all_frames_together() -> None:
    """Neighbours are the five nearest in the first and the last frame, as a plain loop finds them."""
    features = torch.nn.functional.normalize(torch.randn(3, 12, 4), dim=2)
    first = torch.eye(12)[:, :4].float()
    config = PropagationConfig(neighbours=5, radius=1, frames=1, temperature=0.2)
    found = propagate(features, (3, 4), first, config)
    labels = [first]
    for frame in (1, 2):
        kept = [0] if frame == 1 else [0, 1]
        rows = []
        for i in range(12):
            pairs = [
                (float(features[frame, i] @ features[other, j]), other, j)
                for other in kept
                for j in range(12)
                if abs(i // 4 - j // 4) <= 1 and abs(i % 4 - j % 4) <= 1
            ]
            best = sorted(pairs, reverse=True)[:5]
            weight = torch.tensor([value / 0.2 for value, _, _ in best]).softmax(0)
            rows.append(sum(w * labels[other][j] for w, (_, other, j) in zip(weight, best, strict=True)))
        labels.append(torch.stack(rows))
    torch.testing.assert_close(found, torch.stack(labels))
    assert near((3, 4), 1).sum(1).tolist() == [4, 6, 6, 4, 6, 9, 9, 6, 4, 6, 6, 4]


def test_j_and_f_on_known_masks() -> None:
    truth = np.zeros((60, 80), bool)
    truth[20:40, 30:50] = True
    moved = np.roll(truth, 1, 1)
    nothing = np.zeros_like(truth)
    assert region_similarity(truth, moved) == pytest.approx(19 / 21)
    assert region_similarity(nothing, nothing) == 1
    assert contour_accuracy(truth, truth) == contour_accuracy(nothing, nothing) == 1
    assert contour_accuracy(nothing, truth) == contour_accuracy(truth, nothing) == 0
    assert contour_accuracy(moved, truth) == 1  # within one pixel: 0.008 of the diagonal of 100, rounded up
    assert contour_accuracy(np.roll(truth, 3, 1), truth) < 0.8
    assert boundary(truth).sum() == 80
    masks = np.stack([truth, moved, truth, nothing]).astype(np.uint8)
    found = score_clip(masks, np.stack([truth] * 4).astype(np.uint8))
    assert found["j"] == pytest.approx((19 / 21 + 1) / 2)  # the first and the last frame are not scored
    assert mean_scores([found, {"j": 0.0, "f": 0.0, "j_and_f": 0.0, "objects": 3}])["j"] == pytest.approx(found["j"] / 4)
    with pytest.raises(ValueError, match="at least three"):
        score_clip(masks[:2], masks[:2])


@pytest.fixture
def model(build: Callable[..., MaskedModel], tmp_path: Path) -> Path:
    built = build((16, 16), channels=1)
    built.data = Input(size=(16, 16), channels=1, mean=(0.5,), std=(0.2,))
    built.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def davis(root: Path) -> Path:
    """Writes two clips in DAVIS's layout, one of which lacks a mask."""
    for name, index in (("bear", 0), ("camel", 1)):
        scene = render("test", index, 4)
        for folder, values in (("JPEGImages", scene.pixels), ("Annotations", scene.instances)):
            path = root / folder / "480p" / name
            path.mkdir(parents=True)
            for number, frame in enumerate(values):
                if (name, folder, number) != ("camel", "Annotations", 2):
                    Image.fromarray(frame).save(path / f"{number:05d}.png")
    return root


def test_masks_are_carried_through_davis_and_a_folder_of_frames(model: Path, tmp_path: Path, caplog: Any) -> None:
    root = davis(tmp_path / "davis")
    result = task.run(task.Config(model=str(model), source=str(root), side=32, out=str(tmp_path / "out"), device="cpu"))
    assert result["clips"] == 1
    assert "camel: has 4 frames and 3 masks" in caplog.text
    assert 0 <= result["j_and_f"] <= 1
    written = [np.asarray(Image.open(tmp_path / "out" / "bear" / f"{number:05d}.png")) for number in range(4)]
    assert np.array_equal(written[0], render("test", 0).instances[0])
    assert json.loads((tmp_path / "out" / "propagation.json").read_text())["of_clips"].keys() == {"bear"}
    frames, mask = root / "JPEGImages" / "480p" / "bear", root / "Annotations" / "480p" / "bear" / "00000.png"
    config = task.Config(model=str(model), source=str(frames), mask=str(mask), side=32, out=str(tmp_path / "own"), device="cpu")
    assert "j" not in task.run(config)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "own" / "bear" / "00003.png")), written[3])
    Image.new("L", (63, 64)).save(mask)
    with pytest.raises(ValueError, match="has 64 x 63 pixels and its frame 64 x 64"):
        task.run(config)
    Image.new("L", (64, 64)).save(mask)
    with pytest.raises(ValueError, match="mask has no object"):
        task.run(config)
    with pytest.raises(ValueError, match="give --mask FILE"):
        task.run(replace(config, mask=None))
