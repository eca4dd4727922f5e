"""The format of weights in docs/adding_a_part.md is taken from the page and used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_extract import ask
from test_load_mae import assert_same, encoder_file

import mmm
from mmm import MaskedModel
from mmm.weights.formats import FORMATS
from mmm.weights.formats.timm import to_timm

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_part.md"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Writes the page's file, and unregisters its format after the test."""
    section = PAGE.read_text().split("## A format of weights")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    (tmp_path / "dino.py").write_text(code[1])
    yield tmp_path / "dino.py"
    FORMATS.pop("dino", None)


def test_the_pages_format_reads_and_writes(file: Path, tmp_path: Path, build: Callable[..., MaskedModel]) -> None:
    weights = encoder_file(width=192, depth=1)
    teacher = {f"backbone.{name}": value for name, value in weights.items()} | {"head.mlp.weight": torch.zeros(2, 2)}
    torch.save(
        {"student": dict(teacher), "teacher": teacher, "epoch": 3, "dino_loss": {"center": torch.zeros(1)}}, tmp_path / "c.pth"
    )
    with pytest.raises(ValueError, match="has no known format"):
        mmm.load(tmp_path / "c.pth")
    ask(["export", str(tmp_path / "c.pth"), "--use", str(file), "--to", "dino", "--out", str(tmp_path / "out")])
    for path in (tmp_path / "c.pth", tmp_path / "out" / "checkpoint.pth"):
        assert_same(to_timm(mmm.load(path)), weights)
    small = build(size=(16, 16))  # of a width for which no number of heads is published
    small.save_pretrained(tmp_path / "small")
    ask(["export", str(tmp_path / "small"), "--use", str(file), "--to", "dino", "--out", str(tmp_path / "small_out")])
    again = mmm.load(tmp_path / "small_out")
    assert_same(to_timm(again), to_timm(small))
    assert again.encoder.config.head_count == small.encoder.config.head_count
    del teacher["backbone.norm.bias"]
    torch.save({"teacher": teacher}, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match="lacks norm.bias"):
        mmm.load(tmp_path / "broken.pth")
