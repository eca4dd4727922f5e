"""`mmm runs` and `mmm report`: the table and the page of runs, from their folders."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmm.config.serialize import save
from mmm.decoders import CrossAttentionDecoder
from mmm.evaluate.run_results import Record
from mmm.train.run.lock import RunLock
from recipes.image_mae import DEMO, IMAGENET
from tasks import report, runs


def make_run(folder: Path, steps: int, *, planned: int = 4, psnr: float | None = None, **parts: Any) -> Path:
    """Writes the folder of a run after some updates."""
    (folder / "pictures").mkdir(parents=True)
    save(replace(DEMO, train=replace(DEMO.train, steps=planned), **parts), folder / "config.yaml")
    lines = [{"step": step, "epoch": step / 45, "loss": 1.0 / step, "grad_norm": None} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if psnr is not None:
        found = {"kind": "reconstruction", "step": steps, "figures": {"psnr": psnr}}
        (folder / "evaluations.jsonl").write_text(json.dumps(found) + "\n")
    Image.new("RGB", (6, 4), (10, 20, 30)).save(folder / "pictures" / "reconstruction_00000002.png")
    Image.new("RGB", (6, 4), (90, 20, 30)).save(folder / "pictures" / "reconstruction_00000004.png")
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    first = make_run(tmp_path / "runs" / "first", 4, psnr=17.25)
    crossed = CrossAttentionDecoder.Config(width=64, depth=2, heads=4)
    return first, make_run(tmp_path / "runs" / "deep" / "second", 2, psnr=18.5, decoder=crossed)


def test_the_table_has_each_run_with_its_state_and_figures(two: tuple[Path, Path], capsys: Any) -> None:
    lock = RunLock(two[1])
    root = two[0].parent
    found = {Path(row["run"]).name: row for row in runs.run(runs.Config(folder=str(root)))["runs"]}
    assert (found["first"]["state"], found["second"]["state"]) == ("finished", "running")
    lock.release()
    (root / "first" / "broken").mkdir()  # a folder inside a run is not another run
    (root / "other").mkdir()
    (root / "other" / "config.yaml").write_text("a: 1\n")
    found = {Path(row["run"]).name: row for row in runs.run(runs.Config(folder=str(root), sort="psnr"))["runs"]}
    assert list(found) == ["second", "first"]
    assert found["second"]["state"] == "stopped"
    assert (found["second"]["step"], found["second"]["planned"]) == (2, 4)
    assert found["first"]["figures"] == {"loss": 0.25, "psnr": 17.25}
    shown = capsys.readouterr().out
    assert "17.25 dB" in shown
    assert re.search(r"second .* stopped +2/4 +cross_attention", shown)
    assert "all: patches random vit pixels" in shown
    with pytest.raises(ValueError, match="no run has this figure; did you mean 'psnr'"):
        runs.run(runs.Config(folder=str(root), sort="psnrr"))
    with pytest.raises(ValueError, match="holds no run"):
        runs.run(runs.Config(folder=str(root / "first" / "pictures")))


def test_the_planned_updates_follow_from_epochs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    save(replace(IMAGENET, train=replace(IMAGENET.train, epochs=2)), folder / "config.yaml")
    assert Record.read(folder).planned == 90  # 45 updates per epoch
    (folder / "metrics.jsonl").unlink()
    assert Record.read(folder).planned is None
    assert Record.read(folder).state == "stopped"
    (folder / "result.json").write_text('{"classes": ["a"], "exact": {"top1": 0.75, "penalty": 0.1}}')  # a fit without updates
    assert Record.read(folder).state == "finished"
    assert Record.read(folder).figures == {"exact_top1": 0.75}


def test_the_report_is_one_page_with_curves_pictures_and_differences(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = report.run(report.Config(runs=(str(two[0]), str(two[1])), out=str(tmp_path / "page.html")))
    text = (tmp_path / "page.html").read_text()
    assert "{{" not in text
    assert not re.search(r"(src|href)=(?!\"data:)", text), "it needs another file"
    curves = json.loads(re.search(r'id="curves">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    (loss,) = [curve for curve in curves if curve["name"] == "loss"]
    assert [(line["name"], line["steps"], line["values"]) for line in loss["lines"]] == [
        ("first", [1, 2, 3, 4], [1.0, 0.5, 1 / 3, 0.25]),
        ("second", [1, 2], [1.0, 0.5]),
    ]
    assert [Path(picture).name for picture in found["pictures"]] == ["reconstruction_00000004.png"] * 2  # the newest
    assert "<td>decoder.name<td>self_attention<td>cross_attention" in text
    assert "the runs have different numbers of updates" in text
    assert "18.50 dB" in text


def test_the_report_of_one_run_lies_in_its_folder_and_holds_no_markup_of_others(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<b>run", 2)
    (folder / "metrics.jsonl").write_text('{"step": 1, "</script><i>": 1.0}\n{"step": 2, "</script><i>": 2.0}\n')
    found = report.run(report.Config(runs=(str(folder),)))
    assert found["page"] == str(folder / "report.html")
    text = (folder / "report.html").read_text()
    assert "<b>run" not in text
    assert "</script><i>" not in text
    assert text.count("</script>") == 2
    with pytest.raises(ValueError, match="give one or more folders"):
        report.run(report.Config())
    with pytest.raises(ValueError, match="is not a run folder"):
        report.run(report.Config(runs=(str(tmp_path),)))


@pytest.mark.slow
def test_a_browser_draws_the_curves_and_reads_them(two: tuple[Path, Path], tmp_path: Path) -> None:
    """The curves work at two widths, in both colour schemes, and with the keyboard."""
    import shutil

    sync_api = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium")
    if browser_path is None:
        pytest.skip("chromium is not installed")
    report.run(report.Config(runs=(str(two[0]), str(two[1])), out=str(tmp_path / "page.html")))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for scheme, width in (("light", 1200), ("dark", 420)):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            mistakes: list[str] = []
            page.on("pageerror", lambda error, mistakes=mistakes: mistakes.append(str(error)))
            page.goto(f"file://{tmp_path / 'page.html'}")
            figure = page.locator("figure[data-curve]").first
            figure.locator("svg").focus()
            page.keyboard.press("Home")
            assert "loss, update 1: " in figure.locator("figcaption").inner_text()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert not mistakes
        browser.close()
