"""The masked loss on a held-out part, with the same masks every time it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmm.data.errors import Problem
from mmm.data.loading.loader import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_of: Callable[[nn.Module, Batch, int], torch.Tensor],
    *,
    accelerator: Accelerator,
    problems: list[Problem],
) -> float:
    """The mean loss of a sample, over all processes; summed exactly, so that for one size of batches it is the same bits on any
    number of them.

    Args:
        model: to be evaluated; left in the mode that it was in.
        batches: of this process, from `eval_batches`, whose keys, and so whose masks, are the same in every run.
        loss_of: the training's own, (model, batch, step) -> () mean over the batch.
        problems: samples of this process that cannot be read are added here; they are left out.

    Raises:
        ValueError: where not one sample could be read.
    """
    from accelerate.utils import gather_object as gather

    losses: list[torch.Tensor] = []  # of each batch, on its device
    samples: list[int] = []
    training = model.training
    model.eval()
    for batch in batches:
        problems += batch.problems
        if len(batch):
            losses.append(loss_of(model, batch, 0))
            samples.append(len(batch))
    model.train(training)
    mine = list(zip(torch.stack(losses).tolist(), samples, strict=True)) if losses else []
    every: list[tuple[float, int]] = gather(mine) if accelerator.num_processes > 1 else mine
    if not every:
        raise ValueError("no sample of the evaluation part could be read; see bad_inputs.jsonl in the run folder")
    return math.fsum(loss * count for loss, count in every) / sum(count for _, count in every)
