"""docs/adding_a_part.md does what it says: its code is taken from the page and trained with."""

import re
from pathlib import Path

import pytest
import torch

from mmm.maskers import maskers

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_part.md"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The page's file; its part is gone again after the test."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "checkerboard.py").write_text(code[1])
    yield tmp_path / "checkerboard.py"
    maskers.parts.pop("checkerboard", None)


def test_the_pages_masker_trains_by_its_name(part: Path, tmp_path: Path, run_recipe) -> None:
    flags = ["--use", str(part), "--masker.name", "checkerboard", "--masker.shift", "1"]
    result = run_recipe("image_mae", *flags, "--folder", str(tmp_path / "run"))
    assert result["step"] == 2

    masker = maskers.build(maskers["checkerboard"].Config(shift=1))
    mask = masker(torch.arange(3), (4, 6))
    rows, columns = mask.visible // 6, mask.visible % 6
    assert bool(((rows + columns) % 2 == 1).all()), "with shift 1 the odd squares are seen"
    assert mask.visible.shape == mask.predict.shape == (3, 12)


def test_the_pages_masker_holds_its_squares_through_a_clip(part: Path) -> None:
    from mmm.config.cli import parse
    from tasks import pretrain

    with pytest.raises(ValueError, match="checkerboard"):
        maskers["checkerboard"]
    from recipes.image_mae import DEMO

    parse(DEMO, ["--use", str(part), "--masker.name", "checkerboard"])
    mask = maskers.build(maskers["checkerboard"].Config())(torch.arange(2), (3, 4, 4))
    places = mask.visible.view(2, 8, 3) % 16
    assert bool((places == places[..., :1]).all())
    assert pretrain.Config is type(DEMO)
