"""Experiment trackers, in their offline modes, get one project, one run across resumes, numbers, config and pictures."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmm.evaluate.reconstruction.video import animate
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.trackers import Tracker, check_tracker, log_picture, read_options

CONFIG = TrainConfig(steps=2, batch_size=1, learning_rate=1.0, precision="fp32")
FLAT = {"train.betas": [0.9, 0.999], "train.steps": 3, "name": None}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "SWANLAB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def draw(folder: Path, step: int) -> None:
    """Writes a still picture, and the animations that a run of clips writes."""
    pytest.importorskip("av")
    path = folder / "pictures" / f"reconstruction_{step}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 10 * step, np.uint8)).save(path)
    animate([("original", torch.linspace(0, 1, 3).view(1, 1, 3, 1, 1).expand(1, 3, 3, 8, 8))], path, title="clips")


def check_gif(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as found:
        assert (found.format, found.n_frames, found.info["duration"]) == ("GIF", 3, 120)  # 125 ms, in hundredths of a second


def run_twice(name: str, folder: Path, *options: str) -> str:
    """Tracks a run that is stopped after step 2 and resumed, and returns its id, which is the same both times."""
    pytest.importorskip(name)
    known = ""
    folder.mkdir()
    for step in (1, 3):
        accelerator = start(CONFIG)
        tracker = Tracker(accelerator, name, folder, FLAT, options=options, step=step - 1)
        draw(folder, step)
        tracker.log({"loss": 1.0 / step}, step)
        tracker.log({"loss": 1.0 / (step + 1)}, step + 1)
        tracker.log_pictures(step + 1)
        accelerator.end_training()
        record = json.loads((folder / "tracker.json").read_text())
        known = known or record[name]
        assert record[name] == known  # the second start continues the run of the first
    return known


def test_tensorboard_gets_numbers_and_pictures(tmp_path: Path) -> None:
    run_twice("tensorboard", tmp_path / "mine")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted((tmp_path / "mine" / "mine").glob("events.out.tfevents.*"))
    assert files, list(tmp_path.rglob("events*"))
    read = EventAccumulator(str(tmp_path / "mine" / "mine"))
    read.Reload()
    assert [(one.step, round(one.value, 4)) for one in read.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25)]
    images = read.Images("pictures/reconstruction")
    assert [one.step for one in images] == [1, 3]
    assert images[0].encoded_image_string == (tmp_path / "mine" / "pictures" / "reconstruction_1.png").read_bytes()
    moving = read.Images("pictures/reconstruction.gif")
    assert [one.step for one in moving] == [1, 3]
    check_gif(moving[1].encoded_image_string)


def test_mlflow_has_one_run(tmp_path: Path) -> None:
    known = run_twice("mlflow", tmp_path / "mine", "project=cells")
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cells")
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [known]
    run = client.get_run(known)
    assert run.info.run_name == "mine"
    assert run.data.params["train.steps"] == "3"
    assert [(one.step, one.value) for one in client.get_metric_history(known, "loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.25),
    ]
    names = {Path(one.path).name for one in client.list_artifacts(known, "pictures")}
    assert names == {f"reconstruction_{step}.{kind}" for step in (1, 3) for kind in ("png", "webp", "mp4")}


def test_wandb_has_one_run(tmp_path: Path) -> None:
    known = run_twice("wandb", tmp_path / "mine", "project=cells", "tags=[a, b]")
    folders = sorted((tmp_path / "mine" / "wandb").glob(f"offline-run-*-{known}"))
    assert len(folders) == 2, folders  # one folder per start, with the same id
    pictures = [path.suffix for folder in folders for path in (folder / "files" / "media").rglob("*.*")]
    assert pictures.count(".png") == 2
    assert pictures.count(".mp4") == 2


def test_trackio_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    known = run_twice("trackio", tmp_path / "mine", "project=cells")
    runs = list(trackio.Api().runs("cells"))
    assert [run.name for run in runs] == [known]


def test_swanlab_starts_and_resumes(tmp_path: Path) -> None:
    run_twice("swanlab", tmp_path / "mine", "project=cells", "mode=offline")
    assert any((tmp_path / "mine" / "swanlab").rglob("*")), "no files in the run folder"


def test_swanlab_gets_animations_as_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swanlab.Video takes only the path of a GIF file, and reads it at once."""
    seen: dict[str, tuple[str, bytes]] = {}
    monkeypatch.setitem(sys.modules, "swanlab", SimpleNamespace(Video=lambda path: (Path(path).suffix, Path(path).read_bytes())))
    draw(tmp_path, 1)
    for path in sorted((tmp_path / "pictures").glob("*_1.[wm]*")):
        log_picture("swanlab", SimpleNamespace(log=lambda found, step: seen.update(found)), path, 1)
    assert list(seen) == ["pictures/reconstruction.gif"]
    suffix, data = seen["pictures/reconstruction.gif"]
    assert suffix == ".gif"
    check_gif(data)


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    tracker = Tracker(start(CONFIG), None, tmp_path, FLAT)
    tracker.log({"loss": 1.0}, 1)
    tracker.log_pictures(1)
    assert list(tmp_path.iterdir()) == []


def test_options_are_read_or_refused() -> None:
    assert read_options(["project=cells", "tags=[a, b]", "offline=true", "notes="]) == {
        "project": "cells",
        "tags": ["a", "b"],
        "offline": True,
        "notes": None,
    }
    with pytest.raises(ValueError, match="train.tracker_options cells: give NAME=VALUE"):
        read_options(["cells"])
    for option in ("api_key=k3y", "settings={login: {password: k3y}}"):
        with pytest.raises(ValueError, match=r"must not hold a secret; set .* in the environment instead.* WANDB_API_KEY") as error:
            check_tracker("tensorboard", ["project=cells", option])
        assert "k3y" not in str(error.value)
    with pytest.raises(ValueError, match="without train.tracker"):
        check_tracker(None, ["project=cells"])


def test_the_options_reach_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = start(CONFIG)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(accelerator, "init_trackers", lambda project, **given: seen.update(project=project, **given))
    Tracker(accelerator, "tensorboard", tmp_path, FLAT, options=["flush_secs=7"])
    assert seen["init_kwargs"] == {"tensorboard": {"flush_secs": 7}}
    assert seen["config"] == {"train.betas": "[0.9, 0.999]", "train.steps": 3, "name": "None"}
