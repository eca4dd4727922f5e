"""Scores heads on a part of the data, each input once, whatever the number of processes.

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
    """Counts how often each head is right, over all processes, by the mean over an input's views.

    Args:
        probes: bare; left in evaluation mode.
        batch_size: of a process, samples.
        problems: inputs of this process that cannot be read are added here; they are left out.
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
