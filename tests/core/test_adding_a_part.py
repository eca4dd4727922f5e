"""The code in docs/adding_a_part.md is taken from the page, checked and trained with."""

import re
from pathlib import Path

import pytest
import torch

from mmm.evaluate.evaluator import evaluators
from mmm.evaluate.run_results import Record
from mmm.maskers import maskers
from mmm.targets import targets
from tasks.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_part.md"


def blocks() -> list[str]:
    """Returns the Python files that the page shows."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Writes the page's first file, and unregisters its part after the test."""
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


def test_the_pages_method_is_whole_and_short(tmp_path: Path, run_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """A masker and a target in one file of less than 60 lines pass all checks on images and clips, and train."""
    code = next(block for block in blocks() if "Stripes" in block)
    assert len(code.splitlines()) < 60
    (tmp_path / "spectra.py").write_text(code)
    try:
        assert main(["check", str(tmp_path / "spectra.py")]) == 0
        flags = ["--use", str(tmp_path / "spectra.py"), "--masker.name", "stripes", "--target.name", "spectrum"]
        assert run_recipe("image_mae", *flags, "--folder", str(tmp_path / "run"))["step"] == 2
        mask = maskers.build(maskers["stripes"].Config(ratio=0.5))(torch.arange(8), (4, 6))
        rows, columns = (torch.zeros(8, 4, 6).flatten(1).scatter(1, mask.predict, 1).view(8, 4, 6).sum(dim) for dim in (2, 1))
        whole = [((row % 6 == 0).all() or (column % 4 == 0).all()).item() for row, column in zip(rows, columns, strict=True)]
        assert all(whole)
    finally:
        maskers.parts.pop("stripes", None)
        targets.parts.pop("spectrum", None)
    found = capsys.readouterr().out
    assert found.count("checks passed") >= 4, "two parts, each on images and on clips"


def test_the_pages_evaluation_is_made_by_its_name(tmp_path: Path, run_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in blocks() if "EffectiveRank" in block)
    (tmp_path / "effective_rank.py").write_text(code)
    run_recipe("image_mae", "--folder", str(tmp_path / "run"))
    use = ["--use", str(tmp_path / "effective_rank.py"), "--evaluate", "effective_rank"]
    try:
        main(["evaluate", str(tmp_path / "run"), *use, "--evaluate.effective_rank.samples", "64", "--device", "cpu"])
    finally:
        evaluators.parts.pop("effective_rank", None)
    rank = Record.read(tmp_path / "run").figures["effective_rank"]
    assert 1 < rank < 64
    assert f"effective_rank: effective_rank {rank:.1f}" in capsys.readouterr().out
