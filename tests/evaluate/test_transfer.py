"""Tests of few-shot probes: equal settings for all encoders, no choice by test samples, and controls with less information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmm import MaskedModel
from mmm.core.positions import coordinates
from mmm.core.tokens import take
from mmm.core.types import Shape
from mmm.data import Clips, ClipsConfig, open_data
from mmm.data.sources.builtin_videos import motion_folder
from mmm.evaluate.probes.few_shot import FewShotConfig, probe_few_shot
from mmm.evaluate.probes.few_shot_eval import evaluate_few_shot, format_few_shot
from mmm.evaluate.reconstruction.baselines import from_visible

Build = Callable[..., MaskedModel]
SHAPE = Shape(width=16, depth=1, prefix=0)
QUICK = FewShotConfig(labels_per_class=5, heads=2, rates=(1e-3, 1e-2), steps=12, batch_size=16)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return motion_folder(tmp_path_factory.mktemp("videos"), {"train": 48, "validation": 8, "test": 16})


def opened(videos: Path, split: str) -> Clips:
    data = ClipsConfig(source=str(videos), frames=4, stride=4, image_size=8, channels=1, mean=(0.5,), std=(0.2,), workers=0)
    part = open_data(data, split)
    assert isinstance(part, Clips)
    return part


def judged(build: Build, videos: Path, config: FewShotConfig = QUICK, test: Clips | None = None) -> dict[str, Any]:
    torch.manual_seed(0)
    model, other = (build((4, 8, 8), channels=1) for _ in range(2))
    models = {"trained": model, "untrained": other, "again": model}
    return evaluate_few_shot(models, opened(videos, "train"), test or opened(videos, "test"), config, device="cpu", batch_size=20)


def where(tokens: int = 6, samples: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns tokens and labels of two classes. One token per sample, at a random place, is marked and encodes the class."""
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(samples, tokens, SHAPE.width, generator=draws)
    labels = torch.arange(samples) % 2
    place = torch.randint(tokens, (samples,), generator=draws)
    values[torch.arange(samples), place, 0] += 6
    values[torch.arange(samples), place, 1] = 3 * (2.0 * labels - 1)
    return values, labels


def test_the_probe_reads_what_only_some_token_says() -> None:
    known, asked = where(), where(seed=1)
    held = torch.arange(120) < 24
    config = FewShotConfig(labels_per_class=60, heads=2, rates=(1e-4, 3e-3), steps=150)
    found = probe_few_shot(known, held, asked, SHAPE, 2, config)
    assert found["top1"] > 0.85
    assert found["rate"] == 3e-3  # the small rate cannot learn in so few steps
    assert found["held_back"]["0.003"] > found["held_back"]["0.0001"]
    mixed = known[1][torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    assert probe_few_shot((known[0], mixed), held, asked, SHAPE, 2, config)["top1"] < 0.75


def test_the_test_part_chooses_nothing(build: Build, videos: Path) -> None:
    test = opened(videos, "test")
    first = judged(build, videos, test=test)
    labels = test.table.labels
    assert labels is not None
    turned = opened(videos, "test")
    turned.table = replace(turned.table, labels=(labels + 1) % 8)
    second = judged(build, videos, test=turned)
    for kind in ("probe", "one_frame"):
        for name in ("trained", "untrained"):
            assert first[kind][name]["held_back"] == second[kind][name]["held_back"]
            assert first[kind][name]["rate"] == second[kind][name]["rate"]


def test_equal_encoders_score_equally(build: Build, videos: Path) -> None:
    """The scores do not depend on the order of encoders, or on random numbers drawn before."""
    found = judged(build, videos)
    for kind in ("probe", "one_frame"):
        assert found[kind]["trained"] == found[kind]["again"]
        assert found[kind]["trained"] != found[kind]["untrained"]
        for score in found[kind].values():
            assert score["held_back"][str(score["rate"])] == max(score["held_back"].values())
    assert found == judged(build, videos)


def test_what_is_told(build: Build, videos: Path) -> None:
    found = judged(build, videos)
    assert (found["labels"], found["test"], found["classes"]) == (40, 16, 8)
    assert set(found["controls"]) == {"raw_pixels", "one_frame"}
    text = format_few_shot(found)
    for words in ("5 labels of each of 8 classes", "16 test samples", "trained, one frame", "all pixels", "pixels of one frame"):
        assert words in text


def test_one_frame_shows_one_frame(build: Build, videos: Path) -> None:
    """Other frames around the middle one change the probe of clips, but not the probe of one frame or the score of its pixels."""

    class Frozen(Clips):
        def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
            pixels, failed = super().eval_views(index)
            return pixels[:, :, 2:3].expand_as(pixels).contiguous(), failed

    def still(split: str) -> Clips:
        part = opened(videos, split)
        return Frozen(part.table, part.config, part.rows, part.where)

    torch.manual_seed(0)
    models = {"trained": build((4, 8, 8), channels=1)}
    moving = evaluate_few_shot(models, opened(videos, "train"), opened(videos, "test"), QUICK, device="cpu")
    standing = evaluate_few_shot(models, still("train"), still("test"), QUICK, device="cpu")
    assert moving["one_frame"] == standing["one_frame"]
    assert moving["controls"]["one_frame"] == standing["controls"]["one_frame"]
    assert moving["probe"] != standing["probe"]


def test_samples_without_labels_are_refused(build: Build, videos: Path) -> None:
    part = opened(videos, "train")
    part.table = replace(part.table, labels=None)
    with pytest.raises(ValueError, match="have no labels"):
        evaluate_few_shot({"trained": build((4, 8, 8), channels=1)}, part, opened(videos, "test"), QUICK, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels_per_class": 1}, "at least 2"),
        ({"steps": 0}, "few_shot.steps 0 is not a whole number of at least 1"),
        ({"rates": ()}, "few_shot.rates"),
        ({"rates": (0.0,)}, "few_shot.rates"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotConfig(**values)


def test_the_nearest_visible_token_of_a_clip_is_copied() -> None:
    """The result equals a search over all visible tokens in time and space."""
    grid, visible = (3, 2, 4), torch.tensor([[0, 9, 22], [17, 3, 12]])
    patches = torch.rand(2, 24, 6)
    _, _, copy = from_visible(patches, visible, grid, 3)
    places = coordinates(grid)
    for row in range(2):
        for token in range(24):
            apart = [float((places[token] - places[seen]).square().sum()) for seen in visible[row].tolist()]
            nearest = visible[row, apart.index(min(apart))]
            torch.testing.assert_close(copy[row, token], patches[row, nearest], rtol=0, atol=0)
    torch.testing.assert_close(take(copy, visible), take(patches, visible), rtol=0, atol=0)
