"""The nearest samples of a query are found by any layer, from a model or a file of features, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import reset_accelerate
from PIL import Image
from test_extract import CPU, ask, run, tiles, video_run, videos  # noqa: F401 (fixtures)

from mmm.data import ImagesConfig, open_images
from mmm.evaluate.features.retrieval import FeatureIndex, nearest, retrieve
from mmm.evaluate.features.table import FeatureTable
from mmm.evaluate.plots.image_grid import MARGIN


def test_nearest_is_by_cosine_and_never_oneself() -> None:
    bank = torch.randn(40, 8) * torch.rand(40, 1) * 5
    rows, cosines = nearest(bank[[3, 17]], bank, 5, own=torch.tensor([3, 17]))
    for query, (row, cosine) in zip((3, 17), zip(rows, cosines, strict=True), strict=True):
        wanted = torch.stack([torch.cosine_similarity(bank[query], other, dim=0) for other in bank])
        wanted[query] = -2
        assert torch.allclose(cosine, wanted.topk(5).values, atol=1e-6)
        assert row.tolist() == wanted.topk(5).indices.tolist()
    assert nearest(bank[:1], bank[:3], 9, own=torch.tensor([0]))[0].shape == (1, 2)
    assert nearest(bank[:1], bank[:3], 9)[0][0, 0] == 0


def test_the_share_of_the_same_class_counts_labelled_queries(tiles: Path) -> None:  # noqa: F811
    images = open_images(ImagesConfig(source=str(tiles), image_size=16, holdout=0.0, workers=0), "train")
    values = torch.eye(4).repeat(2, 1) + 0.01 * torch.arange(8.0)[:, None]
    index = FeatureIndex(images, FeatureTable(values, torch.tensor([0, 1, 2, 3, 0, 1, 0, -1]), torch.arange(8), []))
    own = torch.arange(8)
    found = retrieve(index, index, 1, own=own)
    assert [query["neighbours"][0]["row"] for query in found["queries"]] == [4, 5, 6, 7, 0, 1, 2, 3]
    assert found["same_class"] == pytest.approx(4 / 7)
    assert found["queries"][7]["label"] is None
    with pytest.raises(ValueError, match="too few"):
        retrieve(index.take(own[:1]), index.take(own[:1]), 1, own=own[:1])


def test_a_copy_is_found_and_shown(run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """Each query, from another folder, is the copy of a tile."""
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    copied = sorted(tiles.rglob("*0.png"))[2:4]
    for path in copied:
        (wanted / f"copy-of-{path.name}").write_bytes(path.read_bytes())
    out = tmp_path / "new" / "found.png"
    argv = ["retrieve", str(run), "--source", str(tiles), "--queries", str(wanted), "--k", "3", "--out", str(out), *CPU]
    found = ask(argv)
    for query, path in zip(found["queries"], copied, strict=True):
        first = query["neighbours"][0]
        assert Path(first["name"]).name == path.name
        assert first["similarity"] == pytest.approx(1, abs=1e-5)
        assert first["label"] == path.parent.name
        similarities = [near["similarity"] for near in query["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)
    assert json.loads(out.with_suffix(".json").read_text()) == found
    assert "copy-of" in capsys.readouterr().out
    pixels = np.asarray(Image.open(out).convert("RGB"))
    side = 16 * round(168 / 16)
    top = next(row for row in range(60, 200) if (pixels[row, MARGIN : MARGIN + side] != 255).any())
    query, copy = (pixels[top + 12 : top + side, left : left + side] for left in (MARGIN, MARGIN + side + 6))
    assert np.array_equal(query, copy)  # the query is on the left, and its nearest sample beside it


def test_a_file_of_features_gives_what_the_model_does(
    run: Path,  # noqa: F811
    tiles: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    features, out = str(tmp_path / "features.parquet"), str(tmp_path / "a.png")
    ask(["extract", str(run), "--source", str(tiles), "--layers", "last", "1", "--out", features, *CPU])
    reset_accelerate()
    argv = ["retrieve", str(run), "--source", str(tiles), "--layer", "1", "--samples", "3", "--k", "2", "--out", out, *CPU]
    found = ask(argv)
    again = ask([*argv, "--features", features])
    assert len(found["queries"]) == 3
    for one, two in zip(found["queries"], again["queries"], strict=True):
        assert [near["name"] for near in one["neighbours"]] == [near["name"] for near in two["neighbours"]]
        assert one["name"] not in [near["name"] for near in one["neighbours"]]
    capsys.readouterr()
    wrong = {
        "holds block_1, last": [*argv, "--features", features, "--layer", "2"],
        "was extracted with mean": [*argv, "--features", features, "--pooling", "class"],
        "weights": [argv[0], str(run / "config.yaml"), *argv[2:], "--features", features],
        "a whole number of at least 1": [*argv, "--k", "0"],
    }
    for said, flags in wrong.items():
        with pytest.raises(SystemExit):
            ask(flags)
        assert said in capsys.readouterr().err


def test_clips_are_retrieved_too(video_run: Path, videos: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "clips.png"
    found = ask(["retrieve", str(video_run), "--source", str(videos), "--samples", "2", "--k", "2", "--out", str(out), *CPU])
    assert [len(query["neighbours"]) for query in found["queries"]] == [2, 2]
    assert {query["label"] for query in found["queries"]} <= {"left", "right"}
    assert Image.open(out).size[0] > 3 * 160
