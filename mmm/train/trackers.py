"""Experiment trackers, through Accelerate. One that was asked for is there, or the run does not start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator


def check_tracker(name: str | None) -> None:
    """Accelerate 1.15 drops a tracker that is not installed in silence.

    Raises:
        ValueError: Accelerate does not know it, or it is not installed.
    """
    if name is None:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"train.tracker {name} is unknown; choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, or none")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        package = {"comet_ml": "comet-ml"}.get(name, name)
        raise ValueError(f"train.tracker {name} is not installed; pip install {package}, or leave train.tracker out")


def start_tracker(accelerator: Accelerator, name: str | None, folder: Path, config: Mapping[str, Any]) -> None:
    """Starts the tracker with a run's flat config; its files go into the run folder where the tracker lets one choose.

    After this `accelerator.log(metrics, step=step)` reaches it, and does nothing where there is none.
    """
    if name is None:
        return
    from accelerate.tracking import filter_trackers

    accelerator.project_configuration.set_directories(str(folder))
    accelerator.log_with = filter_trackers([name], str(folder))
    # trackers take numbers and text; tensorboard raises on anything else
    plain = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in config.items()}
    accelerator.init_trackers(folder.name, config=plain)
