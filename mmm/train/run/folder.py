"""The run folder: all files of one training.

    config.yaml         everything that is needed to repeat the run
    config_until_*.yaml the config up to a step, if the run was resumed from this step with other options
    environment.json    versions, machine and command, one entry for each start
    metrics.jsonl       one line for each log line or evaluation
    skipped.jsonl       skipped updates and their samples, if there are any
    checkpoints/        see `checkpoint/writer.py`
    pictures/

In metrics.jsonl all times are under "clock"; the rest of a line does not depend on stops and resumes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mmm.config.diff import flatten
from mmm.config.serialize import save, to_dict
from mmm.system.files import Journal, replace_text, replacing, write_json
from mmm.system.redact import refuse_secrets
from mmm.train.checkpoint import reader
from mmm.train.config import Resume
from mmm.train.distributed.processes import on_main
from mmm.train.metrics import NonFiniteError, Skipped
from mmm.train.run.environment import describe_environment
from mmm.train.run.lock import RunLock

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# metrics that depend on the machine and its load; kept apart so that the lines of two runs can be compared
CLOCK = ("samples_per_second", "data_wait", "seconds")


RESULT = "result.json"  # scores of a run, if its task measures any
# files that a start makes before its first update; a folder without a run may contain only these
EARLY = frozenset({"lock", ".lock", "environment.json", "config.yaml", "micro_batch.json", "bad_inputs.jsonl"})


class RunFolder:
    """The folder of a run that is in progress; use it as a context manager, so that its lock is released."""

    def __init__(self, path: Path, lock: RunLock | None) -> None:
        """Use `open` instead. Only the main process, which writes the files, has a `lock`."""
        self.path, self.lock = path, lock
        self._metrics, self._skipped = Journal(path / "metrics.jsonl"), Journal(path / "skipped.jsonl")

    @classmethod
    def open(
        cls, path: str | Path | None, name: str, config: Any, *, accelerator: Accelerator, resume: Resume = False
    ) -> RunFolder:
        """Makes the folder of a new run, or opens the folder of a run to resume.

        Args:
            path: path of the folder. None: runs/NAME-N with the next free N.
            name: name of the task.
            config: config of the task, saved as config.yaml in a new folder.
            resume: resume the run in the folder. auto: start a new run if there is none.

        Raises:
            ValueError: the folder is in use, contains files that must not be overwritten, or has no run to resume.
        """
        held: list[RunLock] = []

        def make() -> str:
            refuse_secrets(flatten(to_dict(config)))
            folder = resolve_folder(None if path is None else Path(path), name, resume)
            held.append(RunLock(folder))
            _fill(folder, config, accelerator)
            return str(folder)

        try:
            return cls(Path(on_main(accelerator, make)), held[0] if held else None)
        except (ValueError, OSError):
            for lock in held:
                lock.release()
            raise

    @property
    def checkpoints(self) -> Path:
        """The folder into which `Training.save` writes."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """The folder for pictures."""
        return self.path / "pictures"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line, from the main process. Non-finite numbers become null, because JSON has none."""
        if self.lock is None:
            return
        line: dict[str, Any] = {"step": step}
        clock = {name: value for name, value in metrics.items() if name in CLOCK}
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items() if name not in CLOCK}
        self._metrics.append(line | ({"clock": clock} if clock else {}))

    def note_skipped(self, skipped: Iterable[Skipped]) -> None:
        """Appends skipped updates, from the main process."""
        for one in skipped if self.lock is not None else ():
            self._skipped.append(asdict(one))

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after a step, which a resume from this step writes again, and an incomplete last line.

        The result equals the lines of an uninterrupted run if a task saves as the last action of a step.
        """
        if self.lock is not None:
            self._metrics.cut(step)
            self._skipped.cut(step - 1)  # the steps of skipped updates are counted from 0

    def record_changes(self, changed: Sequence[str], step: int, config: Any) -> None:
        """Records that the run continues with other options, in environment.json and in config.yaml; the old config is kept.

        Args:
            changed: the result of `Training.restore`.
            step: first step with the new options.
            config: current config of the task.
        """
        if self.lock is None or not changed:
            return
        record = self.path / "environment.json"
        starts = json.loads(record.read_text())
        write_json(record, [*starts[:-1], starts[-1] | {"step": step, "changed": list(changed)}])
        _keep_config(self.path, step)
        with replacing(self.path / "config.yaml") as temporary:
            save(config, temporary)

    def close(self) -> None:
        """Releases the folder."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, NonFiniteError):
            self.note_skipped(error.skipped)
        self.close()
        if isinstance(error, SystemExit) and self.lock is not None:  # a stop was requested, or another process is lost
            logger.warning("to continue this run: %s", resume_command(self.path))


def _fill(folder: Path, config: Any, accelerator: Accelerator) -> None:
    for name in ("checkpoints", "pictures"):
        (folder / name).mkdir(exist_ok=True)
    record = folder / "environment.json"
    starts = json.loads(record.read_text()) if record.exists() else []
    write_json(record, [*starts, describe_environment(accelerator)])
    if reader.found(folder / "checkpoints"):
        return
    chosen = folder / "config.yaml"
    with replacing(chosen) as temporary:  # last, because a folder with this file is a run folder
        save(config, temporary)
        if has_trained(folder) and chosen.exists() and chosen.read_text() != temporary.read_text():
            _keep_config(folder, 0)  # the run begins again, with these options


def _keep_config(folder: Path, step: int) -> None:
    """Copies config.yaml before it is replaced. A copy of the same step is kept: the run died before its next checkpoint."""
    kept = folder / f"config_until_{step:08d}.yaml"
    if not kept.exists():
        replace_text(kept, (folder / "config.yaml").read_text())


def resolve_folder(path: Path | None, name: str, resume: Resume) -> Path:
    """Returns the folder, and makes it if it is new; refuses a folder with other content."""
    if path is None:
        if resume:
            raise ValueError("--resume continues the run of a folder; name it with --folder")
        return next_free(name)
    holds_run = (path / "config.yaml").exists()
    if resume is True and not holds_run:
        raise ValueError(f"--resume: {path} holds no run; leave --resume out to start one there, or give --resume auto")
    if holds_run and has_trained(path) and not resume:
        raise ValueError(f"--folder {path} already contains a run; give another --folder, or --resume to continue it")
    begun = holds_run and (path / "environment.json").exists()  # then the other files are of this run, a tracker's among them
    if path.exists() and not begun and not has_trained(path) and not _started_only(path):
        raise ValueError(f"--folder {path} exists and is not a run; give another")
    path.mkdir(parents=True, exist_ok=True)
    return path


def has_trained(path: Path) -> bool:
    """True if a run's folder contains a line of metrics or a checkpoint."""
    metrics = path / "metrics.jsonl"
    return (metrics.exists() and metrics.stat().st_size > 0) or any((path / "checkpoints").glob("step_*"))


def resume_command(folder: Path) -> str:
    """Returns the command that resumes a run, started in the same way as this process; in a notebook, the values to set."""
    program, *argv = sys.argv
    if Path(program).stem in ("ipykernel_launcher", "colab_kernel_launcher", ""):  # the last: a Python prompt
        return f"run the task again, with folder={str(folder)!r} and resume=True in its config"
    task = [word for word in argv[:1] if not word.startswith("-")]  # `mmm TASK [MODEL] ...`, or a recipe's file
    command = ["mmm", *task] if task else ["python", program]
    # as a script, tasks/__main__.py would fail: tasks/inspect.py would hide the standard library's `inspect`
    start = ["-m", "tasks"] if Path(program).parts[-2:] == ("tasks", "__main__.py") else [program]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        command = ["accelerate", "launch", *start, *task]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        command = ["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"], *start, *task]
    files = [word for flag, file in pairwise(argv) if flag == "--use" for word in (flag, file)]
    return shlex.join([*command, "--folder", str(folder), "--resume", *files])


def _started_only(path: Path) -> bool:
    """True if a folder contains only the files that a start makes before its first update."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir() if file.suffix != ".tmp"} - EARLY
    return names <= {"checkpoints", "pictures"} and not any(any((path / name).glob("*")) for name in names)


def next_free(name: str) -> Path:
    """Makes the folder runs/NAME-N with the next free number, and returns it."""
    number = 1
    while True:
        path = Path("runs") / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path
