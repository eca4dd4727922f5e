"""Masked pretraining: the data streams that it draws from, and forward including loss.

Shapes: B samples of a micro-batch, C channels, (..., h, w) of a sample.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.core.rng import sample_keys
from mmm.core.types import Alone
from mmm.data import Batch, Clips, DataConfig, Images, ImagesConfig, open_data
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import prepare
from mmm.maskers import Masker, MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel
from mmm.targets import Target
from mmm.train.distributed.fsdp import DDP, is_sharded
from mmm.train.distributed.processes import EveryProcess
from mmm.train.schedule import Plan
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load

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


def open_streams(
    data: DataConfig, masker: MaskerConfig, second: SecondSource | None, seed: int
) -> tuple[list[DataStream], Mixture]:
    """Opens one source or two, and the training samples that a run draws from them."""
    streams = [DataStream.open("", data, masker)]
    if second is not None:
        streams.append(DataStream.open("second", second.data, second.masker, second.weight))
    return streams, Mixture([stream.samples for stream in streams], (1,) if second is None else second.updates, seed)


class MaskedObjective:
    """The loss of masked modelling. Masks are drawn from the samples' keys, outside the compiled graph.

    Args:
        streams: the sources, in the order of the run's `Mixture`.
        model: the whole one, which draws the masks.
        device: to compute on.
        steps: of the run, for maskers with a schedule.
    """

    def __init__(self, streams: list[DataStream], model: MaskedModel, device: torch.device, steps: int) -> None:
        self.streams, self.model, self.device, self.steps = streams, model, device, steps

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss of a micro-batch times the weight of its source, ()."""
        stream, batch = self.streams[batch.source], batch.to(self.device)
        x = prepare(batch, stream.data, train=model.training)  # (B, C, ..., h, w)
        mask = self.model.draw_masks(x, batch.keys, masker=stream.masker, step=step, steps=self.steps)
        return model(x, mask=mask).loss * stream.weight

    @staticmethod
    def connect(model: MaskedModel, accelerator: Accelerator) -> None:
        """Lets targets that look across the batch ask all processes, which must train in step from now on."""
        if model.masker.needs_scores and any(map(is_sharded, model.parameters())):
            raise ValueError(f"masker.name {model.masker.config.name} asks the teacher outside the sharded forward; {DDP}")
        for part in model.modules():
            if isinstance(part, Target):
                part.collective = EveryProcess() if accelerator.num_processes > 1 else Alone()

    def count_tokens(self, seed: int) -> dict[str, int]:
        """Tokens of a sample of the first source, by what becomes of them."""
        stream = self.streams[0]
        grid = self.model.tokenizer.grid_of(stream.data.size)
        scores = {"scores": torch.ones(1, math.prod(grid))} if stream.masker.needs_scores else {}
        mask = stream.masker(sample_keys(seed, 0, 0), grid, **scores)
        return {
            "of a sample": math.prod(grid),
            "seen by the encoder": mask.visible.shape[1],
            "predicted": mask.predict.shape[1],
        }


def initialise(model: MaskedModel, weights: str | None) -> None:
    """Starts from weights, if any are given, and lets the target begin where they hold nothing of it."""
    copied = set() if weights is None else initialise_from(model, weights)
    if "target" not in copied:
        model.target.begin(model, load)


def fingerprints(model: MaskedModel, streams: list[DataStream], plan: Plan) -> dict[str, Any]:
    """Returns what a run depends on beside its config: hashes of its data and of weights that the target has read and no checkpoint
    holds, and, if the target looks across the batch, the number of samples that are computed together.
    """
    found: dict[str, Any] = {stream.metric("data.fingerprint"): stream.samples.fingerprint for stream in streams}
    if model.target.across_batch:
        found["target.samples_together"] = plan.micro_batch_size * plan.processes
    unsaved, digest = model.target.unsaved(), hashlib.sha256()
    for name, value in unsaved.items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found | ({"target.weights": digest.hexdigest()[:16]} if unsaved else {})
