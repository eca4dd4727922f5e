"""Trains heads on a frozen encoder, chooses among them by samples held back, and scores them on the test part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmm.config.serialize import to_dict
from mmm.data import BadInputs, Batch, Clips, Images, Problem, train_batches
from mmm.evaluate.metrics import Tally
from mmm.evaluate.probes.heads import Probes, grouped, make_probe_optimizer, probes_loss
from mmm.evaluate.probes.probe_score import score_probes
from mmm.evaluate.probes.setup import Exam, ProbeConfig
from mmm.train.config import identity
from mmm.train.loop import fit
from mmm.train.progress import show_progress
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import Plan, due, make_plan
from mmm.train.trackers import start_tracker
from mmm.train.training import Training

# of the config, what may differ between a stop and its resume; data and weights are compared by their fingerprints
RUNTIME = (
    *("folder", "resume", "allow", "model", "test_split", "methods", "exact.penalties", "exact.iterations", "exact.tolerance"),
    *(f"data.{name}" for name in ("source", "workers", "cache", "max_bad", "deadline")),
)


@dataclass(frozen=True)
class Probing:
    """Heads about to be trained.

    Attributes:
        plan: of the run, whose micro-batches are the encoder's.
        training: of the heads; the encoder stands outside.
    """

    config: ProbeConfig
    exam: Exam
    plan: Plan
    training: Training

    @classmethod
    def prepare(cls, config: ProbeConfig, exam: Exam, *, weights: str) -> Probing:
        """Works everything out before anything starts.

        Args:
            weights: fingerprint of the encoder: a resumed run must be on the same.

        Raises:
            ValueError: where a batch does not divide, or the pool does not fit the encoder.
        """
        accelerator, shape = exam.accelerator, exam.model.encoder.shape
        samples = len(exam.train) * exam.data.repeats
        plan = make_plan(config.train, samples=samples, processes=accelerator.num_processes)
        probes = Probes(len(config.rates), config.pool, config.head, encoder=shape, classes=exam.classes, seed=config.seed)
        same = identity(to_dict(config), runtime=RUNTIME) | {"fingerprint": exam.train.fingerprint, "weights": weights}
        optimizer = make_probe_optimizer(probes, config.rates, config.train, config.optimizer, config.momentum)
        training = Training.prepare(accelerator, probes, optimizer, identity=same, ema=config.train.ema is not None)
        return cls(config, exam, plan, training)

    @property
    def probes(self) -> Probes:
        """Bare."""
        return cast(Probes, self.training.bare)

    @property
    def heads_plan(self) -> Plan:
        """The plan as the heads see it: without weights in the pool all of an update is one batch to them, so that batch norm's
        statistics are of the whole, however many micro-batches and processes encode it."""
        together = 1 if self.probes.shared is None else self.plan.accumulation
        size = self.plan.micro_batch_size * together
        return replace(self.plan, micro_batch_size=size, accumulation=self.plan.accumulation // together)

    def loss(self, probes: nn.Module, group: list[Batch], step: int) -> Tensor:
        """The loss of the heads on micro-batches that are encoded here, so that encoding does not count as waiting for data."""
        encoded = [self.exam.encode(batch, train=True) for batch in group]
        values = torch.cat([self.probes.prepare(tokens) for tokens, _ in encoded])
        return probes_loss(probes, (values, torch.cat([labels for _, labels in encoded])), step)

    def batches(self, bad: BadInputs) -> Iterator[list[Batch]]:
        """Groups of micro-batches, from the step where the run stands."""
        exam, plan, accelerator = self.exam, self.plan, self.exam.accelerator
        batches = train_batches(
            exam.train,
            exam.data,
            seed=self.config.seed,
            batch_size=plan.micro_batch_size,
            steps=plan.steps,
            start_step=self.training.step,
            accumulation=plan.accumulation,
            world=accelerator.num_processes,
            rank=accelerator.process_index,
        )
        return grouped(bad.watch(batches), plan.accumulation // self.heads_plan.accumulation)

    def name_samples(self, step: int) -> list[int]:
        """The samples of an update."""
        repeats, size = self.exam.data.repeats, self.plan.batch_size
        _, index = self.exam.train.order(self.config.seed).at(step * size // repeats, size // repeats)
        return index.repeat_interleave(repeats).tolist()

    def run(self, folder: RunFolder) -> dict[str, Any]:
        """Trains from where the run stands to its end; see `choose` for what it gives."""
        config, training, plan = self.config, self.training, self.plan
        main = training.accelerator.is_main_process
        if config.resume:
            folder.adopt(training.restore(folder.checkpoints, config.allow), training.step, config)
            folder.cut_metrics(training.step)
        start_tracker(training.accelerator, config.train.tracker, folder.path, training.identity)
        total = sum(len(part) for part in (self.exam.train, self.exam.choice, self.exam.test) if part is not None)
        bad = BadInputs(folder.path / "bad_inputs.jsonl", total, self.exam.data.max_bad, write=main)
        updates = fit(
            training,
            self.batches(bad),
            self.loss,
            config=config.train,
            plan=self.heads_plan,
            seed=config.seed,
            name_samples=self.name_samples,
        )
        for update in show_progress(updates, plan, start=training.step, main=main):
            line = dict(update.metrics or {})
            if self.exam.choice is not None and due(update.step, config.train.evaluate_every, plan.steps):
                line["held_back_top1"] = max(self.score(self.exam.choice, bad.pending).top1())
            folder.note_skipped(update.skipped)
            if line or update.save or update.last:
                bad.share()
            if line:
                folder.log(update.step, line)
                training.accelerator.log(line, step=update.step)
            if update.save:
                keep_last, keep_every = config.train.keep_last, config.train.keep_every
                training.save(folder.checkpoints, keep_last, keep_every=keep_every, needed=update.last)
            bad.check()  # after the checkpoint, so that a run that stops here keeps it
        result = self.choose(bad)
        training.accelerator.end_training()  # last: it takes the processes apart
        return result

    def choose(self, bad: BadInputs) -> dict[str, Any]:
        """Scores all heads; the one that did best on the samples held back is chosen, of equals the first.

        Returns:
            `tried`, for each rate its peak `learning_rate`, `held_back` (where there is such a part) and `test`, both `top1` and
            `top5`; `chosen`, its place; and of that head on the test part what `Tally.result` gives.
        """
        average = nullcontext() if self.training.ema is None else self.training.ema.applied(self.probes)
        with average:
            held = None if self.exam.choice is None else self.score(self.exam.choice, bad.pending)
            test = self.score(self.exam.test, bad.pending)
        bad.share()
        bad.check()
        chosen = 0 if held is None else max(range(len(self.config.rates)), key=held.top1().__getitem__)
        tried: list[dict[str, Any]] = []
        for number, rate in enumerate(self.config.rates):
            tallies = {"test": test} | ({} if held is None else {"held_back": held})
            found = {name: {top: tally.result(number)[top] for top in ("top1", "top5")} for name, tally in tallies.items()}
            tried.append({"rate": rate, "learning_rate": self.plan.peak * rate} | found)
        return {"tried": tried, "chosen": chosen, "unreadable": len(bad.found)} | test.result(chosen)

    def score(self, part: Images | Clips, problems: list[Problem]) -> Tally:
        """How often the heads are right; see `score_probes`."""
        return score_probes(self.probes, self.exam, part, batch_size=self.plan.micro_batch_size, problems=problems)
