"""Scores heads on a part of the data, on any number of processes. Each input counts once.

Shapes: b inputs, V views of each, S heads, K classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mmm.data import Clips, Images, Problem, eval_batches
from mmm.evaluate.metrics import Tally, mean_of_views
from mmm.evaluate.probes.heads import Probes
from mmm.evaluate.probes.setup import ProbeSetup
from mmm.evaluate.progress import progress


@torch.no_grad()
def score_probes(probes: Probes, setup: ProbeSetup, part: Images | Clips, *, batch_size: int, problems: list[Problem]) -> Tally:
    """Counts the correct predictions of each head over all processes. A prediction is the mean over the views of an input.

    Args:
        probes: unwrapped. They stay in evaluation mode.
        batch_size: number of samples per process and batch.
        problems: unreadable inputs of this process are added here. They are left out.
    """
    accelerator, views = setup.accelerator, part.config.views
    tally = Tally(len(probes.eval().heads), setup.classes, accelerator.device)
    world, rank = accelerator.num_processes, accelerator.process_index
    batches = eval_batches(part, part.config, batch_size=batch_size, world=world, rank=rank)
    total = -(-len(part) // world)
    for batch in progress(batches, total, f"scores of {part.title}", lambda batch: len(batch.index) // views + len(batch.problems)):
        problems += batch.problems
        if len(batch):
            tokens, labels = setup.encode(batch, train=False)
            tally.add(mean_of_views(probes(probes.prepare(tokens)), views), labels[::views])  # (S, b V, K) -> (S, b, K)
    return tally.gathered(lambda counts: cast(Tensor, accelerator.reduce(counts, reduction="sum")))
