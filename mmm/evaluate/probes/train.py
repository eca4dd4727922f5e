"""Trains heads on a frozen encoder, chooses one head with held-back samples, and scores all heads on the test samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmm.config.serialize import to_dict
from mmm.data import BadInputs, Batch, Clips, Images, Problem
from mmm.data.datasets.mixture import Mixture
from mmm.evaluate.batches import read_batches
from mmm.evaluate.metrics import Tally, mean_of_views
from mmm.evaluate.probes.heads import Probes, make_probe_optimizer, probes_loss
from mmm.evaluate.probes.setup import ProbeConfig, ProbeSetup
from mmm.train.config import identity
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import Plan, make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

# options that may differ when a run is resumed, in addition to those of every run; weights are compared by their fingerprint
RUNTIME = ("model", "test_split", "methods", "exact.penalties", "exact.iterations", "exact.tolerance")


@dataclass(frozen=True)
class BatchGroup:
    """Micro-batches for the encoder, which form one batch for the heads.

    Attributes:
        batches: batches of this process.
    """

    batches: list[Batch]

    @property
    def problems(self) -> list[Problem]:
        """The unreadable inputs."""
        return [problem for batch in self.batches for problem in batch.problems]


class GroupedBatches(Mixture):
    """The training samples, in groups of micro-batches of the encoder's size."""

    def __init__(self, part: Images | Clips, seed: int, encoder_batch: int) -> None:
        super().__init__([part], (1,), seed)
        self.encoder_batch = encoder_batch

    def batches(  # type: ignore[override]
        self, *, batch_size: int, steps: int, start_step: int = 0, accumulation: int = 1, world: int = 1, rank: int = 0
    ) -> Iterator[BatchGroup]:
        """Yields the groups of one process. The arguments are those of `Mixture.batches`, for the heads."""
        together = batch_size // self.encoder_batch
        batches = super().batches(
            batch_size=self.encoder_batch,
            steps=steps,
            start_step=start_step,
            accumulation=accumulation * together,
            world=world,
            rank=rank,
        )
        while group := list(islice(batches, together)):
            yield BatchGroup(group)

    def sample_batch(self, source: int, samples: int) -> BatchGroup:  # type: ignore[override]
        """Returns a group of one micro-batch, to measure its time and memory."""
        return BatchGroup([super().sample_batch(source, samples)])


class ProbeObjective:
    """The loss of heads on a frozen encoder."""

    def __init__(self, setup: ProbeSetup, probes: Probes) -> None:
        """Keeps the setup and the unwrapped heads, which select the values that they need."""
        self.setup, self.probes = setup, probes

    def loss(self, model: nn.Module, group: BatchGroup, step: int) -> Tensor:
        """Returns the sum of the mean losses of the heads, (). Samples are encoded here, so that encoding does not count as waiting
        for data."""
        encoded = [self.setup.encode(batch, train=True) for batch in group.batches]
        values = torch.cat([self.probes.prepare(tokens) for tokens, _ in encoded])
        return probes_loss(model, (values, torch.cat([labels for _, labels in encoded])), step)


@dataclass(frozen=True)
class ProbeTraining:
    """Heads, with everything that is needed to train them.

    Attributes:
        plan: plan of the run, with the encoder's micro-batches.
        training: state of the training of the heads. The encoder is not part of it.
    """

    config: ProbeConfig
    setup: ProbeSetup
    plan: Plan
    training: Training

    @classmethod
    def prepare(cls, config: ProbeConfig, setup: ProbeSetup, *, weights: str) -> ProbeTraining:
        """Prepares plan, heads and optimizer.

        Args:
            weights: fingerprint of the encoder, which must be the same when a run is resumed.

        Raises:
            ValueError: a batch does not divide evenly, or the pool does not fit the encoder.
        """
        accelerator, shape = setup.accelerator, setup.model.encoder.shape
        samples = len(setup.splits.train) * setup.data.repeats
        plan = make_plan(config.train, samples=samples, processes=accelerator.num_processes)
        probes = Probes(len(config.rates), config.pool, config.head, encoder=shape, classes=setup.splits.classes, seed=config.seed)
        same = identity(to_dict(config), runtime=RUNTIME) | {"fingerprint": setup.splits.train.fingerprint, "weights": weights}
        optimizer = make_probe_optimizer(probes, config.rates, config.train, config.optimizer, config.momentum)
        training = Training.prepare(accelerator, probes, optimizer, identity=same, ema=config.train.ema is not None)
        return cls(config, setup, plan, training)

    @property
    def probes(self) -> Probes:
        """The unwrapped heads."""
        return cast(Probes, self.training.unwrapped)

    def open_session(self, folder: RunFolder) -> AbstractContextManager[Session]:
        """Opens the session that trains the heads; see `mmm.train.session.open_session`."""
        return open_session(
            folder,
            self.config,
            self.training,
            ProbeObjective(self.setup, self.probes),
            self.data,
            self.heads_plan,
            evaluated=self.setup.splits.inputs - len(self.setup.splits.train),
            unit=None,
        )

    def preview(self) -> str:
        """Returns the table of a dry run."""
        objective = ProbeObjective(self.setup, self.probes)
        tokens = {"of a sample": math.prod(self.setup.model.tokenizer.grid_of(self.setup.data.size))}
        data, plan = self.data, self.heads_plan
        return preview(self.config, self.training, objective, data, plan, tokens=tokens, unit=None)

    @property
    def heads_plan(self) -> Plan:
        """Plan of the heads. If the pool has no weights, all samples of an update form one batch for the heads, so that the
        statistics of batch norm do not depend on the micro-batches of the encoder."""
        together = 1 if self.probes.shared is None else self.plan.accumulation
        size = self.plan.micro_batch_size * together
        return replace(self.plan, micro_batch_size=size, accumulation=self.plan.accumulation // together)

    @property
    def data(self) -> GroupedBatches:
        """The training samples."""
        return GroupedBatches(self.setup.splits.train, self.config.seed, self.plan.micro_batch_size)

    def run(self, folder: RunFolder) -> dict[str, Any]:
        """Trains to the end of the run, and returns the result of `choose`."""
        with self.open_session(folder) as session:
            for update in session:
                if self.setup.splits.validation is not None and update.due(self.config.train.evaluate_every):
                    tally = self.score(self.setup.splits.validation, session.bad_inputs.pending)
                    update.metrics["held_back_top1"] = max(tally.top1())
            return self.choose(session.bad_inputs)

    def choose(self, bad: BadInputs) -> dict[str, Any]:
        """Scores all heads, and chooses the head with the best accuracy on the held-back samples (the first if several are best).

        Returns:
            `tried`, for each rate its peak `learning_rate`, and `top1` and `top5` on `held_back` (if samples are held back) and
            `test`; `chosen`, the position of the chosen head; and the values of `Tally.result` for that head on the test samples.
        """
        with self.training.averaged():
            held = None if self.setup.splits.validation is None else self.score(self.setup.splits.validation, bad.pending)
            test = self.score(self.setup.splits.test, bad.pending)
        bad.share()
        bad.check()
        chosen = 0 if held is None else max(range(len(self.config.rates)), key=held.top1().__getitem__)
        tried: list[dict[str, Any]] = []
        for number, rate in enumerate(self.config.rates):
            tallies = {"test": test} | ({} if held is None else {"held_back": held})
            found = {name: {top: tally.result(number)[top] for top in ("top1", "top5")} for name, tally in tallies.items()}
            tried.append({"rate": rate, "learning_rate": self.plan.peak * rate} | found)
        return {"tried": tried, "chosen": chosen, "unreadable": len(bad.found)} | test.result(chosen)

    @torch.no_grad()
    def score(self, part: Images | Clips, problems: list[Problem]) -> Tally:
        """Counts the correct predictions of each head over all processes; a prediction is the mean over the views of an input.

        Args:
            problems: unreadable inputs of this process are added here. They are left out.
        """
        probes, views = self.probes.eval(), part.config.views
        tally = Tally(len(probes.heads), self.setup.splits.classes, self.setup.accelerator.device)
        for batch in read_batches(part, "scores", problems, batch_size=self.plan.micro_batch_size):
            tokens, labels = self.setup.encode(batch, train=False)
            tally.add(mean_of_views(probes(probes.prepare(tokens)), views), labels[::views])  # (S, b V, K) -> (S, b, K)
        return tally.gather()
