"""The benchmark of the data path runs, writes its results, and compares equal pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.data import pipeline as data

pytest.importorskip("torchvision")


@pytest.mark.slow
def test_images_and_clips_are_measured(tmp_path: Path) -> None:
    few = ["--rounds", "1", "--files", "4", "--clips", "2", "--growth", "10", "--small"]
    found = data.main([*few, "--save", "--out", str(tmp_path)])
    assert {"500x375", "1600x1200"} == set(found["images"])
    whole, half = (found["images"][name]["difference"] for name in ("500x375", "1600x1200"))
    assert whole["decoded_at_one_in"] == 1
    assert whole["mean_absolute"] < 0.1
    assert half["decoded_at_one_in"] == 2
    assert abs(half["mean"]) < 0.1
    assert all(one["times_published"] > 0 for one in found["images"].values())
    (by_backend,) = found["clips"].values()
    assert by_backend["av"]["four"] > by_backend["av"]["one"] > 0
    (text,) = tmp_path.glob("*-data.md")
    assert "1600x1200" in text.read_text(encoding="utf-8")
    assert json.loads(text.with_suffix(".json").read_text(encoding="utf-8"))["growth"]["clips"] == 8
