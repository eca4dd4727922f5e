"""The masked loss of held-out samples, with the same masks in each measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mmm.core.checks import Positive
from mmm.data.loading.loader import prepare
from mmm.evaluate.batches import all_gather, check_read, read_batches, spread
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.model import MaskedModel


@evaluators.register("masked_loss")
class MaskedLoss(Evaluator):
    """The mean loss of a held-out sample over all processes.

    The sum is exact, so that the result has the same bits on any number of processes with equal batch sizes.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig):
        every: Positive | None = None
        """Updates between two of these evaluations during training. None: train.evaluate_every."""

        samples: Positive = 2048
        """Number of samples, spread evenly over the evaluation split."""

    config: Config
    online = True
    columns: ClassVar[Mapping[str, Column]] = {"held_out_loss": Column("held-out loss", "{:.4f}")}

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Rejects an encoder without a decoder."""
        return "the model is an encoder without a decoder, so it has no loss" if model.decoder is None else None

    @torch.no_grad()
    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns `held_out_loss`, the mean over the samples that can be read.

        Raises:
            ValueError: no sample could be read.
        """
        part = spread(context.test, self.config.samples)
        losses: list[torch.Tensor] = []  # one loss per batch, on its device
        samples: list[int] = []
        for batch in read_batches(part, "masked loss", context.problems, batch_size=context.batch_size):
            batch = batch.to(context.device)
            x = prepare(batch, part.config, train=False)  # (B, C, ..., h, w)
            mask = model.draw_masks(x, batch.keys, masker=context.masker, steps=context.steps)
            losses.append(model(x, mask=mask).loss)
            samples.append(len(batch))
        check_read(bool(losses), part, context.problems)
        own = list(zip(torch.stack(losses).tolist(), samples, strict=True)) if losses else []
        every = [pair for pairs in all_gather(own) for pair in pairs]
        return {"held_out_loss": math.fsum(loss * count for loss, count in every) / sum(count for _, count in every)}
