"""The recipes of methods: the demonstration of each trains, its published presets can be built, and docs/methods.md lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, load_recipe

from mmm.model import MaskedModel, ModelConfig
from tasks import pretrain

PAGE = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
RECIPES = sorted(
    path.stem
    for path in (REPOSITORY / "recipes").glob("[!_]*.py")
    if isinstance(next(iter(load_recipe(path.stem).PRESETS.values())), pretrain.Config)
)
KINDS = ("tokenizer", "masker", "encoder", "decoder", "target")
NOT_HERE = ("dalle", "runs/", "timm:", "transformers:")  # targets that read what is not there


def needs_files(config: pretrain.Config) -> bool:
    return any(word in str(config.target) for word in NOT_HERE)


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_fits_together(name: str) -> None:
    for preset, config in load_recipe(name).PRESETS.items():
        if not needs_files(config):
            with torch.device("meta"):
                parts = ModelConfig(**{kind: getattr(config, kind) for kind in KINDS})
                assert MaskedModel.build(parts, config.data.input()).decoder is not None, preset


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


def rows() -> dict[str, list[str]]:
    """The page's table: the cells of each row by the recipe that it names."""
    found = {}
    for line in PAGE.splitlines():
        if match := re.search(r"\| `recipes/(\w+)\.py` \|", line):
            found[match[1]] = [cell.strip() for cell in line.strip("|").split("|")]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_names_the_parts_of_the_recipe(name: str) -> None:
    """One row for each recipe of pretraining, with the parts of its published preset."""
    cells = rows()[name]
    config = next(iter(load_recipe(name).PRESETS.values()))
    for kind in KINDS:
        assert any(f"`{getattr(config, kind).name}`" in cell for cell in cells), f"{kind} {getattr(config, kind).name}"


def test_the_page_names_no_recipe_that_is_not_there() -> None:
    assert set(rows()) == set(RECIPES)
