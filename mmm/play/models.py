"""The models of a page: runs with their checkpoints, and published weights; each is loaded when it is first chosen."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmm.model import MaskedModel
from mmm.train.checkpoint.reader import damage, found, step_of
from mmm.weights.formats.run import run_of
from mmm.weights.load import load_masked

logger = logging.getLogger(__name__)

LOADED = 6  # models that are kept in memory


@dataclass(frozen=True)
class Entry:
    """A model that can be chosen.

    Attributes:
        path: path for `mmm.load`.
        run: the folder of its run, or None.
        step: number of updates of its weights, if it is from a run.
    """

    path: str
    run: Path | None = None
    step: int | None = None


class Models:
    """Models by their names on the page, loaded when they are used; thread-safe.

    Attributes:
        entries: the models by name, in the given order; the newest checkpoint of a run comes first.
        first: name of the first model of each path.
    """

    def __init__(self, paths: Sequence[str], *, device: torch.device | None = None, norm_pix: bool | None = None) -> None:
        """Lists the models.

        Args:
            paths: run folders, checkpoints in run folders, files of weights, or names on the hub.
            device: device of the models. None: the CPU.
            norm_pix: see `mmm.load`.

        Raises:
            ValueError: no model is named.
        """
        if not paths:
            raise ValueError("no model is named; give a run folder or published weights: mmm play runs/pretrain-1")
        self.device, self.norm_pix = device or torch.device("cpu"), norm_pix
        self.entries: dict[str, Entry] = {}
        self._loaded: OrderedDict[str, MaskedModel] = OrderedDict()
        self._lock = threading.Lock()
        self.first = {path: self._add(_entries(path)) for path in paths}

    def _add(self, entries: list[tuple[str, Entry]]) -> str:
        """Adds models, with a number after a name that is already used, and returns the name of the first."""
        before = len(self.entries)
        for name, entry in entries:
            number, free = 2, name
            while free in self.entries:
                number, free = number + 1, f"{name} ({number})"
            self.entries[free] = entry
        return list(self.entries)[before]

    @property
    def names(self) -> list[str]:
        """The names of all models."""
        return list(self.entries)

    def load(self, name: str) -> MaskedModel:
        """Returns a model, on its device and in evaluation mode.

        Raises:
            ValueError: there is no model of this name, or it cannot be read.
        """
        if name not in self.entries:
            raise ValueError(f"no model is called {name!r}; choose from {', '.join(self.entries)}")
        with self._lock:
            if name not in self._loaded:
                entry = self.entries[name]
                model = load_masked(entry.path, norm_pix=None if entry.run else self.norm_pix).to(self.device).eval()
                if model.data is None:
                    raise ValueError(f"{entry.path} does not contain the normalisation of its samples, so the page cannot use it")
                self._loaded[name] = model
                while len(self._loaded) > LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def check(self) -> None:
        """Loads the first model of each path, so that errors are reported before a page is opened.

        Raises:
            ValueError: a model cannot be read.
        """
        for name in self.first.values():
            self.load(name)

    def steps(self, name: str) -> list[str]:
        """Returns the names of the checkpoints of a model's run, oldest first; none if the model is not from a run."""
        run = self.entries[name].run
        own = [(entry.step, other) for other, entry in self.entries.items() if entry.run == run and entry.step is not None]
        return [other for _, other in sorted(own)] if run is not None else []


def _entries(path: str) -> list[tuple[str, Entry]]:
    """Returns the models of one path: every complete checkpoint of a run folder, or the only model."""
    place = Path(path).expanduser()
    run = run_of(place) if place.exists() else None
    checkpoints = [] if run is None else found(run / "checkpoints")
    if run is None or not checkpoints:
        return [(place.name if place.exists() else path, Entry(path))]
    if place.resolve() != run.resolve():
        folder = place.parent if place.is_file() else place
        step = step_of(folder) if folder in checkpoints else None
        name = run.name if step is None else f"{run.name}, step {step:,}"
        return [(f"{name}, averaged" if place.name.startswith("ema") else name, Entry(path, run, step))]
    entries = []
    for checkpoint in reversed(checkpoints):
        if (reason := damage(checkpoint)) is not None:
            logger.warning("checkpoint %s is damaged and left out: %s", checkpoint, reason)
            continue
        step = step_of(checkpoint)
        entries.append((f"{run.name}, step {step:,}", Entry(str(checkpoint), run, step)))
    if not entries:
        raise ValueError(f"every checkpoint of {path} is damaged")
    return entries
