"""The console script: the tasks that it lists, its imports, and its messages for mistakes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from mmm.weights.formats import written_formats
from tasks.__main__ import main, summaries


def test_help_lists_every_task_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    files = {path.stem for path in (REPOSITORY / "tasks").glob("*.py") if not path.stem.startswith("_")}
    found = summaries(REPOSITORY / "tasks")
    assert set(found) == files
    for name, summary in found.items():
        assert len(summary) > 20, name
        assert f"  {name} " in shown
        assert summary in shown


def test_without_a_task_it_lists_them_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "pretrain" in capsys.readouterr().out


def test_a_wrong_task_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstrukt", "runs/a"]) == 2
    said = capsys.readouterr().err
    assert "'reconstruct'" in said
    assert said.count("\n") == 1


EARLY = """
import contextlib, io, json, sys
from tasks.__main__ import answer_early, read_command
from tasks._placeholders import placeholders

shown = {}
with placeholders():
    from mmm.config import cli
    for words in json.loads(sys.argv[1]):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            task, options = read_command(words[0], [*words[1:], "--help"])
            cli.parse(options["presets"], options["argv"], doc=options["doc"], prog=options["prog"])
        shown[" ".join(words)] = out.getvalue()
assert not {name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "mmm", "recipes"}
said = {}
for flags in (["--train.stepz", "1"], ["--masker.name", "blok"], ["--train.precision", "bf17"], ["--masker.ratio", "2"]):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(SystemExit):
        answer_early("pretrain", ["image_mae", *flags])
    said[" ".join(flags)] = err.getvalue()
assert answer_early("pretrain", ["image_mae", "--train.steps", "1"]) is None
print(json.dumps([shown, said]))
"""


def test_help_and_mistakes_are_the_same_without_torch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # in both processes
    commands = [["pretrain", "image_mae"], ["pretrain", "video_vjepa"], ["detect", "detect"], ["finetune"], ["knn"], ["play"]]
    commands += [["export"]]
    words = [sys.executable, "-c", EARLY, json.dumps(commands)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True)
    shown, said = json.loads(done.stdout)
    for command in commands:
        with contextlib.suppress(SystemExit):
            main([*command, "--help"])
        assert shown[" ".join(command)] == capsys.readouterr().out, command
    assert {"--folder RUN --resume" in shown[name] for name in ("detect detect", "finetune")} == {True}
    assert "--folder RUN --resume" not in shown["export"]  # an export makes no run
    assert f"Formats: {', '.join(written_formats())}" in " ".join(shown["export"].split())
    for flags, early in said.items():
        with pytest.raises(SystemExit):
            main(["pretrain", "image_mae", *flags.split()])
        assert early == capsys.readouterr().err != "", flags


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["knn"], "--model is not set"),
        (["knn", "no/such/run"], "no/such/run does not exist"),
        (["knn", "--modle", "a"], "did you mean '--model'"),
        (["knn", "--pooling", "class_token"], "mean, class or both"),
        (["reconstruct", "--samples", "0"], "samples 0"),
        (["compare", "one"], "two or more runs"),
        (["compare", "no", "runs"], "no is not a run folder"),
        (["compare", "a", "b", "--swap", "masker.name=block"], "give it with --recipe"),
        (["compare", "--recipe", "recipes/none.py", "--swap", "a=b"], "recipes/none.py is not a recipe"),
        (["compare", "--recipe", "recipes/image_mae.py"], "--swap"),
        (["compare", "--recipe", "recipes/image_mae.py", "--swap", "block"], "'block' is not a change"),
        (["compare", "--recipe", "recipes/image_mae.py", "--swap", "seed=1"], "seed is set by the comparison"),
        (["pretrain"], "--config runs/x/config.yaml"),
        (["pretrain", "image_finetune"], "mmm finetune image_finetune"),
        (["pretrain", "image_mae", "--train.stepz", "1"], "did you mean '--train.steps'"),
        (["pretrain", "image_mea"], "there is no recipe 'image_mea'; did you mean 'image_mae'?"),
    ],
)
def test_what_is_wrong_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY if "--recipe" in argv else tmp_path)
    with pytest.raises(SystemExit) as end:
        main(argv)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_wrong_comparison_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["compare", "a", "b"])
    assert not list(tmp_path.iterdir())
