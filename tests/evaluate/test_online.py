"""Nearest neighbours during a training are in the metrics, are off by default, and equal those at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmm
from mmm.config.serialize import load
from mmm.data import open_data
from mmm.evaluate.features.frozen_eval import FeatureEvalConfig, evaluate_features
from mmm.evaluate.features.online_knn import OnlineKnn
from mmm.evaluate.run_results import Record
from tasks import pretrain

Run = Callable[..., dict[str, object]]
SMALL = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2")
KNN = ("--evaluate", "knn", "--evaluate.knn.train_samples", "60", "--evaluate.knn.test_samples", "30", "--evaluate.knn.k", "5")


def test_accuracy_is_in_the_metrics_and_is_that_of_the_end(run_recipe: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_recipe("image_mae", *SMALL, *KNN, "--evaluate.knn.every", "2", "--train.steps", "5", "--folder", str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "knn_top1" in line] == [2, 4, 5]
    assert Record.read(run).series("knn_top1")[0] == [2, 4, 5]
    assert (run / "pictures" / "loss.png").is_file()
    data = load(pretrain.Config, run / "config.yaml").data
    judged = FeatureEvalConfig(k=5, train_samples=60, test_samples=30, raw_pixels=False)
    found = evaluate_features(
        {"own": mmm.load(run)}, open_data(data, "train"), open_data(data, "eval"), judged, device=torch.device("cpu")
    )
    assert result["knn_top1"] == found["neighbours"]["own"]["top1"]


def test_asking_changes_nothing_of_the_training(run_recipe: Run, tmp_path: Path) -> None:
    plain = run_recipe("image_mae", *SMALL, "--encoder.drop_path", "0.3", "--train.steps", "4", "--folder", str(tmp_path / "a"))
    asked = run_recipe(
        "image_mae",
        *SMALL,
        "--encoder.drop_path",
        "0.3",
        "--train.steps",
        "4",
        *KNN,
        "--evaluate.knn.every",
        "1",
        "--folder",
        str(tmp_path / "b"),
    )
    assert "knn_top1" not in plain
    assert plain["loss"] == asked["loss"]


def test_without_labels_it_is_refused(run_recipe: Run, tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    source = ("--data.source", str(tmp_path), "--data.holdout", "0.5", "--data.eval_split", "none", "--data.channels", "3")
    with pytest.raises(SystemExit):
        run_recipe("image_mae", *SMALL, *KNN, *source, "--data.mean", "0.5", "0.5", "0.5", "--data.std", "1", "1", "1")
    with pytest.raises(ValueError, match=r"evaluate\.knn\.k 0"):
        OnlineKnn.Config(k=0)
