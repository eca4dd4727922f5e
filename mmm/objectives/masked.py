"""Masked pretraining: the data streams that it draws from, and forward including loss.

Shapes: B samples of a micro-batch, C channels, (..., h, w) of a sample.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.core.types import Alone
from mmm.data import Batch, Clips, DataConfig, Images, ImagesConfig, open_data
from mmm.data.loading.loader import prepare
from mmm.maskers import Masker, MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel
from mmm.targets import Target
from mmm.train.distributed.processes import EveryProcess
from mmm.train.schedule import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class SecondSource:
    """Samples of another source, in updates of their own; an image, among tubes, is a clip of one tube that stands still."""

    data: DataConfig = field(default_factory=ImagesConfig)
    masker: MaskerConfig = RandomMasker.Config()
    weight: float = 1.0
    """Factor of the loss of these samples."""
    updates: tuple[int, int] = (1, 1)
    """Updates on the first source and on this one, in each cycle."""

    def __post_init__(self) -> None:
        if min(self.updates) < 1:
            raise ValueError(f"second.updates {self.updates}: give at least 1 update of a cycle to each source")
        if self.weight <= 0:
            raise ValueError(f"second.weight {self.weight} must be above 0")


@dataclass(frozen=True)
class DataStream:
    """One source of a run.

    Attributes:
        name: empty for the first, `second` for the second; appended to the names of its metrics.
        data: how its samples are read.
        masker: its own.
        weight: factor of its loss.
        samples: to train on.
    """

    name: str
    data: DataConfig
    masker: Masker
    weight: float
    samples: Images | Clips

    @classmethod
    def open(cls, name: str, data: DataConfig, masker: MaskerConfig, weight: float = 1.0) -> DataStream:
        """Opens the training part.

        Raises:
            ValueError: where there is none; the message names the flag of this source.
        """
        try:
            samples = open_data(data, "train")
        except ValueError as error:
            raise ValueError(re.sub(r"\bdata\.", f"{name}.data.", str(error)) if name else str(error)) from error
        return cls(name, data, maskers.build(masker), weight, samples)

    def metric(self, name: str) -> str:
        """A metric's name for this source."""
        return f"{name}_{self.name}" if self.name else name


class MaskedObjective:
    """The loss of masked modelling. Masks are drawn from the samples' keys, outside the compiled graph.

    Args:
        streams: the sources, in the order of the run's `Mixture`.
        tokenizer: the model's, which computes the grid.
        device: to compute on.
        steps: of the run, for maskers with a schedule.
    """

    def __init__(self, streams: list[DataStream], tokenizer: Any, device: torch.device, steps: int) -> None:
        self.streams, self.tokenizer, self.device, self.steps = streams, tokenizer, device, steps

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss of a micro-batch times the weight of its source, ()."""
        stream = self.streams[batch.source]
        return self.unweighted(stream, model, batch, step) * stream.weight

    def unweighted(self, stream: DataStream, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss of a micro-batch of a source, ()."""
        batch = batch.to(self.device)
        x = prepare(batch, stream.data, train=model.training)  # (B, C, ..., h, w)
        mask = stream.masker(batch.keys, self.tokenizer.grid(x), step=step, steps=self.steps)
        return model(x, mask=mask).loss


def connect(model: MaskedModel, accelerator: Accelerator) -> None:
    """Hands the targets that look across the batch a way to ask all processes, which must from now on train in step."""
    for part in model.modules():
        if isinstance(part, Target):
            part.collective = EveryProcess() if accelerator.num_processes > 1 else Alone()


def fingerprint(model: MaskedModel, plan: Plan) -> dict[str, Any]:
    """Values that a run depends on beside its config: a hash of the weights that the target has read and no checkpoint holds, and,
    if the target looks across the batch, the samples that are computed together.
    """
    found, target = hashlib.sha256(), model.target
    for name, value in (unsaved := target.unsaved()).items():
        found.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    together = {"target.samples_together": plan.micro_batch_size * plan.processes} if target.across_batch else {}
    return together | ({"target.weights": found.hexdigest()[:16]} if unsaved else {})
