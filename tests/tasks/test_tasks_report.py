"""The table of runs and the report: what they say is what the folders hold, and a report needs no other file."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmm.evaluate.run_report import write_report
from mmm.evaluate.run_table import RunSummary, find_runs, format_runs
from tasks import report, runs


def make_run(folder: Path, name: str, *, steps: int = 4, rate: float = 0.1, made: int = 4) -> Path:
    """A run folder with the files that a training writes."""
    run = folder / name
    (run / "pictures").mkdir(parents=True)
    parts = "\n".join(
        f"{kind}: {{name: {part}}}" for kind, part in (("masker", "random"), ("encoder", "vit"), ("decoder", "linear"))
    )
    (run / "config.yaml").write_text(
        f"train: {{steps: {steps}, epochs: null, batch_size: 8, learning_rate: {rate}}}\n{parts}\nfolder: {run}\n"
    )
    lines = [{"step": step, "loss": 1 / step, "held_out_loss": 2 / step, "epoch": 1.0} for step in range(1, made + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["recipes/image_mae.py", "--folder", "<b>&", "--token", "hf_abcDEF0123456789"]
    (run / "environment.json").write_text(json.dumps([{"time": "2026-01-01", "command": command, "commit": "abc"}]))
    (run / "evaluations.jsonl").write_text(json.dumps({"kind": "knn", "step": made, "figures": {"knn_top1": 0.625}}) + "\n")
    Image.new("RGB", (8, 8), "red").save(run / "pictures" / "reconstruction.png")
    return run


class Sources(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_table_says_what_each_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path / "deeper", "b", made=2)
    broken = make_run(tmp_path, "c")
    (broken / "metrics.jsonl").write_text("no json\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.yaml").write_text("encoder: {name: vit}\n")
    found = runs.run(runs.Config(paths=(str(tmp_path),), out=str(tmp_path / "runs.json")))["runs"]
    assert [Path(row["run"]).name for row in found] == ["a", "c", "b"]
    first, bad, half = found
    assert (first["recipe"], first["parts"], first["steps"], first["state"]) == (
        "image_mae",
        "random vit linear",
        "4 of 4",
        "finished",
    )
    assert (first["loss"], first["figures"]) == ("0.5000", "knn_top1 0.625")
    assert (half["steps"], half["state"]) == ("2 of 4", "stopped")
    assert "no JSON" in bad["problem"] or "not JSON" in bad["problem"]
    assert json.loads((tmp_path / "runs.json").read_text()) == found
    assert "0.5000" in capsys.readouterr().out
    assert format_runs(found).count("\n") == 3
    with pytest.raises(ValueError, match="is no folder"):
        find_runs([str(tmp_path / "nowhere")])


def test_a_run_that_is_held_is_running(tmp_path: Path) -> None:
    from mmm.train.run.lock import RunLock

    run = make_run(tmp_path, "a", made=2)
    lock = RunLock(run)
    assert RunSummary.read(run).state.startswith("running: process")
    lock.release()
    assert RunSummary.read(run).state == "stopped"


def test_the_report_is_whole_and_needs_no_other_file(tmp_path: Path) -> None:
    made = [make_run(tmp_path, "a"), make_run(tmp_path, "b", rate=0.2)]
    path = report.run(report.Config(runs=tuple(map(str, made)), out=str(tmp_path / "report.html")))["report"]
    text = Path(path).read_text(encoding="utf-8")
    page = Sources()
    page.feed(text)
    assert page.loaded
    assert all(address.startswith("data:image/") for address in page.loaded)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    words = " ".join(page.text)
    assert "train.learning_rate" in words
    assert "0.625" in words
    assert "hf_abcDEF0123456789" not in text
    assert "b" not in page.tags  # a command is text, whatever is in it
    plots = [json.loads(value.replace("&quot;", '"')) for value in re.findall(r'data-values="([^"]*)"', text)]
    assert [plot["names"] for plot in plots] == [["a", "b"]] * 2
    assert plots[0]["series"][0] == [[1, 1.0], [2, 0.5], [3, 1 / 3], [4, 0.25]]
    assert page.tags.count("img") == 2


def test_the_report_of_one_run_lies_in_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", made=1)
    assert report.run(report.Config(runs=(str(run),)))["report"] == str(run / "report.html")
    assert "Nothing was logged yet" in (run / "report.html").read_text()
    with pytest.raises(ValueError, match="no run is named"):
        report.run(report.Config())


@pytest.mark.slow
def test_curves_are_read_off_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    chromium = shutil.which("chromium") or pytest.skip("no chromium here")
    path = write_report([RunSummary.read(make_run(tmp_path, "a"))], tmp_path / "report.html", title="A run")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in ((1200, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.goto(path.as_uri())
            page.hover(".plot svg >> nth=0", position={"x": page.locator(".plot svg").first.bounding_box()["width"] - 12, "y": 50})
            assert page.inner_text(".plot output >> nth=0") == "step 4: 0.25000"
            page.press(".plot svg >> nth=0", "Home")
            assert page.inner_text(".plot output >> nth=0") == "step 1: 1.0000"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
