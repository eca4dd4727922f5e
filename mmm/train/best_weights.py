"""The weights that did best so far on samples held back for that, kept beside the checkpoints.

    best/step_00000700/     a checkpoint that holds the weights alone (their moving average, where the run keeps one)

Which step did best is read from metrics.jsonl, so a resumed run knows what the uninterrupted one knew.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch import nn

from mmm.train.checkpoint import writer as checkpoint
from mmm.train.distributed.processes import on_main
from mmm.train.run.folder import RunFolder
from mmm.train.state import Training, plain

logger = logging.getLogger(__name__)


class BestWeights:
    """The best weights of a run.

    Attributes:
        step: updates that they had seen; None where nothing was kept yet.
        score: how well they did.
    """

    def __init__(self, folder: RunFolder, training: Training, metric: str) -> None:
        """Finds what an earlier start of the run kept; after `RunFolder.cut_metrics`, so that it knows nothing of what is lost.

        Args:
            metric: the name of the score in metrics.jsonl, of which more is better.
        """
        self.path, self.training = folder.path / "best", training
        found = on_main(training.accelerator, lambda: _find(folder.path / "metrics.jsonl", self.path, metric))
        self.step: int | None = None if found is None else found[0]
        self.score = float("-inf") if found is None else found[1]

    def offer(self, score: float) -> None:
        """Keeps the weights that the model holds now, if they did better than any before."""
        if score <= self.score:
            return
        self.step, self.score = self.training.step, score
        weights = {plain(name): value for name, value in self.training.unwrapped.state_dict().items()}
        on_main(
            self.training.accelerator,
            lambda: checkpoint.write(self.path, self.training.step, {"model": weights}, {"score": score}, 1),
        )

    def load(self, model: nn.Module) -> None:
        """Copies the best weights into the unwrapped model."""
        assert self.step is not None
        folder = self.path / f"step_{self.step:08d}"
        tensors, _ = checkpoint.read(folder)
        model.load_state_dict({name: tensors["model"][plain(name)] for name in model.state_dict()})
        logger.info("the weights of step %d did best on the samples held back (%.2f %%)", self.step, 100 * self.score)


def _find(metrics: Path, best: Path, name: str) -> tuple[int, float] | None:
    """The first of the best steps whose weights are there, and its score."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    kept = [(line["step"], line[name]) for line in lines if (best / f"step_{line['step']:08d}").exists() and name in line]
    return max(kept, key=lambda pair: (pair[1], -pair[0]), default=None)
