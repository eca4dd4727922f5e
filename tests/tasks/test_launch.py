"""`mmm launch --slurm`: a shell runs the script with stand-ins for srun, scontrol and sbatch."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tasks import launch
from tasks.__main__ import main

COMMAND = "pretrain image_mae --data.source 'my images' --folder runs/a"

# srun starts the command once for each task, with the variables that Slurm sets, and returns the largest exit code
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=0
codes=()
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & done
largest=0
for job in $(jobs -p); do wait "$job"; code=$?; [ "$code" -gt "$largest" ] && largest=$code; done
exit "$largest"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi
"""
SHOW = """#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $ACCELERATE_USE_CPU" >> seen_$RANK
for word in "$@"; do echo "$word" >> seen_$RANK; done
exit "${CODE:-0}"
"""


def tools(folder: Path, **scripts: str) -> dict[str, str]:
    """Writes stand-ins for programs and returns the environment of a job with two tasks."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "localhost"}
    return os.environ | job | {"PATH": f"{folder}:{os.environ['PATH']}"}


def make(monkeypatch: pytest.MonkeyPatch, where: Path, *flags: str) -> str:
    """Returns the script of a job whose Python is a stand-in that records its arguments."""
    monkeypatch.chdir(where)
    monkeypatch.setattr(sys, "executable", str(where / "bin" / "show"))
    return str(launch.run(launch.Config(command=COMMAND, slurm=True, dry_run=True, gpus=0, processes=2))["script"])


@pytest.mark.parametrize("code", [0, 1, 143])
def test_the_script_starts_all_processes_and_requeues_a_stopped_run(code: int, tmp_path: Path, monkeypatch: Any) -> None:
    environment = tools(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, show=SHOW)
    script = make(monkeypatch, tmp_path)
    done = subprocess.run(["bash", "-c", script], env=environment | {"CODE": str(code)}, cwd=tmp_path)
    assert done.returncode == code
    for rank in (0, 1):
        first, *words = (tmp_path / f"seen_{rank}").read_text().splitlines()
        assert first == f"{rank} {rank} 2 2 localhost 20041 true"
        assert words[:2] == ["-m", "tasks"]
        assert words[2:] == ["pretrain", "image_mae", "--data.source", "my images", "--folder", "runs/a", "--resume", "auto"]
    assert (tmp_path / "requeued").exists() == (code == 143)
    if code == 143:
        assert (tmp_path / "requeued").read_text() == "requeue 41\n"


def test_the_script_asks_for_what_the_flags_say(capsys: Any) -> None:
    flags = ["--nodes", "2", "--gpus", "4", "--cpus", "12", "--time", "2-00:00:00", "--partition", "gpu", "--options", "mem=0"]
    main(["launch", COMMAND, "--slurm", "--dry_run", *flags, "--setup", "module load cuda"])
    lines = capsys.readouterr().out.splitlines()
    wanted = {"nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=12", "time=2-00:00:00", "signal=USR1@180"}
    wanted |= {"partition=gpu", "mem=0", "output=runs/a.slurm/%j.out", "open-mode=append"}
    assert {f"#SBATCH --{one}" for one in wanted} <= set(lines)
    assert "module load cuda" in lines
    assert not any("ACCELERATE_USE_CPU" in line for line in lines)


def test_the_job_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = tools(tmp_path / "bin", sbatch="#!/bin/bash\ncp ${@: -1} submitted\necho '77;cluster'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", environment["PATH"])
    found = launch.run(launch.Config(command=COMMAND, slurm=True))
    assert found["job"] == "77"
    assert (tmp_path / "submitted").read_text() == found["script"] == (tmp_path / "runs" / "a.slurm" / "job.sh").read_text()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(ValueError, match="sbatch refused .*: invalid partition"):
        launch.run(launch.Config(command=COMMAND, slurm=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"command": None}, "command is not set"),
        ({"command": "pretrain image_mae"}, "add --folder"),
        ({"command": "pretrain image_mae --folder --seed 1"}, "add --folder"),
        ({"command": "knn runs/a --folder runs/b"}, "command knn: a job runs pretrain, .*, depth$"),
        ({"command": "pretrane image_mae --folder runs/b"}, "depth; did you mean 'pretrain'.$"),
        ({"slurm": False}, "add --slurm"),
    ],
)
def test_what_cannot_be_a_job_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch.run(launch.Config(**({"command": COMMAND, "slurm": True, "dry_run": True} | values)))


def test_a_job_on_a_machine_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="sbatch was not found"):
        launch.run(launch.Config(command=COMMAND, slurm=True))
    with pytest.raises(ValueError, match="--nodes 0 is not a whole number of at least 1"):
        launch.Config(nodes=0)


@pytest.mark.parametrize("given", ["--resume", "--resume auto", "--resume=auto", "--resume true", "--resume false", ""])
@pytest.mark.parametrize("named", ["--folder runs/a", "--folder=runs/a", "--folder runs/b --folder runs/a"])
def test_the_run_is_started_or_resumed_by_the_same_command(given: str, named: str) -> None:
    words, folder = launch.read_command(f"mmm pretrain image_mae {given} {named} --data.mean 0.5 -1 --seed=1")
    first = ["--folder", "runs/b"] if "runs/b" in named else []
    other = ["--data.mean", "0.5", "-1", "--seed", "1"]
    assert words == ["pretrain", "image_mae", *first, "--folder", "runs/a", *other, "--resume", "auto"]
    assert folder == Path("runs/a")


@pytest.mark.parametrize("task", launch.RESUMABLE)
def test_every_task_with_a_run_that_is_resumed_can_be_a_job(task: str) -> None:
    config = importlib.import_module(f"tasks.{task}").Config
    assert {"folder", "resume"} <= {field.name for field in fields(config)}
    assert launch.read_command(f"{task} --folder runs/a")[0] == [task, "--folder", "runs/a", "--resume", "auto"]


def test_no_task_with_a_resumable_run_is_left_out() -> None:
    names = {path.stem for path in Path(launch.__file__).parent.glob("[!_]*.py")}
    kinds = {name: getattr(importlib.import_module(f"tasks.{name}"), "Config", None) for name in names}
    found = {
        name for name, kind in kinds.items() if kind is not None and {"folder", "resume"} <= {one.name for one in fields(kind)}
    }
    assert found == set(launch.RESUMABLE)
