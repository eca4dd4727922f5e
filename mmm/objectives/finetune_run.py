"""A fine-tuning in progress: what it reads, how it is scored, and under which conditions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

from mmm.classifier import Classifier
from mmm.config.serialize import to_dict
from mmm.data import Batch, Clips, ClipsConfig, Images, Problem, train_batches
from mmm.data.datasets.labelled import Lessons
from mmm.evaluate.classification import classify
from mmm.evaluate.protocol import PartProtocol, Protocol, sampling_of
from mmm.objectives.finetune import FineTuneConfig
from mmm.train.distributed.setup import precision_of
from mmm.train.run.environment import describe_environment
from mmm.train.schedule import Plan
from mmm.train.training import Training

# of the config, what says how a classifier was trained; the rest of a protocol says on what and how it was scored
SCHEDULE = ("train", "soft", "layer_decay", "train_positions", "encoder", "held_back", "seed")


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning about to begin.

    Attributes:
        config: as it is saved.
        lessons: the samples.
        weights: fingerprint of the encoder that it starts from.
    """

    config: FineTuneConfig
    lessons: Lessons
    plan: Plan
    training: Training
    weights: str

    @property
    def model(self) -> Classifier:
        """Inside what DDP, precision and compilation put around it."""
        return cast(Classifier, self.training.bare)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the moving average of its weights, where the run keeps one."""
        return nullcontext() if self.training.ema is None else self.training.ema.applied(self.model)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches of this process, from the step where the run stands."""
        plan, accelerator = self.plan, self.training.accelerator
        return train_batches(
            self.lessons.train,
            self.config.data,
            seed=self.config.seed,
            batch_size=plan.micro_batch_size,
            steps=plan.steps,
            start_step=self.training.step,
            accumulation=plan.accumulation,
            world=accelerator.num_processes,
            rank=accelerator.process_index,
        )

    def some(self, samples: int) -> Batch:
        """A micro-batch of so many samples, to see what it takes."""
        data = replace(self.config.data, workers=0, repeats=1)
        return next(train_batches(self.lessons.train, data, seed=self.config.seed, batch_size=samples, steps=1))

    def name_samples(self, step: int) -> list[int]:
        """The inputs of an update, each as often as it is repeated."""
        repeats, size = self.config.data.repeats, self.plan.batch_size
        _, index = self.lessons.train.order(self.config.seed).at(step * size // repeats, size // repeats)
        return index.repeat_interleave(repeats).tolist()

    def scores(self, part: Images | Clips, problems: list[Problem]) -> dict[str, Any]:
        """How well the model does as it stands."""
        size, accelerator = self.plan.micro_batch_size, self.training.accelerator
        return classify(self.model, part, batch_size=size, accelerator=accelerator, problems=problems)

    def protocol(self) -> Protocol:
        """Under which conditions the scores are measured."""
        config, lessons, data = self.config, self.lessons, self.config.data
        code = describe_environment(self.training.accelerator)
        clips, crops = (data.eval_clips, data.eval_crops) if isinstance(data, ClipsConfig) else (1, 1)

        def part(samples: Images | Clips) -> PartProtocol:
            return PartProtocol.of(samples, lessons.classes)

        return Protocol(
            task="finetune",
            source=str(data.source),
            train=part(lessons.train),
            choice=None if lessons.choice is None else part(lessons.choice),
            test=part(lessons.test),
            size=data.size,
            mean=data.mean,
            std=data.std,
            sampling=sampling_of(data) | {"augment": data.augment},
            views=data.views,
            clips=clips,
            crops=crops,
            pool=to_dict(config.pool),
            head=to_dict(config.head),
            schedule={name: value for name, value in self.training.identity.items() if name.split(".")[0] in SCHEDULE},
            precision=precision_of(self.training.accelerator),
            model=config.model or "scratch",
            step=None,
            weights=self.weights,
            mmm=code["mmm"],
            commit=code["commit"],
        )
