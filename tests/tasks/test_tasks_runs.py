"""Tasks on real runs: a recipe trains for two steps, then knn, reconstruct and compare read the run folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, load_recipe, reset_accelerate
from PIL import Image

from mmm import Input, MaskedModel, ModelConfig
from mmm.config.cli import main as run_main
from mmm.data import ImagesConfig, open_images
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.compare_runs import differing, format_comparison
from mmm.evaluate.loaded_model import LoadedModelConfig, load_model, model_config
from mmm.evaluate.plots.curves import draw_loss, draw_runs
from mmm.evaluate.reconstruction import gallery
from mmm.evaluate.run_results import Record, record
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from tasks import compare
from tasks.__main__ import main

SMALL = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2", "--decoder.depth", "1", "--decoder.width", "16")
PATCHES = ("--target.standardise", "patch")
SHORT = (
    "--preset",
    "demo",
    "--train.steps",
    "2",
    "--train.batch_size",
    "8",
    "--train.log_every",
    "1",
    "--train.evaluate_every",
    "1",
)
FEW = ("--test_samples", "12", "--labels_per_class", "5", "--device", "cpu")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a folder of 48 real tiles in four classes."""
    folder = tmp_path_factory.mktemp("tiles")
    images = open_images(ImagesConfig(source="builtin:photographs", channels=1, mean=(0.5,), std=(0.25,)), "eval")
    for place in range(0, 240, 5):  # sixty tiles per class, in order
        path = folder / str(int(images.labels()[place])) / f"{place}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images.read(place)[..., 0]).save(path)
    return folder


@pytest.fixture(scope="module")
def runs(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns four short runs of the MAE recipe, with two ratios and two seeds each; tests must not write to them."""
    folder, recipe = tmp_path_factory.mktemp("runs"), load_recipe("image_mae")
    data = ("--data.source", str(tiles), "--data.holdout", "0.3", "--data.eval_split", "none", "--evaluate", "masked_loss")
    for name in ("75-3", "75-4", "50-3", "50-4"):
        ratio, seed = name.split("-")
        choices = ("--masker.ratio", f"0.{ratio}", "--seed", seed, "--folder", str(folder / name))
        argv = [*SHORT, *SMALL, *PATCHES, *data, *choices]
        run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc=recipe.__doc__, argv=argv)
        reset_accelerate()
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def trained(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Returns a copy of one of the runs, which tests may write to."""
    return shutil.copytree(runs["75-3"], tmp_path / "trained")


def test_knn_judges_trained_untrained_and_pixels(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["knn", str(trained), *FEW])
    text = capsys.readouterr().out
    assert all(word in text for word in ("trained", "untrained", "raw pixels", "20 nearest neighbours"))
    found = Record.read(trained).evaluations["features"]
    assert found["step"] == 2
    assert list(found["neighbours"]) == ["trained", "untrained", "raw_pixels"]
    assert (found["train"], found["test"]) == (34, 12)


def test_a_resume_takes_the_config_in_its_folder(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, goes_on = load_recipe("image_mae"), ["--folder", str(trained), "--resume"]

    def start(*flags: str) -> dict[str, object]:
        try:
            return run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*goes_on, *flags])
        finally:
            reset_accelerate()

    assert start("--train.steps", "3", "--allow", "train.steps")["step"] == 3
    assert "this is the demonstration" not in capsys.readouterr().out
    assert main(["pretrain", *goes_on]) == 0
    reset_accelerate()
    with pytest.raises(SystemExit):
        start("--masker.ratio", "0.6")
    assert "masker.ratio was 0.75, is 0.6" in capsys.readouterr().err


def test_a_target_that_is_no_picture_trains_to_the_end(tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("image_mae")
    argv = [*SHORT, *SMALL, "--data.source", str(tiles), "--data.eval_split", "none", "--target.name", "latent"]
    argv += ["--evaluate", "reconstruction"]
    result = run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*argv, "--folder", str(tmp_path / "run")])
    reset_accelerate()
    assert "--evaluate reconstruction is left out: target.name latent does not predict pixels" in caplog.text
    assert "reconstruction" not in result
    assert (tmp_path / "run" / "pictures" / "loss.png").exists()


def test_an_evaluation_that_fails_does_not_take_the_run_with_it(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("none can be read")

    recipe = load_recipe("image_mae")
    monkeypatch.setattr("mmm.evaluate.reconstruction.gallery.make_gallery", fail)
    argv = [*SHORT, *SMALL, "--data.source", str(tiles), "--data.eval_split", "none", "--evaluate", "reconstruction"]
    result = run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*argv, "--folder", str(tmp_path / "run")])
    reset_accelerate()
    assert result["step"] == 2
    assert "the evaluation reconstruction failed: none can be read" in caplog.text
    assert (tmp_path / "run" / "pictures" / "loss.png").exists()


def test_too_many_unreadable_inputs_stop_a_short_run_at_once(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(tiles, tmp_path / "damaged")
    for path in sorted(damaged.rglob("*.png"))[::2]:
        path.write_bytes(path.read_bytes()[:100])
    recipe, argv = load_recipe("image_mae"), [*SHORT, *SMALL, "--data.source", str(damaged), "--data.eval_split", "none"]
    argv += ["--train.steps", "50", "--train.log_every", "50", "--data.no_cache", "--data.holdout", "0.1", "--evaluate"]
    with pytest.raises(SystemExit):
        run_main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*argv, "--folder", str(tmp_path / "run")])
    reset_accelerate()
    assert "inputs cannot be read" in capsys.readouterr().err
    assert len((tmp_path / "run" / "bad_inputs.jsonl").read_text().splitlines()) < 12  # of 24: the run stopped before it read all


def test_a_second_source_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("joint_mae")
    with pytest.raises(SystemExit):
        run_main(
            recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=["--data.source", "builtin:motion", "--encoder.size", "tiny"]
        )
    reset_accelerate()
    assert "second.data.source is not set" in capsys.readouterr().err


def test_a_part_of_ones_own_that_is_missing_names_the_flag(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = (trained / "config.yaml").read_text()
    (trained / "config.yaml").write_text(saved.replace("name: random", "name: mine"))
    with pytest.raises(SystemExit):
        main(["knn", str(trained), *FEW])
    assert "--use FILE" in capsys.readouterr().err


def test_finetune_reads_the_data_as_the_run_did(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--train.steps", "1", "--train.epochs", "none", "--train.batch_size", "4", "--folder", str(tmp_path / "tuned")]
    main(["finetune", str(trained), *short, "--data.flip", "0"])
    reset_accelerate()
    own, data = Record.read(trained).config, Record.read(tmp_path / "tuned").config
    names = [f"data.{name}" for name in ("source", "image_size", "channels", "mean", "std", "holdout")]
    assert [data[name] for name in names] == [own[name] for name in names]
    assert data["data.flip"] == 0


def test_knn_of_a_config_is_of_the_untrained_model(trained: Path, tmp_path: Path) -> None:
    main(["knn", str(trained / "config.yaml"), *FEW, "--no_raw_pixels", "--out", str(tmp_path / "new" / "scores.json")])
    alone = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert list(alone["linear"]) == ["untrained"]
    main(["knn", str(trained), *FEW])
    beside = Record.read(trained).evaluations["features"]
    assert beside["neighbours"]["untrained"] == alone["neighbours"]["untrained"]


def test_the_untrained_model_is_the_one_that_the_run_began_with(trained: Path) -> None:
    loaded = load_model(LoadedModelConfig(model=str(trained), device="cpu"))
    assert (loaded.run, loaded.step, loaded.name) == (trained, 2, "trained, step 2")
    began = MaskedModel.build(model_config(loaded.untrained), loaded.data.input(), seed=3).state_dict()
    assert all(torch.equal(value, began[name]) for name, value in loaded.untrained.state_dict().items())
    assert loaded.trained is not None
    assert any(not torch.equal(value, began[name]) for name, value in loaded.trained.state_dict().items())
    one = load_model(LoadedModelConfig(model=str(trained / "checkpoints" / "step_00000002"), device="cpu", source="other"))
    assert (one.step, one.data.source, one.data.channels) == (2, "other", 1)


def test_published_weights_need_images(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder alone, under timm's names as in official files, can be evaluated but not used for reconstruction."""
    parts = ModelConfig(
        tokenizer=Patches.Config(size=8),
        masker=RandomMasker.Config(),
        encoder=VisionTransformer.Config(size="tiny", depth=1),
        decoder=SelfAttentionDecoder.Config(width=32, depth=1, heads=1),
        target=PixelTarget.Config(),
    )
    file = tmp_path / "encoder.pth"
    torch.save({"model": MaskedModel.build(parts, Input(size=(32, 32)), seed=0).encoder.state_dict()}, file)
    for argv, said in ((["knn"], "--source is not set"), (["reconstruct", "--source", str(tiles)], "without a decoder")):
        with pytest.raises(SystemExit):
            main([argv[0], "--model", str(file), *argv[1:], "--device", "cpu"])
        assert said in capsys.readouterr().err
    main(["knn", str(file), "--source", str(tiles), "--holdout", "0.3", "--workers", "0", *FEW])
    assert "4 classes, 34 training and 12 test samples" in capsys.readouterr().out


def test_reconstruct_draws_and_records(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["reconstruct", str(trained), "--samples", "2", "--measured", "4", "--device", "cpu"])
    assert "taken from the ORIGINAL" in capsys.readouterr().out
    found = Record.read(trained).evaluations["reconstruction"]
    assert Path(found["picture"]) == trained / "pictures" / "reconstruction_00000002.png"
    assert Image.open(found["picture"]).format == "PNG"
    assert 5 < found["psnr"]["model"] < 40
    half = ["--ratio", "0.5", "--out", str(tmp_path / "half.png")]
    main(["reconstruct", str(trained), "--samples", "2", "--measured", "4", "--device", "cpu", *half])
    assert "(50%)" in capsys.readouterr().out
    assert (tmp_path / "half.png").exists()
    assert Record.read(trained).evaluations["reconstruction"] == found  # another masking ratio does not change the run's result
    painted = Image.new("L", (60, 60))
    painted.paste(255, (0, 0, 30, 60))
    painted.save(tmp_path / "left.png")
    few = ["reconstruct", str(trained), "--samples", "2", "--measured", "4", "--device", "cpu", "--hide"]
    main([*few, str(tmp_path / "left.png")])
    assert (trained / "pictures" / "reconstruction_00000002_hide-left.png").is_file()
    assert "50" in capsys.readouterr().out
    for extra, words in ((["--ratio", "0.5"], "give one of them"), ([], "nowhere.png")):
        with pytest.raises(SystemExit):
            main([*few, str(tmp_path / ("left.png" if extra else "nowhere.png")), *extra])
        assert words in capsys.readouterr().err


def test_reconstruct_shows_all_of_a_folder_that_was_named(trained: Path, tiles: Path, tmp_path: Path) -> None:
    few = shutil.copytree(sorted(tiles.iterdir())[0], tmp_path / "few")
    main(["reconstruct", str(trained), "--source", str(few), "--out", str(tmp_path / "new" / "own.png"), "--device", "cpu"])
    assert Image.open(tmp_path / "new" / "own.png").size[1] > 4 * 160


def test_compare_says_what_differs_and_what_came_of_it(
    trained: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["knn", str(trained), *FEW])
    capsys.readouterr()
    main(["compare", str(trained), str(runs["50-4"]), "--out", str(tmp_path / "both")])
    text = capsys.readouterr().out
    assert "masker.ratio=0.75 " in text
    assert "they differ in masker.ratio" in text
    assert "the runs have different seeds" in text
    assert (tmp_path / "both" / "comparison.txt").read_text().strip() in text
    assert Image.open(tmp_path / "both" / "comparison.png").size[0] > 1000
    first, second = json.loads((tmp_path / "both" / "comparison.json").read_text())["rows"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert first["loss"]["mean"] == lines[-1]["loss"]
    assert first["held_out_loss"]["mean"] == lines[-1]["held_out_loss"]
    assert first["samples"]["mean"] == 16
    assert first["seconds"]["mean"] == pytest.approx(sum(8 / line["clock"]["samples_per_second"] for line in lines))
    assert first["features_knn"]["mean"] == Record.read(trained).evaluations["features"]["neighbours"]["trained"]["top1"]
    assert second["features_knn"]["mean"] is None


def test_unequal_steps_are_said(trained: Path, runs: dict[str, Path]) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines(keepends=True)
    (trained / "metrics.jsonl").write_text(lines[0])
    told = compare.compare(compare.group_runs([Record.read(trained), Record.read(runs["75-4"])]), None)["warnings"]
    assert told[:2] == ["the runs have different numbers of updates: 1, 2", "the runs have different numbers of samples: 8, 16"]


def test_another_part_is_named_without_its_own_choices(trained: Path, runs: dict[str, Path]) -> None:
    saved = (trained / "config.yaml").read_text()
    (trained / "config.yaml").write_text(saved.replace("name: random", "name: block").replace("  unit: 1\n", "  aspect: 0.3\n"))
    names = differing([Record.read(trained), Record.read(runs["75-3"])])
    assert names == ["masker.name"]


def test_seeds_become_one_row_with_an_error(runs: dict[str, Path]) -> None:
    records = [Record.read(runs[name]) for name in ("75-3", "75-4", "50-3", "50-4")]
    groups = compare.group_runs(records)
    assert [(group.label, len(group.runs)) for group in groups] == [("masker.ratio=0.75", 2), ("masker.ratio=0.5", 2)]
    losses = [run.last("loss") for run in records[:2]]
    assert groups[0].mean("loss") == pytest.approx(sum(losses) / 2)
    assert groups[0].error("loss") == pytest.approx(abs(losses[0] - losses[1]) / 2)
    text = format_comparison(compare.compare(groups, None))
    assert "±" in text
    assert "seeds" not in text
    assert [group.label for group in compare.group_runs(records[:2])] == ["seed=3", "seed=4"]


def test_records_are_read_while_they_are_written(trained: Path, tmp_path: Path) -> None:
    record(trained, "features", 1, {"k": 1})
    record(trained, "features", 2, {"k": 2})
    with (trained / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    run = Record.read(trained)
    assert run.steps == 2
    assert run.evaluations["features"]["k"] == 2
    assert Image.open(draw_loss(run.path, tmp_path / "new" / "loss.png")).size[0] > 900
    with (trained / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 3 is not JSON"):
        Record.read(trained)


def test_changes_become_flags() -> None:
    assert compare.flags(["decoder.name=linear,masker.blank=true", "data.mean=0.5 0.4 0.3"]) == [
        "--decoder.name", "linear", "--masker.blank", "true", "--data.mean", "0.5", "0.4", "0.3",
    ]  # fmt: skip
    assert compare.flags(["data.source=a,b", "evaluate="]) == ["--data.source", "a,b", "--evaluate"]


def test_a_swap_runs_every_variant_with_every_seed(tmp_path: Path) -> None:
    config = compare.Config(
        recipe="image_mae",
        preset="demo",
        swap=("masker.name=block",),
        change=("train.steps=5",),
        seeds=(0, 1),
        launcher="accelerate launch",
    )
    with pytest.raises(ValueError, match="--recipe image_mea is not a recipe; did you mean 'image_mae'"):
        compare.recipe_file("image_mea")
    made = compare.commands(config, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path, _ in made] == [
        "as-it-is/seed-0", "masker.name=block/seed-0", "as-it-is/seed-1", "masker.name=block/seed-1",
    ]  # fmt: skip
    shared = ["accelerate", "launch", str(REPOSITORY / "recipes" / "image_mae.py"), "--preset", "demo", "--train.steps", "5"]
    assert made[3][1] == [*shared, "--masker.name", "block", "--seed", "1", "--folder", str(made[3][0]), "--resume", "auto"]


def test_a_recipe_is_run_beside_a_run_and_gone_on_with(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe accepts the command that a comparison makes, run in a separate process as for a user."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    ran: list[list[str]] = []
    whole = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command) or whole(command, check=check))
    recipe, config = REPOSITORY / "recipes" / "image_mae.py", runs["75-3"] / "config.yaml"
    change = [f"config={config}", "train.batch_size=4", "evaluate="]
    argv = ["compare", str(runs["75-3"]), "--recipe", str(recipe), "--change", *change, "--seeds", "3", "--out", str(tmp_path)]
    main(argv)
    text = capsys.readouterr().out
    assert "train.batch_size=8" in text
    assert "train.batch_size=4 " in text
    assert "the runs have different numbers of samples: 8, 16" in text
    assert len(ran) == 1
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(ran.append(command) or command, 3))
    with pytest.raises(SystemExit):
        main(argv)
    assert ran[1] == ran[0]
    assert "a run failed with exit code 3" in capsys.readouterr().err


def test_pictures_of_other_data_are_beside_the_runs_own(trained: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 13, point 21: a picture of another folder replaced the run's own, and no picture named its run and data."""
    drawn: list[str] = []
    own = gallery.draw_grid
    monkeypatch.setattr(
        gallery,
        "draw_grid",
        lambda *a, title, notes, **k: drawn.append(" ".join([title, *notes])) or own(*a, title=title, notes=notes, **k),
    )
    few = ["--samples", "2", "--measured", "4", "--device", "cpu"]
    main(["reconstruct", str(trained), *few])
    picture = trained / "pictures" / "reconstruction_00000002.png"
    before, found = picture.read_bytes(), Record.read(trained).evaluations["reconstruction"]
    for flags, end in (
        (["--source", str(tiles), "--workers", "0"], "_source-" + re.sub(r"\W+", "-", str(tiles)).strip("-")[-40:]),
        (["--ratio", "0.5"], "_ratio-0.5"),
        (["--test_split", "train"], "_test_split-train"),
    ):
        main(["reconstruct", str(trained), *few, *flags])
        assert (trained / "pictures" / f"{picture.stem}{end}.png").exists()
    assert picture.read_bytes() == before
    assert Record.read(trained).evaluations["reconstruction"] == found
    assert len((trained / "evaluations.jsonl").read_text().splitlines()) == 4  # the other results are kept, too
    assert all("trained, step 2" in text and tiles.name in text for text in drawn)
    assert "held out" in drawn[0]
    assert "train (rest)" in drawn[3]


def test_scores_of_other_data_are_not_the_runs_own(trained: Path, tiles: Path) -> None:
    main(["knn", str(trained), *FEW])
    own = Record.read(trained).evaluations["features"]
    main(["knn", str(trained), *FEW, "--source", str(tiles), "--holdout", "0.5", "--workers", "0"])
    assert Record.read(trained).evaluations["features"] == own


def test_a_variant_that_equals_the_base_counts_once(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 13, point 21: its runs were counted twice in the standard error."""
    twin = shutil.copytree(runs["75-3"], tmp_path / "twin" / "75-3")
    records = [Record.read(path) for path in (runs["75-3"], twin, runs["75-4"], runs["50-3"])]
    groups = compare.group_runs(records)
    assert [[run.path for run in group.runs] for group in groups] == [[runs["75-3"], runs["75-4"]], [runs["50-3"]]]
    assert f"{twin} has the same options and seed as {runs['75-3']}" in caplog.text
    alone = [group.label for group in compare.group_runs(records[:2])]  # without differences: two rows, named after their folders
    assert alone == [f"{runs['75-3'].parent.name}/75-3", "twin/75-3"]


def test_unlike_runs_fit_into_table_and_plot(
    trained: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 13, point 21: labels had 400 characters, and the legend was outside the plot."""
    saved = (trained / "config.yaml").read_text()
    (trained / "config.yaml").write_text(
        saved.replace("depth: 2", "depth: 20").replace("width: 24", "width: 240").replace("learning_rate: ", "learning_rate: 1")
    )
    groups = compare.group_runs([Record.read(trained), Record.read(runs["50-4"])])
    assert [group.label for group in groups] == ["trained", "50-4"]
    text = format_comparison(compare.compare(groups, None))
    assert "encoder.width: 240 | 24" in text
    assert max(map(len, text.splitlines())) < 160
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))
    scores = [("nearest\nneighbours", [0.5, 0.4])]
    draw_runs([("encoder.width=240 " * 12, groups[0].runs), ("short", groups[1].runs)], scores, tmp_path / "a.png")
    figure = figures[0]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert box.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_classes_that_are_never_trained_on_are_refused(
    trained: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 13, point 21: with one sample a class, the accuracy was 0.0 % and the exit code 0."""
    for number, file in enumerate(sorted(tiles.rglob("*.png"))[:12]):
        (tmp_path / "own" / f"class{number}").mkdir(parents=True)
        shutil.copy(file, tmp_path / "own" / f"class{number}")
    saved = Record.read(trained).config
    source = ["--source", str(tmp_path / "own"), "--holdout", "0.3", "--workers", "0", "--device", "cpu"]
    for argv in (
        ["knn", str(trained), *source],
        ["linear_probe", str(trained), "--data.source", str(tmp_path / "own"), "--data.holdout", "0.3", "--data.channels", "1",
         "--data.mean", f"{saved['data.mean'][0]}", "--data.std", f"{saved['data.std'][0]}", "--folder", str(tmp_path / "probe")],
    ):  # fmt: skip
        reset_accelerate()
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        assert "none of their classes occurs in the training samples" in capsys.readouterr().err
    reset_accelerate()
    assert Record.read(trained).evaluations == {}
