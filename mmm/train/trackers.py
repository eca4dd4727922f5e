"""Experiment trackers, through Accelerate: one project, and one run with its pictures for each run folder, also after a resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mmm.config.diff import flatten
from mmm.config.serialize import read_yaml
from mmm.system.files import write_json
from mmm.system.redact import NAMES

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

PROJECT = "mmm"  # project if `train.tracker_options` names none
RECORD = "tracker.json"  # in the run folder: the id of the run by the tracker's name
MOVING = (".webp", ".mp4", ".gif")
PICTURES = (".png", *MOVING)
# the pictures that each tracker gets; a run writes each animation as .webp, which is converted to .gif, and as .mp4
TAKES = {
    "tensorboard": (".png", ".webp", ".gif"),
    "swanlab": (".png", ".webp", ".gif"),
    "wandb": (".png", ".mp4", ".gif"),
    "trackio": (".png", ".mp4", ".gif"),
    "mlflow": PICTURES,
}


def check_tracker(name: str | None, options: Sequence[str] = ()) -> None:
    """Checks the choice of a tracker. Accelerate 1.15 silently drops a tracker that is not installed.

    Raises:
        ValueError: Accelerate does not support it, it is not installed, or its options are invalid.
    """
    if name is None:
        if options:
            raise ValueError("train.tracker_options are set without train.tracker; name the tracker, or leave them out")
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"train.tracker {name} is unknown; choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, or none")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        package = {"comet_ml": "comet-ml"}.get(name, name)
        raise ValueError(f"train.tracker {name} is not installed; pip install {package}, or leave train.tracker out")
    read_options(options)


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments that `train.tracker_options` names; values are read as YAML.

    Raises:
        ValueError: an option is not NAME=VALUE, or has the name of a secret, which the saved config must not contain.
    """
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"train.tracker_options {option}: give NAME=VALUE, for instance project=cells or mode=offline")
        found[name] = read_yaml(value)
    for name in flatten(found):
        if any(NAMES.search(part) for part in name.split(".")):
            raise ValueError(
                f"train.tracker_options {name}: a run's config is saved and must not hold a secret; set the tracker's variable in "
                "the environment instead, for instance WANDB_API_KEY, COMET_API_KEY or SWANLAB_API_KEY"
            )
    return found


class Tracker:
    """The tracker of a run in progress, or none.

    Args:
        accelerator: passes metrics to the tracker.
        name: name of the tracker. None: all methods do nothing.
        options: arguments of the tracker, NAME=VALUE; `project` names the project.
        folder: the run folder, which also gets the tracker's files if the tracker allows it.
        config: flat config of the task.
        step: number of updates so far, from which a resumed run continues.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        name: str | None,
        folder: Path,
        config: Mapping[str, Any],
        *,
        options: Sequence[str] = (),
        step: int = 0,
    ) -> None:
        self.accelerator, self.name, self.folder = accelerator, name, folder
        self._sent = self._pictures()
        if name is None:
            return
        from accelerate.tracking import filter_trackers

        record = folder / RECORD
        ids: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
        known, chosen = ids.get(name), read_options(options)
        project = chosen.pop("project", PROJECT)
        own = {name: start_arguments(name, folder, known or f"{folder.name}-{uuid4().hex[:8]}", known is not None, step) | chosen}
        accelerator.project_configuration.set_directories(str(folder))
        accelerator.log_with = filter_trackers([name], str(folder))
        # trackers accept numbers and text; tensorboard raises an error for other types
        plain = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in config.items()}
        place = folder.name if name == "tensorboard" else project
        # MLflow does not accept changed values when a run is resumed
        accelerator.init_trackers(place, config=None if known else plain, init_kwargs=own)
        if accelerator.is_main_process:
            write_json(record, ids | {name: run_id(name, accelerator, own[name])})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers, and the pictures of the run folder that are new since the last call."""
        if self.name is not None:
            self.accelerator.log(dict(metrics), step=step)
            self.log_pictures(step)

    def log_pictures(self, step: int) -> None:
        """Logs the pictures and animations of the run folder that are new or changed since the last call."""
        if self.name is None or not self.accelerator.is_main_process:
            return
        now = self._pictures()
        for path in sorted(path for path, written in now.items() if self._sent.get(path) != written):
            log_picture(self.name, self.accelerator.get_tracker(self.name, unwrap=True), path, step)
        self._sent = now

    def _pictures(self) -> dict[Path, float]:
        """Returns the pictures in the run folder with the times at which they were written."""
        found = (path for path in (self.folder / "pictures").glob("*") if path.suffix in PICTURES)
        return {path: path.stat().st_mtime for path in found}


def start_arguments(name: str, folder: Path, run: str, resumed: bool, step: int) -> dict[str, Any]:
    """Returns the arguments with which a tracker starts or continues the run of a folder.

    Args:
        name: name of the tracker.
        run: id of the run.
        resumed: whether the tracker has the run already.
        step: number of updates so far.
    """
    title = folder.name
    if name == "wandb":
        return {"id": run, "name": title, "dir": str(folder), "resume": "allow"}
    if name == "trackio":  # trackio identifies a run by its name
        return {"name": run, "resume": "allow"}
    if name == "swanlab":
        return {"id": run.replace("-", "")[-21:], "experiment_name": title, "logdir": str(folder / "swanlab"), "resume": "allow"}
    if name == "mlflow":
        return {"run_id": run} if resumed else {"run_name": title}
    if name == "tensorboard":
        return {"purge_step": step + 1} if resumed else {}
    return {}


def run_id(name: str, accelerator: Accelerator, arguments: Mapping[str, Any]) -> str:
    """Returns the id by which a tracker identifies a run; empty if it has none."""
    if name == "mlflow":
        return str(accelerator.get_tracker(name, unwrap=True).info.run_id)
    return str(arguments.get("id", arguments.get("name", "")))


def log_picture(name: str, run: Any, path: Path, step: int) -> None:
    """Sends a picture or an animation, if the tracker takes files of its kind. Trackers that are not in TAKES get only numbers."""
    if path.suffix not in TAKES.get(name, ()):
        return
    if name == "mlflow":
        import mlflow

        mlflow.log_artifact(str(path), "pictures")
        return
    with TemporaryDirectory() as folder:
        file = path if path.suffix != ".webp" else write_gif(path, Path(folder) / f"{path.stem}.gif")
        title = f"pictures/{path.stem.rstrip('0123456789').rstrip('_') or path.stem}{file.suffix if file.suffix in MOVING else ''}"
        if name == "tensorboard":
            from tensorboard.compat.proto.summary_pb2 import Summary

            image = Summary.Image(encoded_image_string=file.read_bytes())  # a GIF is animated
            run._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=title, image=image)]), step)
        else:
            from importlib import import_module

            library = import_module(name)
            kind = library.Video if file.suffix in MOVING else library.Image
            run.log({title: kind(str(file))}, step=step)


def write_gif(source: Path, path: Path) -> Path:
    """Converts an animated picture to a GIF file, with the same durations of its frames. Returns the file."""
    from PIL import Image

    with Image.open(source) as moving:
        moving.save(path, save_all=True, loop=0)
    return path
