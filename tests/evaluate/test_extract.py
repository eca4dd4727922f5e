"""Files of features contain each input once, also after a stop or from two processes, and can be classified."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, load_recipe, reset_accelerate
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file
from torch import Tensor
from video_files import write

import mmm
from mmm.config.cli import main as cli
from mmm.data import ImagesConfig, open_data, open_images
from mmm.data.decode.video import read_clip
from mmm.data.transforms.crop import normalise
from mmm.evaluate.features.store import Store, read_features
from mmm.evaluate.loaded_model import LoadedModelConfig, load_model
from mmm.train.config import TrainConfig
from tasks import extract
from tasks.__main__ import run_task

PARTS = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2", "--decoder.width", "16", "--decoder.heads", "2")
STEPS = ("--train.steps", "2", "--train.warmup_steps", "0", "--train.batch_size", "4", "--train.precision", "fp32")
SHORT = (*STEPS, "--decoder.depth", "1", "--data.workers", "0", "--evaluate")
CLIPS = ("--data.image_size", "16", "--data.frames", "4", "--data.stride", "2", "--tokenizer.size", "4")
CPU = ("--device", "cpu", "--batch_size", "4")


def ask(argv: list[str]) -> dict[str, Any]:
    """Runs a task as `mmm TASK ...` does, and returns its result."""
    return run_task(argv[0], argv[1:])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes twenty-four real tiles in four classes, and two files that are not images."""
    folder = tmp_path_factory.mktemp("tiles")
    images = open_images(ImagesConfig(source="builtin:photographs", channels=1, mean=(0.5,), std=(0.25,)), "eval")
    for place in range(0, 240, 10):
        path = folder / f"class{int(images.labels()[place])}" / f"{place:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images.read(place)[..., 0]).save(path)
    (folder / "class0" / "005.png").write_bytes(b"no picture")
    (folder / "class3" / "999.png").write_bytes(b"")
    return folder


def train(recipe: str, folder: Path, *flags: str) -> Path:
    made = load_recipe(recipe)
    argv = ["--preset", next(name for name in ("demo", "kinetics") if name in made.PRESETS), *SHORT, *PARTS, *flags]
    cli(made.pretrain.run, presets=made.PRESETS, doc="", argv=[*argv, "--folder", str(folder)])
    reset_accelerate()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a short run on images. Tests must not write to it."""
    data = ("--data.source", "builtin:photographs", "--data.image_size", "16", "--tokenizer.size", "4")
    return train("image_mae", tmp_path_factory.mktemp("run") / "images", *data)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes six videos of two classes, and returns their folder."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(6):
        label = root / ("left", "right")[i % 2]
        label.mkdir(exist_ok=True)
        write(label / f"{i}.mp4", count=12 + i, size=(24, 32))
    return root


@pytest.fixture(scope="module")
def video_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a short run on clips. Tests must not write to it."""
    data = ("--data.source", str(videos), "--data.holdout", "0.4", "--data.eval_split", "none")
    return train("video_mae", tmp_path_factory.mktemp("run") / "clips", *data, *CLIPS)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    yield
    reset_accelerate()


def plain_loop(run: Path, tiles: Path) -> tuple[list[int], dict[str, Tensor]]:
    """Encodes one image at a time. Returns the indices, and the mean tokens of the last layer and of block 1."""
    model = mmm.load(run).eval()
    own = load_model(LoadedModelConfig(model=str(run), device="cpu")).data
    data = replace(own, source=str(tiles), split="train", eval_split=None, holdout=0.0, workers=0)
    images, index, found = open_data(data, "train"), [], {"last": [], "block_1": []}
    for place in range(len(images)):
        pixels, failed = images.eval_views(torch.tensor([place]))
        if not failed:
            x = normalise(pixels, data.mean, data.std)
            with torch.no_grad():
                features = model.encoder(model.tokenizer.split(x), model.tokenizer.grid(x), None, blocks=(1,))
            index.append(place)
            found["last"].append(features.tokens.mean(1)[0])
            found["block_1"].append(features.blocks[1][0, 1:].mean(0))
    return index, {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_file_holds_every_readable_input_once(suffix: str, run: Path, tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"features.{suffix}"
    flags = ("--layers", "last", "1", "--shard", "7", "--out", str(out))
    found = ask(["extract", str(run), "--source", str(tiles), *flags, *CPU])
    index, expected = plain_loop(run, tiles)
    assert (found["inputs"], found["rows"], len(index)) == (26, 24, 24)
    assert sorted(Path(problem["name"]).name for problem in found["problems"]) == ["005.png", "999.png"]
    file = read_features(out)
    for name, table in file.tables.items():
        assert table.index.tolist() == index
        torch.testing.assert_close(table.values, expected[name], atol=1e-5, rtol=1e-5)
        assert [f"class{label}" for label in table.labels.tolist()] == [Path(name).parent.name for name in file.names]
    assert set(file.tables) == {"last", "block_1"}
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.json"}
    if suffix == "parquet":
        table = parquet.read_table(out)
        assert table.column_names == ["index", "name", "label", "block_1", "last"]
        assert table["name"].to_pylist() == file.names
    else:
        assert set(load_file(out)) == {"index", "label", "block_1", "last"}


def test_all_tokens_are_kept_where_they_are_asked_for(run: Path, tiles: Path, tmp_path: Path) -> None:
    for suffix in ("safetensors", "parquet"):
        out = tmp_path / f"tokens.{suffix}"
        ask(["extract", str(run), "--source", str(tiles), "--pooling", "tokens", "--out", str(out), *CPU])
    tokens = load_file(tmp_path / "tokens.safetensors")["last"]
    assert tokens.shape == (24, 17, 24)
    torch.testing.assert_close(tokens[:, 1:].mean(1), plain_loop(run, tiles)[1]["last"], atol=1e-5, rtol=1e-5)
    flat = torch.tensor(parquet.read_table(tmp_path / "tokens.parquet")["last"].to_pylist())
    assert torch.equal(flat.view(24, 17, 24), tokens)
    with pytest.raises(ValueError, match="holds all tokens"):
        read_features(tmp_path / "tokens.parquet")
    out = tmp_path / "class.safetensors"
    ask(["extract", str(run), "--source", str(tiles), "--pooling", "class", "--out", str(out), *CPU])
    torch.testing.assert_close(load_file(out)["last"], tokens[:, 0], atol=1e-6, rtol=1e-5)


def test_stopped_between_shards_and_resumed_is_never_stopped(
    run: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    argv = ["extract", str(run), "--source", str(tiles), "--shard", "5", *CPU]
    ask([*argv, "--out", str(one)])
    writes, write_shard = [], Store.write

    def stop_at_third(store: Store, number: int, *shard: Any) -> None:
        if len(writes) == 2:
            raise KeyboardInterrupt
        writes.append(number)
        write_shard(store, number, *shard)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stop_at_third)
        with pytest.raises(SystemExit):
            ask([*argv, "--out", str(two)])
    parts = tmp_path / "two.safetensors.parts"
    assert {path.name for path in parts.iterdir()} == {"identity.json", "00000.safetensors", "00001.safetensors"}
    assert not two.exists()
    capsys.readouterr()
    for wrong, said in ((["--pooling", "class"], "features.pooling was mean, is class"), (["--shard", "6"], "shard was 5, is 6")):
        with pytest.raises(SystemExit):
            ask([*argv, "--out", str(two), *wrong])
        assert said in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda store, number, *shard: (writes.append(number), write_shard(store, number, *shard)))
        ask([*argv, "--out", str(two)])
    assert writes == [0, 1, 2, 3, 4, 5]
    assert one.read_bytes() == two.read_bytes()
    assert not parts.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stop_at_third)  # a finished file is not touched
        assert ask([*argv, "--out", str(two)])["rows"] == 24


def test_another_model_or_source_is_refused(run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features.safetensors"
    ask(["extract", str(run), "--source", str(tiles), "--out", str(out), *CPU])
    before = out.read_bytes()
    fewer = shutil.copytree(tiles, tmp_path / "fewer")
    (fewer / "class0" / "000.png").unlink()
    capsys.readouterr()
    others = {"weights": (str(run / "config.yaml"), str(tiles)), "data.fingerprint": (str(run), str(fewer))}
    for said, (model, source) in others.items():
        with pytest.raises(SystemExit):
            ask(["extract", model, "--source", source, "--out", str(out), *CPU])
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--layers", "3"), "has 2 blocks"),
        (("--layers", "first"), "layers first"),
        (("--shard", "0"), "shard 0"),
        (("--out", "features.npy"), "the name of a file of features ends in"),
    ],
)
def test_what_is_wrong_is_one_line(
    flags: tuple[str, ...], said: str, run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ask(["extract", str(run), "--source", str(tiles), "--out", str(tmp_path / "a.parquet"), *flags, *CPU])
    error = capsys.readouterr().err
    assert said in error
    assert not (tmp_path / "a.parquet").exists()


def test_views_of_clips_are_averaged_or_kept_apart(video_run: Path, videos: Path, tmp_path: Path) -> None:
    argv = ["extract", str(video_run), "--source", str(videos), "--eval_clips", "2", "--eval_crops", "3", "--workers", "0", *CPU]
    for name, views in (("mean.parquet", "mean"), ("all.parquet", "all"), ("all.safetensors", "all")):
        ask([*argv, "--views", views, "--shard", "4", "--out", str(tmp_path / name)])
    every = parquet.read_table(tmp_path / "all.parquet")
    assert every["index"].to_pylist() == [i for i in range(6) for _ in range(6)]
    assert every["view"].to_pylist() == list(range(6)) * 6
    mean, apart = (read_features(tmp_path / name).tables["last"] for name in ("mean.parquet", "all.safetensors"))
    assert mean.values.shape == (6, 24)
    torch.testing.assert_close(apart.values, mean.values, atol=1e-6, rtol=1e-5)
    model = mmm.load(video_run).eval()
    views = LoadedModelConfig(model=str(video_run), source=str(videos), eval_clips=2, eval_crops=3, device="cpu")
    data = replace(load_model(views).data, holdout=0.0)
    pixels, _ = open_data(data, "train").eval_views(torch.tensor([4]))
    with torch.no_grad():
        expected = model.encode(normalise(pixels, data.mean, data.std)).tokens.mean((0, 1))
    torch.testing.assert_close(mean.values[4], expected, atol=1e-5, rtol=1e-5)


def test_knn_on_files_is_knn_on_the_model(run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--source", str(tiles), "--holdout", "0.3")
    for part in ("train", "eval"):
        out = str(tmp_path / f"{part}.safetensors")
        ask(["extract", str(run), *data, "--test_split", part, "--layers", "last", "1", "--out", out, *CPU])
    files = ["--features", str(tmp_path / "train.safetensors"), "--test_features", str(tmp_path / "eval.safetensors")]
    few = ("--k", "3", "--labels_per_class", "3")
    found = ask(["knn", *files, *few, "--out", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    whole = ask(["knn", str(run), *data, *few, *CPU, "--out", str(tmp_path / "whole.json")])
    for kind in ("neighbours", "linear"):
        assert set(found[kind]) == {"last", "block_1"}
        assert found[kind]["last"] == whole[kind]["trained"]
    assert (found["train"], found["test"], found["classes"]) == (whole["train"], whole["test"], whole["classes"])
    capsys.readouterr()
    wrong = {
        "go together": files[:2],
        "leave out --model": [*files, "--model", str(run)],
        "the same samples": [*files[:3], files[1]],
        "not a file of features": ["--features", "none.parquet", "--test_features", "none.parquet"],
    }
    for said, flags in wrong.items():
        with pytest.raises(SystemExit):
            ask(["knn", *flags])
        assert said in capsys.readouterr().err


TOGETHER = """
import os, sys
from torch import multiprocessing
from tasks.__main__ import main

def part(rank, port, argv):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    main(argv)

if __name__ == "__main__":
    multiprocessing.start_processes(part, (sys.argv[1], sys.argv[2:]), nprocs=2, start_method="fork")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="starts its processes by fork")
@pytest.mark.slow
def test_two_processes_write_what_one_does(run: Path, tiles: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    argv = ["extract", str(run), "--source", str(tiles), "--shard", "4", *CPU]
    ask([*argv, "--out", str(tmp_path / "one.parquet")])
    together = [*argv, "--out", str(tmp_path / "two.parquet")]
    subprocess.run([sys.executable, "-c", TOGETHER, port, *together], cwd=REPOSITORY, check=True, timeout=300)
    one, two = (read_features(tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert one.table.index.tolist() == two.table.index.tolist()
    assert one.names == two.names
    assert one.table.problems == two.table.problems
    torch.testing.assert_close(one.table.values, two.table.values, atol=1e-6, rtol=1e-5)


def test_processes_wait_for_each_other_as_long_as_a_shard_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with fewer shards waits at the end for the others, which may need hours; a training waits for ten minutes."""

    def start(config: TrainConfig) -> None:
        raise InterruptedError(config.timeout)

    monkeypatch.setattr(extract, "start", start)
    with pytest.raises(InterruptedError) as ended:
        extract.run(extract.Config(model="model"))
    assert ended.value.args[0] >= 24 * 3600 > 100 * TrainConfig.timeout


def test_a_file_of_the_held_out_part_says_so(run: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 13, point 21: 1 image of 29 was exported without a message."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    saved = (own / "config.yaml").read_text()
    saved = re.sub(r"source: builtin:photographs", f"source: {tiles}", saved)
    (own / "config.yaml").write_text(re.sub(r"eval_split: \w+", "eval_split: null", saved))
    found = ask(["extract", str(own), "--holdout", "0.1", "--out", str(tmp_path / "f.safetensors"), *CPU])
    said = capsys.readouterr().out
    assert found["inputs"] == 3
    assert f"of 3 inputs of {tiles}, train (held out)" in said
    assert "only this part was read: 23 inputs of the split are in the other one, --test_split train" in said


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_sliding_windows_have_a_row_and_a_time_each(
    suffix: str, video_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, count in (("long", 100), ("short", 5)):
        write(videos / f"{name}.mp4", count=count, size=(24, 32))
    (videos / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / f"windows.{suffix}"
    flags = ("--source", str(videos), "--holdout", "0.0", *CPU)
    found = ask(["extract", str(video_run), "--every", "0.5", "--shard", "4", "--out", str(out), *flags])
    starts = [round(0.5 * number * 30) for number in range(7)]  # the last window that fits has frames 90 to 96
    assert (found["rows"], [Path(problem["name"]).name for problem in found["problems"]]) == (8, ["broken.mp4"])
    file = read_features(out)
    assert [Path(name).stem for name in file.names] == ["long"] * 7 + ["short"]
    columns = load_file(out) if suffix == "safetensors" else parquet.read_table(out).to_pydict()
    assert torch.as_tensor(columns["time"]).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 0.0]
    model = mmm.load(video_run).eval()
    config = load_model(LoadedModelConfig(model=str(video_run), device="cpu")).data
    frames = [[start + 2 * place for place in range(4)] for start in starts]
    numbers = [number for clip in frames for number in clip]
    pixels = read_clip(videos / "long.mp4", numbers, size=16, channels=1)  # (7 T, h, w, C)
    left = (pixels.shape[2] - 16) // 2
    clips = torch.from_numpy(pixels[:, :, left : left + 16]).unflatten(0, (7, 4)).permute(0, 4, 1, 2, 3)  # (7, C, T, h, w)
    x = normalise(clips, config.mean, config.std)
    with torch.no_grad():
        expected = model.encoder(model.tokenizer.split(x), model.tokenizer.grid(x), None).tokens.mean(1)
    torch.testing.assert_close(file.tables["last"].values[:7], expected, atol=1e-5, rtol=1e-5)
    capsys.readouterr()
    ask(["extract", str(video_run), "--out", str(tmp_path / f"middle.{suffix}"), *flags])
    assert "the clips cover 9.7% of the videos, which last 2 s on average; --every 2.0" in capsys.readouterr().out
