"""Run a task on a Slurm cluster: write the job's script, submit it, and let the job continue itself when its time ends.

mmm launch "pretrain image_mae --data.source /data/imagenet --folder runs/mae" --slurm --nodes 2 --gpus 8 --time 24:00:00
mmm launch "pretrain image_mae --data.source /data/imagenet --folder runs/mae" --slurm --dry_run

The script starts one process per GPU. Slurm sends SIGUSR1 before the time ends; the run saves a checkpoint and exits, and the
script puts the job into the queue again. The job then continues from this checkpoint.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.config.overrides import group_flags
from mmm.core.checks import CheckedConfig, Count, Positive, nearest

POSITIONAL = "command"

STOPPED = 143  # exit code of a run that saved a checkpoint and stopped because of a signal
RESUMABLE = ("pretrain", "finetune", "linear_probe", "attentive_probe", "segment", "detect", "depth")


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Run a task on a cluster."""

    command: str | None = None
    """The task with its recipe and flags in quotes, without `mmm`. It must name the run's folder (--folder)."""

    slurm: bool = False
    """Submit the job with Slurm's sbatch."""

    nodes: Positive = 1
    """Number of machines."""

    gpus: Count = 8
    """Number of GPUs of each machine; one process runs on each. 0: a job on CPUs."""

    processes: Positive | None = None
    """Processes on each machine. None: one for each GPU, or one without GPUs."""

    cpus: Positive | None = None
    """Processor cores of each process. None: the cluster's default."""

    time: str = "24:00:00"
    """Time limit of the job each time it runs, in Slurm's format: minutes, HH:MM:SS or D-HH:MM:SS."""

    notice: Positive = 180
    """Number of seconds before the time limit at which the run gets the signal to save and stop."""

    partition: str | None = None
    """Partition of the cluster. None: its default."""

    account: str | None = None
    """Slurm account of the job. None: your default."""

    name: str = "mmm"
    """Name of the job."""

    setup: tuple[str, ...] = ()
    """Shell commands that run first on the first machine, for instance "module load cuda" "source venv/bin/activate"."""

    options: tuple[str, ...] = ()
    """Further options of sbatch, for instance qos=long constraint=h100 mem=0."""

    dry_run: bool = False
    """Print the script without submitting it."""


def run(config: Config) -> dict[str, Any]:
    """Writes the script into the run's folder and submits it; with dry_run it only prints the script.

    Raises:
        ValueError: the command cannot run as a job, or sbatch is missing or refuses the job.
    """
    if not config.slurm:
        raise ValueError("mmm launch submits jobs to Slurm: add --slurm; on one machine use accelerate launch -m tasks")
    command, folder = read_command(config.command)
    script = write_script(config, command, folder)
    if config.dry_run:
        print(script)
        return {"script": script}
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch was not found: submit the job on a machine of the cluster, or look at its script with --dry_run")
    jobs = folder.with_name(f"{folder.name}.slurm")  # beside the run folder, which contains only files of the training
    jobs.mkdir(parents=True, exist_ok=True)
    path = jobs / "job.sh"
    path.write_text(script, encoding="utf-8")
    answer = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"sbatch refused {path}: {answer.stderr.strip()}")
    job = answer.stdout.strip().split(";")[0]
    print(f"job {job}: {path}; its output goes to {jobs}/{job}.out")
    return {"job": job, "script": script, "path": str(path)}


def read_command(text: str | None) -> tuple[list[str], Path]:
    """Returns the words of a command, with `--resume auto`, and the folder of its run.

    Raises:
        ValueError: there is no command, it is not a task that trains, or it names no folder.
    """
    words = shlex.split(text or "")
    words = words[1:] if words[:1] == ["mmm"] else words
    if not words:
        raise ValueError('command is not set; give a task in quotes, for instance "pretrain image_mae --folder runs/a"')
    if words[0] not in RESUMABLE:
        raise ValueError(f"command {words[0]}: a job runs {', '.join(RESUMABLE)}{nearest(words[0], RESUMABLE)}")
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    flags = [(name, values) for name, values in group_flags(words[first:]) if name != "resume"]
    folders = [values for name, values in flags if name == "folder"]
    if not folders or len(folders[-1]) != 1:
        raise ValueError("command: add --folder runs/NAME, by which the job finds its run again after its time has ended")
    kept = [word for name, values in flags for word in (f"--{name}", *values)]
    return [*words[:first], *kept, "--resume", "auto"], Path(folders[-1][0])


def write_script(config: Config, command: list[str], folder: Path) -> str:
    """Returns the script of a job."""
    processes = config.processes or config.gpus or 1
    jobs = folder.with_name(f"{folder.name}.slurm")
    flags = {
        "job-name": config.name,
        "nodes": config.nodes,
        "ntasks-per-node": processes,
        "gpus-per-node": config.gpus or None,
        "cpus-per-task": config.cpus,
        "time": config.time,
        "signal": f"USR1@{config.notice}",
        "partition": config.partition,
        "account": config.account,
        "output": f"{jobs}/%j.out",
        "open-mode": "append",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}={value}" for name, value in flags.items() if value is not None]
    lines += [f"#SBATCH --{option.removeprefix('--')}" for option in config.options]
    lines += ["#SBATCH --requeue", "", *config.setup]
    lines += [
        f"cd {shlex.quote(os.getcwd())}",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 40000))",
        "export WORLD_SIZE=$SLURM_NTASKS",
        *([] if config.gpus else ["export ACCELERATE_USE_CPU=true"]),
        "srun --kill-on-bad-exit=0 bash -c "
        + shlex.quote(
            f"export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE={processes}; "
            f"exec {shlex.join([sys.executable, '-m', 'tasks', *command])}"
        ),
        "code=$?",
        f'if [ "$code" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
        "",
    ]
    return "\n".join(lines)
