"""Recipes of methods: each demonstration trains, the published presets can be built, and docs/methods.md lists them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, load_recipe

from benchmarks.evaluate.method_learning import describe
from mmm.maskers import maskers
from mmm.model import MaskedModel, ModelConfig
from mmm.tokenizers import tokenizers
from mmm.train.schedule import make_plan
from tasks import pretrain

PAGE = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
RECIPES = sorted(
    path.stem
    for path in (REPOSITORY / "recipes").glob("[!_]*.py")
    if isinstance(next(iter(load_recipe(path.stem).PRESETS.values())), pretrain.Config)
)
KINDS = ("tokenizer", "masker", "encoder", "decoder", "target")
NOT_HERE = ("dalle", "runs/", "timm:", "transformers:")  # parts of targets that need missing files


def needs_files(config: pretrain.Config) -> bool:
    return any(word in str(config.target) for word in NOT_HERE)


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_fits_together(name: str) -> None:
    for preset, config in load_recipe(name).PRESETS.items():
        if not needs_files(config):
            with torch.device("meta"):
                parts = ModelConfig(**{kind: getattr(config, kind) for kind in KINDS})
                assert MaskedModel.build(parts, config.data.input()).decoder is not None, preset


@pytest.mark.parametrize("file", sorted((REPOSITORY / "benchmarks" / "results").glob("methods_*.json")), ids=lambda file: file.stem)
def test_the_page_has_what_was_measured(file: Path) -> None:
    assert describe(json.loads(file.read_text(encoding="utf-8"))) in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_demonstration_trains(name: str, run_recipe, tmp_path: Path) -> None:
    if name.startswith(("video", "joint")):
        pytest.importorskip("av")
    result = run_recipe(name, "--evaluate", "masked_loss", "--folder", str(tmp_path / "run"))
    assert result["step"] == 2
    assert result["loss"] == result["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_salt", "video_salt"])
def test_a_student_learns_from_its_teacher(name: str, run_recipe, tmp_path: Path) -> None:
    if name.startswith("video"):
        pytest.importorskip("av")
    run_recipe(name, "--folder", str(tmp_path / "teacher"))
    flags = ("--preset", "demo_student", "--target.teacher", str(tmp_path / "teacher"), "--folder", str(tmp_path / "student"))
    assert run_recipe(name, *flags)["step"] == 2


# batch size, peak and final learning rate of the optimizer, first rate over the peak, visible tokens, predicted tokens
PUBLISHED = {
    "image_simmim": (2048, 4e-4, 0.0, 0.0, 76, 120),
    "image_maskfeat": (2048, 1.6e-3, 8e-6, 0.005, 118, 78),
    "image_beit": (2048, 1.5e-3, 1e-5, 0.0, 121, 75),
    "image_umae": (4096, 2.4e-3, 0.0, 0.0, 48, 192),
    "image_data2vec": (256, 1e-3, 0.0, 0.0, 39, 157),
    "image_ijepa": (2048, 1e-3, 1e-6, 0.2, 67, None),
    "image_capi": (16384, 1e-3, 0.0, 0.0, 90, 8),
    "image_pixio": (8192, 8e-4, 0.0, 0.0, 64, 192),
    "video_mae_v2": (4096, 4e-3, 4e-5, 0.0, 160, 704),
    "video_maskfeat": (512, 1.6e-3, 1.6e-5, 0.01, 940, 628),
    "video_vjepa": (3072, 6.25e-4, 1e-6, 0.32, None, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_preset_has_the_published_values(name: str) -> None:
    config = next(iter(load_recipe(name).PRESETS.values()))
    batch, peak, final, start, seen, predicted = PUBLISHED[name]
    plan = make_plan(config.train, samples=1_281_167, processes=1)
    assert plan.batch_size == batch
    assert (plan.peak, config.train.warmup_start) == pytest.approx((peak, start))
    assert plan.final == pytest.approx(final)
    tokenizer = tokenizers.build(config.tokenizer, channels=3)
    mask = maskers.build(config.masker)(torch.arange(2), tokenizer.grid_of(config.data.input().size))
    assert seen in (None, mask.visible.shape[1])
    assert predicted in (None, mask.predict.shape[1])


def rows() -> dict[str, list[str]]:
    """Returns the rows of the page's table: the cells by recipe."""
    found = {}
    for line in PAGE.splitlines():
        if match := re.search(r"\| `recipes/(\w+)\.py` \|", line):
            found[match[1]] = [cell.strip() for cell in line.strip("|").split("|")]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_names_the_parts_of_the_recipe(name: str) -> None:
    """The table has one row for each pretraining recipe, with the parts of its published preset."""
    cells = rows()[name]
    config = next(iter(load_recipe(name).PRESETS.values()))
    for kind in KINDS:
        assert any(f"`{getattr(config, kind).name}`" in cell for cell in cells), f"{kind} {getattr(config, kind).name}"


def test_the_page_names_no_recipe_that_is_not_there() -> None:
    assert set(rows()) == set(RECIPES)
