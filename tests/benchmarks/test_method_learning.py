"""Runs the table of methods at equal time, with a training of a few updates per method."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.evaluate import method_learning


@pytest.mark.slow
def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    few = ["--minutes", "0.001", "--train_samples", "100", "--test_samples", "40", "--out", str(tmp_path)]
    argv = ["method_learning", "--videos", "--methods", "video_mae", "video_mae@transformers", *few]
    monkeypatch.setattr(sys, "argv", [*argv, "--seeds", "0"])
    method_learning.main()
    file = tmp_path / "methods_videos_0.001min.json"
    first = json.loads(file.read_text())
    monkeypatch.setattr(sys, "argv", [*argv, "--seeds", "0", "1"])
    method_learning.main()
    found = json.loads(file.read_text())
    assert len(found["baselines"]) == 2  # one encoder and two seeds
    for name in ("video_mae", "video_mae@transformers"):
        assert found["methods"][name]["0"] == first["methods"][name]["0"]
        assert found["methods"][name]["1"]["updates"] == first["methods"][name]["0"]["updates"]
        assert f"| `{name}` |" in file.with_suffix(".md").read_text()
