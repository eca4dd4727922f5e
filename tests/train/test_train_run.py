"""A run folder holds one run, is used by one process at a time, and is never overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mmm.config.serialize import load
from mmm.train.config import TrainConfig
from mmm.train.distributed.preemption import Stopped
from mmm.train.distributed.processes import on_main
from mmm.train.distributed.setup import start
from mmm.train.run.folder import RunFolder, resume_command
from mmm.train.run.lock import RunLock

CONFIG = TrainConfig(batch_size=4, learning_rate=0.1, steps=2, precision="fp32", threads=1)


@pytest.fixture
def accelerator():
    before = torch.get_num_threads()
    yield start(CONFIG)
    torch.set_num_threads(before)


@pytest.fixture
def open_run(accelerator):
    return lambda path, resume=False: RunFolder.open(path, "pretrain", CONFIG, accelerator=accelerator, resume=resume)


def test_what_a_run_holds(tmp_path, open_run):
    with open_run(tmp_path / "a") as run:
        assert sorted(file.name for file in run.path.iterdir() if file.name[0] != ".") == [
            "checkpoints", "config.yaml", "environment.json", "lock", "pictures",
        ]  # fmt: skip
        (environment,) = json.loads((run.path / "environment.json").read_text())
        assert torch.__version__.startswith(environment["versions.torch"])
        assert environment["precision"] == "fp32"
    assert not (run.path / "lock").exists()
    with open_run(tmp_path / "a", resume=True):
        assert len(json.loads((run.path / "environment.json").read_text())) == 2


def test_a_run_that_goes_on_with_other_choices_says_so(tmp_path, accelerator, open_run):
    other = replace(CONFIG, learning_rate=0.3)
    with open_run(tmp_path / "a") as run:
        before = (run.path / "config.yaml").read_text()
        run.record_changes([], 7, other)
        assert (run.path / "config.yaml").read_text() == before
        run.record_changes(["train.learning_rate was 0.1, is 0.3"], 7, other)
    assert load(TrainConfig, tmp_path / "a" / "config.yaml") == other
    assert (tmp_path / "a" / "config_until_00000007.yaml").read_text() == before
    (start,) = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert (start["step"], start["changed"]) == (7, ["train.learning_rate was 0.1, is 0.3"])
    with open_run(tmp_path / "a", resume=True) as run:  # it died before its next checkpoint
        run.record_changes(["train.learning_rate was 0.1, is 0.5"], 7, replace(CONFIG, learning_rate=0.5))
    assert (tmp_path / "a" / "config_until_00000007.yaml").read_text() == before


def test_a_resume_without_a_checkpoint_saves_its_options(tmp_path, accelerator, open_run):
    """The run begins again. The metrics of the first start, and with them its options, are kept until the resume drops them."""
    other = replace(CONFIG, learning_rate=0.3)
    with open_run(tmp_path / "a") as run:
        run.log(1, {"loss": 1.0})
        before = (run.path / "config.yaml").read_text()
    open_run(tmp_path / "a", resume=True).close()
    assert not (tmp_path / "a" / "config_until_00000000.yaml").exists()
    RunFolder.open(tmp_path / "a", "pretrain", other, accelerator=accelerator, resume=True).close()
    assert load(TrainConfig, tmp_path / "a" / "config.yaml") == other
    assert (tmp_path / "a" / "config_until_00000000.yaml").read_text() == before
    (tmp_path / "a" / "checkpoints" / "step_00000001").mkdir()
    open_run(tmp_path / "a", resume=True).close()
    assert load(TrainConfig, tmp_path / "a" / "config.yaml") == other


def test_folders_are_numbered_where_none_is_named(tmp_path, monkeypatch, open_run):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        with open_run(None) as run:
            assert str(run.path) == f"runs/pretrain-{number}"


def test_what_is_there_is_not_written_over(tmp_path, open_run):
    with open_run(tmp_path / "a") as run:
        run.log(1, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"--folder .*/a already contains a run; give another --folder, or --resume"):
        open_run(tmp_path / "a")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match=r"--folder .*/thesis exists and is not a run"):
        open_run(tmp_path / "thesis")


def test_a_start_that_was_killed_early_is_made_again(tmp_path, open_run):
    open_run(tmp_path / "a").close()
    (tmp_path / "a" / "config.yaml").rename(tmp_path / "a" / "config.yaml.tmp")
    (tmp_path / "a" / "checkpoints" / "mine").touch()
    with pytest.raises(ValueError, match="exists and is not a run"):
        open_run(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "mine").unlink()
    open_run(tmp_path / "a").close()
    assert (tmp_path / "a" / "config.yaml").exists()


def test_a_start_that_failed_before_its_first_update_does_not_block_the_next(tmp_path, accelerator, open_run):
    with pytest.raises(ValueError, match="no label"), open_run(tmp_path / "a"):
        raise ValueError("no label")
    other = replace(CONFIG, learning_rate=0.3)
    RunFolder.open(tmp_path / "a", "pretrain", other, accelerator=accelerator).close()
    assert load(TrainConfig, tmp_path / "a" / "config.yaml") == other
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "environment.json").write_text("[]")  # killed before it wrote its config
    RunFolder.open(tmp_path / "b", "pretrain", other, accelerator=accelerator).close()
    assert load(TrainConfig, tmp_path / "b" / "config.yaml") == other


@pytest.mark.parametrize("resume", [False, "auto"])
def test_a_run_that_died_before_its_first_checkpoint_is_made_again(tmp_path, open_run, resume):
    """A tracker has written its files, and a first resume has removed the metrics."""
    with open_run(tmp_path / "a") as run:
        (run.path / "tracker.json").write_text("{}")
        (run.path / "a").mkdir()
        (run.path / "a" / "events").touch()
        run.log(1, {"loss": 1.0})
        run.cut_metrics(0)
    with open_run(tmp_path / "a", resume=resume) as run:
        assert (run.path / "tracker.json").exists()


def test_the_command_that_goes_on(tmp_path, open_run, monkeypatch, caplog):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["recipes/a.py", "--train.steps", "9", "--use", "own.py"])
    with pytest.raises(Stopped), open_run(tmp_path / "a"):
        raise Stopped
    assert f"python recipes/a.py --folder {tmp_path / 'a'} --resume --use own.py" in caplog.text
    monkeypatch.setattr(sys, "argv", ["/bin/mmm", "finetune", "runs/b"])
    assert resume_command(tmp_path) == f"mmm finetune --folder {tmp_path} --resume"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(sys, "argv", ["recipes/a.py"])
    assert resume_command(tmp_path) == f"accelerate launch recipes/a.py --folder {tmp_path} --resume"
    monkeypatch.setattr(sys, "argv", ["/lib/site-packages/tasks/__main__.py", "pretrain", "image_mae"])  # -m tasks
    assert resume_command(tmp_path) == f"accelerate launch -m tasks pretrain --folder {tmp_path} --resume"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert resume_command(tmp_path) == f"mmm pretrain --folder {tmp_path} --resume"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resume_command(tmp_path) == f"torchrun --nproc_per_node 2 -m tasks pretrain --folder {tmp_path} --resume"
    monkeypatch.setattr(sys, "argv", ["/lib/site-packages/ipykernel_launcher.py", "-f", "kernel.json"])
    assert resume_command(tmp_path) == f"run the task again, with folder='{tmp_path}' and resume=True in its config"


def test_nothing_to_resume(tmp_path, open_run):
    with pytest.raises(ValueError, match=r"--resume: .*/typo holds no run"):
        open_run(tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()
    with pytest.raises(ValueError, match="name it with --folder"):
        open_run(None, resume=True)


def test_the_same_command_starts_a_run_and_goes_on_with_it(tmp_path, open_run):
    for _ in range(2):
        open_run(tmp_path / "a", resume="auto").close()
    assert len(json.loads((tmp_path / "a" / "environment.json").read_text())) == 2
    with pytest.raises(ValueError, match="name it with --folder"):
        open_run(None, resume="auto")


def test_a_folder_in_use_is_refused(tmp_path, open_run):
    with open_run(tmp_path / "a"), pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .*give another --folder"):
        open_run(tmp_path / "a", resume=True)
    open_run(tmp_path / "a", resume=True).close()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = RunLock(tmp_path)
    (tmp_path / "lock").write_text(json.dumps(mine.owner | {"pid": dead.pid}))
    RunLock(tmp_path)  # that process is gone
    (tmp_path / "lock").write_text(json.dumps(mine.owner | {"began": 0.0}))
    RunLock(tmp_path)  # another process has this number now
    (tmp_path / "lock").write_text("")
    RunLock(tmp_path)  # the process was killed while it wrote
    (tmp_path / "lock").write_text(json.dumps(mine.owner | {"host": "elsewhere"}))
    with pytest.raises(ValueError, match=r"on elsewhere; .*delete .*lock if that process is dead"):
        RunLock(tmp_path)
    mine.release()
    assert (tmp_path / "lock").exists()  # another process owns it


def test_of_many_starts_one_gets_a_dead_lock(tmp_path):
    (tmp_path / "lock").write_text(json.dumps(RunLock(tmp_path).owner | {"pid": 2**30}))
    answers, answer = os.pipe()
    go, start_all = os.pipe()  # nothing is written into this pipe: children wait until the parent closes it or ends
    end, release = os.pipe()
    children = [os.fork() or _try_to_take(tmp_path, go, end, answer, [start_all, release]) for _ in range(12)]
    os.close(start_all)
    outcome = b"".join(os.read(answers, 1) for _ in children)
    os.close(release)
    for child in children:
        os.waitpid(child, 0)
    for descriptor in (answers, answer, go, end):
        os.close(descriptor)
    assert sorted(outcome) == sorted(b"t" + b"r" * 11)


def _try_to_take(folder, go, end, answer, others):
    """Requests the lock in a child process at the same time as the others, answers `t`aken or `r`efused, and waits for all
    answers."""
    for descriptor in others:
        os.close(descriptor)
    os.read(go, 1)
    outcome = b"?"
    try:
        RunLock(folder)
        outcome = b"t"
    except ValueError:
        outcome = b"r"
    finally:
        os.write(answer, outcome)
        os.read(end, 1)
        os._exit(0)


def test_metrics_are_cut_where_a_resume_begins(tmp_path):
    run = RunFolder(tmp_path, RunLock(tmp_path))
    for step in (2, 4, 6):
        run.log(step, {"loss": 1 / step, "samples_per_second": 7.0})
    run.log(6, {"knn": float("nan")})
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(whole[0]) == {"step": 2, "loss": 0.5, "clock": {"samples_per_second": 7.0}}
    assert json.loads(whole[-1]) == {"step": 6, "knn": None}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed while it wrote
    run.cut_metrics(4)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == whole[:2]


def test_only_the_main_process_writes(tmp_path):
    other = RunFolder(tmp_path, None)
    other.log(1, {"loss": 1.0})
    other.cut_metrics(0)
    other.close()
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_main_process_is_raised(accelerator):
    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        on_main(accelerator, full)
