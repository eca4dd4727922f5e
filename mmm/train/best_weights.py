"""The weights with the best score so far on a validation split, kept beside the checkpoints.

    best/step_00000700/     a checkpoint that contains only the weights (their moving average, if the run has one)

The best step is read from metrics.jsonl, so that a resumed run agrees with an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from torch import nn

from mmm.train.checkpoint import writer as checkpoint
from mmm.train.checkpoint.reader import BEST
from mmm.train.distributed.processes import on_main
from mmm.train.run.folder import RunFolder
from mmm.train.state import Training, plain

logger = logging.getLogger(__name__)


class BestWeights:
    """The best weights of a run.

    Attributes:
        step: number of updates of the kept weights. None: no weights are kept yet.
        score: score of the kept weights.
    """

    def __init__(self, folder: RunFolder, training: Training, metric: str) -> None:
        """Finds the weights that an earlier start of the run kept. Called after `RunFolder.cut_metrics`, which drops later lines.

        Args:
            metric: the name of the score in metrics.jsonl; larger scores are better.
        """
        self.path, self.training = folder.path / BEST, training
        found = on_main(training.accelerator, lambda: _find(folder.path / "metrics.jsonl", self.path, metric))
        self.step: int | None = None if found is None else found[0]
        self.score = float("-inf") if found is None else found[1]

    def offer(self, score: float) -> None:
        """Keeps the model's current weights if their score is the best so far."""
        if score <= self.score:
            return
        self.step, self.score = self.training.step, score
        weights = {plain(name): value for name, value in self.training.unwrapped.state_dict().items()}

        def write() -> None:
            shutil.rmtree(self.path / f"step_{self.step:08d}", ignore_errors=True)  # of an earlier start
            checkpoint.write(self.path, self.training.step, {"model": weights}, {"score": score}, 1)

        on_main(self.training.accelerator, write)

    def load(self, model: nn.Module) -> None:
        """Copies the best weights into the unwrapped model."""
        assert self.step is not None
        folder = self.path / f"step_{self.step:08d}"
        tensors, _ = checkpoint.read(folder)
        model.load_state_dict({name: tensors["model"][plain(name)] for name in model.state_dict()})
        logger.info("the weights of step %d did best on the samples held back (%.2f %%)", self.step, 100 * self.score)


def _find(metrics: Path, best: Path, name: str) -> tuple[int, float] | None:
    """Returns the first step with the best score whose weights were kept, and the score."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    kept = [(line["step"], line[name]) for line in lines if (best / f"step_{line['step']:08d}").exists() and name in line]
    return max(kept, key=lambda pair: (pair[1], -pair[0]), default=None)
