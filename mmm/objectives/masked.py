"""Masked pretraining: its data streams, and the forward with its loss.

Shapes: B samples of a micro-batch, C channels, (..., h, w) of a sample.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.checks import AboveZero, CheckedConfig, Positive
from mmm.core.rng import sample_keys
from mmm.core.types import Alone
from mmm.data import Batch, Clips, DataConfig, Images, ImagesConfig, open_data
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import eval_batches, prepare
from mmm.evaluate.batches import choose
from mmm.maskers import Masker, MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel
from mmm.targets import Target
from mmm.train.distributed.fsdp import DDP, is_sharded
from mmm.train.distributed.processes import EveryProcess
from mmm.train.schedule import Plan
from mmm.train.state import Training
from mmm.weights.fit import Inflation
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load


@dataclass(frozen=True, kw_only=True)
class SecondSource(CheckedConfig):
    """Samples of another source in separate updates. With a tokenizer of tubes, an image is a constant clip of one tube."""

    data: DataConfig = field(default_factory=ImagesConfig)
    masker: MaskerConfig = RandomMasker.Config()
    weight: AboveZero = 1.0
    """Factor of the loss of these samples."""
    updates: tuple[Positive, Positive] = (1, 1)
    """Number of updates on the first source and on this source in each cycle."""

    @property
    def flag(self) -> str:
        return "second"


@dataclass(frozen=True)
class DataStream:
    """One source of a run.

    Attributes:
        name: empty for the first source, `second` for the second. It is appended to the names of metrics.
        data: options of its samples.
        masker: masker of this source.
        weight: factor of the loss.
        samples: the training samples.
    """

    name: str
    data: DataConfig
    masker: Masker
    weight: float
    samples: Images | Clips

    @classmethod
    def open(cls, name: str, data: DataConfig, masker: MaskerConfig, weight: float = 1.0) -> DataStream:
        """Opens the training samples.

        Raises:
            ValueError: there are no samples; the message names the flag of this source.
        """
        try:
            samples = open_data(data, "train")
        except ValueError as error:
            raise ValueError(re.sub(r"\bdata\.", f"{name}.data.", str(error)) if name else str(error)) from error
        return cls(name, data, maskers.build(masker), weight, samples)

    def metric(self, name: str) -> str:
        """Returns the name of a metric for this source."""
        return f"{name}_{self.name}" if self.name else name


def open_streams(
    data: DataConfig, masker: MaskerConfig, second: SecondSource | None, seed: int
) -> tuple[list[DataStream], Mixture]:
    """Opens one or two sources, and the training samples of a run."""
    streams = [DataStream.open("", data, masker)]
    if second is not None:
        streams.append(DataStream.open("second", second.data, second.masker, second.weight))
    return streams, Mixture([stream.samples for stream in streams], (1,) if second is None else second.updates, seed)


class MaskedObjective:
    """The loss of masked modelling. Masks are drawn from the keys of the samples, outside the compiled graph.

    Args:
        streams: the sources, in the order of the run's `Mixture`.
        model: the unwrapped model, which draws the masks.
        device: device of the computation.
        steps: number of updates of the run, for maskers with a schedule.
    """

    def __init__(self, streams: list[DataStream], model: MaskedModel, device: torch.device, steps: int) -> None:
        self.streams, self.model, self.device, self.steps = streams, model, device, steps

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Returns the mean loss of a micro-batch times the weight of its source, ()."""
        stream, batch = self.streams[batch.source], batch.to(self.device)
        inputs = [prepare(part, stream.data, train=model.training) for part in batch.parts]  # (B, C, ..., h, w) of each size
        draw = partial(self.model.draw_masks, masker=stream.masker, step=step, steps=self.steps)
        masks = [draw(x, part.keys) for x, part in zip(inputs, batch.parts, strict=True)]
        x, mask = (inputs[0], masks[0]) if len(inputs) == 1 else (inputs, masks)
        return model(x, mask=mask).loss * stream.weight

    @staticmethod
    def connect(training: Training) -> None:
        """Connects all processes for targets that depend on the whole batch."""
        model: Any = training.unwrapped
        if model.masker.needs_scores and any(map(is_sharded, model.parameters())):
            raise ValueError(f"masker.name {model.masker.config.name} asks the teacher outside the sharded forward; {DDP}")
        for part in (*model.modules(), *training.model.modules()):  # a compiled model contains copies
            if isinstance(part, Target):
                part.collective = EveryProcess() if training.accelerator.num_processes > 1 else Alone()

    def count_tokens(self, seed: int) -> dict[str, int]:
        """Returns the numbers of visible, predicted and all tokens of a sample of the first source."""
        stream = self.streams[0]
        grid = self.model.tokenizer.grid_of(stream.data.size)
        scores = {"scores": torch.ones(1, math.prod(grid))} if stream.masker.needs_scores else {}
        mask = stream.masker(sample_keys(seed, 0, 0), grid, **scores)
        return {
            "of a sample": math.prod(grid),
            "seen by the encoder": mask.visible.shape[1],
            "predicted": mask.predict.shape[1],
        }


def initialise(
    model: MaskedModel, weights: str | None, stream: DataStream, device: torch.device, inflate: Inflation | None = None
) -> None:
    """Loads the initial weights, if any are given, and initialises the target in the same way on all processes."""
    from accelerate.utils import broadcast

    copied = set() if weights is None else initialise_from(model, weights, inflate=inflate)
    model.target.begin(model, load, None if "target" in copied else partial(read_samples, stream, device))
    for value in model.target.buffers():
        value.copy_(broadcast(value.to(device)))


def read_samples(stream: DataStream, device: torch.device, count: int) -> Iterator[Tensor]:
    """Yields `count` training samples, chosen by key, as normalised batches of centre crops."""
    part = choose(stream.samples, count)
    for batch in eval_batches(part, part.config, batch_size=64):
        if len(batch):
            yield prepare(batch.to(device), part.config, train=False)


def fingerprints(model: MaskedModel, streams: list[DataStream], plan: Plan) -> dict[str, Any]:
    """Returns the values besides the config that a resumed run must share: hashes of its data and of weights of the target that are
    not in checkpoints, and, if the target depends on the whole batch, the number of samples that are computed together.
    """
    found: dict[str, Any] = {stream.metric("data.fingerprint"): stream.samples.fingerprint for stream in streams}
    if model.target.across_batch:
        found["target.samples_together"] = plan.micro_batch_size * plan.processes
    unsaved, digest = model.target.unsaved(), hashlib.sha256()
    for name, value in unsaved.items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found | ({"target.weights": digest.hexdigest()[:16]} if unsaved else {})
