"""Tests of pretraining on real video files: recipes, resume, two processes, damaged files, and joint training with images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_recipe
from safetensors.torch import load_file
from test_recipes import launch
from video_files import write

import mmm
from mmm.config.cli import main as cli
from mmm.config.serialize import load
from tasks.__main__ import main

Run = Callable[..., dict[str, object]]
PARTS = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2", "--decoder.width", "16", "--decoder.heads", "2")
CLIPS = ("--data.image_size", "16", "--data.frames", "4", "--data.stride", "2", "--data.workers", "0", "--tokenizer.size", "4")
SMALL = (*PARTS, "--decoder.depth", "1", *CLIPS, "--train.precision", "fp32")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes twelve videos of two classes, and returns their folder."""
    root = tmp_path_factory.mktemp("videos")
    for label, codec in (("left", "libx264"), ("right", "mpeg4")):
        for i in range(6):
            (root / label).mkdir(exist_ok=True)
            write(root / label / f"{i}.mp4", codec, count=12 + i, size=(24, 32))
    return root


@pytest.mark.parametrize(("name", "preset"), [("video_mae", "kinetics"), ("video_crossmae", "ssv2"), ("video_mae", "ucf101")])
def test_a_recipe_trains_and_is_judged(name: str, preset: str, videos: Path, run_recipe: Run, tmp_path: Path) -> None:
    flags = ("--preset", preset, "--data.source", str(videos), "--data.holdout", "0.4", "--data.eval_clips", "2", *SMALL)
    judged = ("--evaluate", "masked_loss", "features", "reconstruction", "--evaluate.features.k", "3")
    judged += ("--evaluate.features.labels_per_class", "2")
    run = tmp_path / "run"
    result = run_recipe(name, *flags, *judged, "--train.steps", "3", "--folder", str(run))
    assert result["features"]["train"] == 7
    assert result["features"]["test"] == 5
    assert set(result["features"]["neighbours"]) == {"trained", "untrained", "raw_pixels"}
    assert result["reconstruction"]["samples"] == 5
    assert (run / "pictures" / "reconstruction_00000003.png").is_file()
    model = mmm.load(run)
    assert model.tokenizer.size == (2, 4, 4)
    assert model(torch.randn(2, 3, 4, 16, 16)).loss.isfinite()
    main(["knn", str(run), "--k", "3", "--labels_per_class", "2", "--eval_crops", "2", "--device", "cpu"])
    found = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert (found["kind"], found["test"]) == ("features", 5)
    assert not found["problems"]


def test_features_of_a_video_are_the_mean_of_its_views(videos: Path, run_recipe: Run, tmp_path: Path) -> None:
    from mmm.data import eval_batches
    from mmm.data.transforms.crop import normalise
    from mmm.evaluate.features.table import encoded, extract_features
    from mmm.evaluate.loaded_model import LoadedModelConfig, load_model, open_train

    run = tmp_path / "run"
    run_recipe("video_mae", "--preset", "kinetics", "--data.source", str(videos), *SMALL, "--folder", str(run))
    loaded = load_model(LoadedModelConfig(model=str(run), eval_clips=2, eval_crops=3, device="cpu"))
    clips = open_train(loaded.data)
    assert loaded.trained is not None
    table = extract_features(clips, {"mean": encoded(loaded.trained, "mean")}, device="cpu", batch_size=13)["mean"]
    assert table.index.tolist() == list(range(len(clips)))
    for batch in eval_batches(clips, loaded.data, batch_size=6):  # one video at a time
        assert len(batch) == 6
        x = normalise(batch.pixels, loaded.data.mean, loaded.data.std)
        with torch.no_grad():
            plain = torch.stack([loaded.trained.encode(view[None]).tokens.mean((0, 1)) for view in x]).mean(0)
        torch.testing.assert_close(table.values[batch.index[0]], plain, rtol=1e-4, atol=1e-5)


def test_stopped_in_an_epoch_and_resumed_is_never_stopped(videos: Path, run_recipe: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ("--preset", "kinetics", "--data.source", str(videos), *SMALL, "--data.repeats", "2", "--data.workers", "2")
    flags += ("--encoder.drop_path", "0.3", "--train.micro_batch_size", "4", "--train.steps", "5", "--train.save_every", "3")
    for folder in (one, two):
        run_recipe("video_mae", *flags, "--folder", str(folder))
    shutil.rmtree(two / "checkpoints" / "step_00000005")  # 3 updates of 8 samples of 4 videos: not the end of an epoch
    run_recipe("video_mae", *flags, "--folder", str(two), "--resume")
    for file in ("model", "optimizer"):
        a, b = (load_file(run / "checkpoints" / "step_00000005" / f"{file}.safetensors") for run in (one, two))
        assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_two_processes_are_one_run(videos: Path, tmp_path: Path) -> None:
    flags = ("--preset", "kinetics", "--data.source", str(videos), *CLIPS, "--train.batch_size", "8", "--train.steps", "3")
    flags += ("--encoder.drop_path", "0.2", "--data.holdout", "0.3", "--train.micro_batch_size", "4")
    one = launch(1, tmp_path / "one", *flags, recipe="video_mae")
    two = launch(2, tmp_path / "two", *flags, recipe="video_mae")
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6)
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
    assert one[-1]["held_out_loss"] == pytest.approx(two[-1]["held_out_loss"], rel=1e-4)


def damage(folder: Path, good: Path) -> set[str]:
    """Writes copies of a good file, each damaged in a different way, and returns their names."""
    import av
    import numpy as np

    content = bytearray(good.read_bytes())
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 100, encoding="utf-8")
    (folder / "zeros.mp4").write_bytes(bytes(len(content)))
    for place in range(len(content) // 3, len(content), 97):
        content[place] ^= 0xFF
    (folder / "flipped.mp4").write_bytes(content)
    with av.open(str(folder / "audio.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    return {"truncated.mp4", "empty.mp4", "text.mp4", "zeros.mp4", "flipped.mp4", "audio.mp4"}


def test_damaged_files_are_named_replaced_in_training_and_never_in_evaluation(
    real_data: Path, run_recipe: Run, tmp_path: Path
) -> None:
    """Training, evaluation and the scan find the same damaged files among real clips and damaged copies of one clip."""
    source = tmp_path / "clips"
    bad: set[str] = set()
    for split in ("train", "test"):
        for label in ("a", "b"):
            (source / split / label).mkdir(parents=True)
            shutil.copy(real_data / "clips" / "test.mp4", source / split / label / "good.mp4")
            shutil.copy(real_data / "clips" / "test.avi", source / split / label / "good.avi")
        bad = damage(source / split / "a", real_data / "clips" / "test.mp4")
        shutil.copy(real_data / "clips" / "corrupted.mp4", source / split / "b" / "corrupted.mp4")
    run = tmp_path / "run"
    flags = ("--preset", "kinetics", "--data.source", str(source), *SMALL, "--data.max_bad", "0.9", "--train.steps", "3")
    judged = ("--evaluate", "masked_loss", "features", "--evaluate.features.k", "1", "--evaluate.features.labels_per_class", "1")
    result = run_recipe("video_mae", *flags, *judged, "--folder", str(run))
    named = [json.loads(line)["name"] for line in (run / "bad_inputs.jsonl").read_text().splitlines()]
    assert len(named) == len(set(named))
    # corrupted.mp4 is damaged only after the frames that some clips read
    assert {name for name in named if "corrupted" not in name} == {
        f"{split}/a/{name}" for split in ("train", "test") for name in bad
    }
    features = result["features"]
    lost = [problem["name"] for problem in features["problems"]]
    assert features["train"] + features["test"] + len(lost) == 22  # unreadable files are not replaced by others
    assert {name for name in lost if "corrupted" not in name} == {name for name in named if "corrupted" not in name}
    assert all(problem["reason"] for problem in features["problems"])
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit, match="1"):  # there are unreadable inputs
        main(["scan", str(source), "--out", str(report)])
    scanned = json.loads(report.read_text())["splits"]
    found = {file["name"] for split in scanned.values() for file in split["files"]}
    assert found == {f"{split}/a/{name}" for split in ("train", "test") for name in bad} | {
        f"{split}/b/corrupted.mp4" for split in ("train", "test")
    }
    with pytest.raises(SystemExit):
        run_recipe("video_mae", *flags, "--data.max_bad", "0.1", "--folder", str(tmp_path / "strict"))


def test_the_dry_run_says_what_repeats_do(videos: Path, run_recipe: Run, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--preset", "kinetics", "--data.source", str(videos), "--data.holdout", "0.4", *SMALL, "--data.repeats", "4")
    run_recipe("video_mae", *flags, "--dry_run", "--train.steps", "7")
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()}
    assert shown["epochs"] == "2 of 28 samples"  # 5 of 12 videos are held out, so 7 remain
    assert shown["effective epochs"] == "8 samples of each of the videos; each is decoded 2 times"
    assert shown["inputs an update"] == "2, for 8 samples"
    assert shown["learning rate"] == "scaled by the samples of an update, repeats among them"


JOINT = ("--second.data.image_size", "16", "--second.data.workers", "0", "--second.data.repeats", "1", "--data.repeats", "1")


@pytest.fixture
def joint(videos: Path) -> tuple[str, ...]:
    sources = ("--data.source", str(videos), "--data.holdout", "0.4", "--second.data.source", "builtin:photographs")
    return ("--preset", "ssv2_imagenet", *sources, *SMALL, *JOINT)


def test_images_and_clips_in_one_training(joint: tuple[str, ...], run_recipe: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_recipe(
        "joint_mae",
        *joint,
        "--second.updates",
        "2",
        "1",
        "--train.steps",
        "6",
        "--evaluate",
        "masked_loss",
        "reconstruction",
        "--folder",
        str(run),
    )
    assert result["held_out_loss"] > 0
    assert result["held_out_loss_second"] > 0
    assert {path.name for path in (run / "pictures").iterdir()} == {
        "loss.png",
        *(f"{name}_00000006.{kind}" for name in ("reconstruction", "reconstruction_second") for kind in ("png", "webp", "mp4")),
    }
    saved = load_recipe("joint_mae").pretrain.Config
    assert load(saved, run / "config.yaml").second.updates == (2, 1)
    assert mmm.load(run).encoder.home == (2, 4, 4)


def test_two_sources_stopped_and_resumed_are_never_stopped(joint: tuple[str, ...], run_recipe: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    flags = (*joint, "--second.weight", "0.5", "--train.steps", "5", "--train.save_every", "2")
    for folder in (one, two):
        run_recipe("joint_mae", *flags, "--folder", str(folder))
    shutil.rmtree(two / "checkpoints" / "step_00000005")
    run_recipe("joint_mae", *flags, "--folder", str(two), "--resume")
    a, b = (load_file(run / "checkpoints" / "step_00000005" / "model.safetensors") for run in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_the_second_source_matters(joint: tuple[str, ...], run_recipe: Run, tmp_path: Path) -> None:
    """The weight and the masker of the second source change the loss."""
    plain = run_recipe("joint_mae", *joint, "--train.steps", "2", "--folder", str(tmp_path / "a"))
    for number, flags in enumerate((("--second.weight", "3"), ("--second.masker.ratio", "0.5"))):
        other = run_recipe("joint_mae", *joint, *flags, "--train.steps", "2", "--folder", str(tmp_path / f"{number}"))
        assert other["loss"] != plain["loss"]


def test_without_a_second_source_there_are_no_flags_of_it(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("video_mae")
    with pytest.raises(SystemExit):
        cli(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=["--preset", "kinetics", "--second.weight", "2"])
    assert "there is no flag --second.weight" in capsys.readouterr().err
