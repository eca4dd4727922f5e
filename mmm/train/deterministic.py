"""The same bits on 1, 2 and 4 processes (`train.strict`): gradients are summed in one fixed tree over the update's micro-batches.

A sum of floats depends on its order. Here the micro-batches of an update, over all processes, are the leaves of a binary tree, and
gradients are added along the tree. Each process holds a contiguous part of the leaves. With a power of two of processes this part
is a subtree, which the process sums alone; the processes then add their sums pair by pair. The result depends neither on the
process that computed a micro-batch nor on resumes with another number of processes.

The same bits are guaranteed for weights, the optimizer's state, averages, and `loss` and `grad_norm` in the metrics, on one kind of
CPU with one version of torch and with the same `train.micro_batch_size` and `train.threads`. Evaluations between updates are
divided among the processes, and agree up to rounding. On GPUs torch's deterministic kernels are selected; the guarantee has not
been tested there.

Memory: log2(micro-batches of a process) + 1 gradients, and 1.5 more with several processes. In contrast to DDP, gradients are not
exchanged during the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, distributed

from mmm.train.config import TrainConfig
from mmm.train.schedule import Plan
from mmm.train.state import Training


class FixedOrderGradients:
    """Computes the gradients of one update on this process and sums them over all processes."""

    def __init__(self, training: Training, plan: Plan, config: TrainConfig) -> None:
        """Raises ValueError if the task uses another micro-batch size than the config."""
        if plan.micro_batch_size != config.micro_batch_size:
            raise ValueError(
                f"train.strict: this task computes {plan.micro_batch_size} samples together on {plan.processes} processes "
                f"and ignores train.micro_batch_size {config.micro_batch_size}; leave train.strict out"
            )
        self.training, self.accumulation, self.all = training, plan.accumulation, plan.processes * plan.accumulation
        self.weights = [weight for weight in training.unwrapped.parameters() if weight.requires_grad]
        self.first = True

    def compute(self, losses: Iterator[Tensor]) -> list[Tensor]:
        """Computes the mean gradient of the update into `grad` of the weights.

        The gradient of a weight that a micro-batch does not use is 0.

        Args:
            losses: losses of this process's micro-batches, each with its graph, computed on request.

        Returns:
            The losses, detached.
        """
        found: list[Tensor] = []
        before = {name: value.clone() for name, value in self.training.unwrapped.named_buffers()} if self.first else {}
        gradients = self._subtree(self.accumulation, losses, found)
        self._refuse_counting(before)
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            add_over_processes([gradient for gradient in gradients if gradient.dtype == dtype])
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        return found

    def _subtree(self, count: int, losses: Iterator[Tensor], found: list[Tensor]) -> list[Tensor]:
        """Returns the sum of the gradients of the next `count` micro-batches, one tensor for each weight."""
        if count > 1:
            half = count // 2
            left = self._subtree(half, losses, found)
            torch._foreach_add_(left, self._subtree(count - half, losses, found))
            return left
        with self.training.accelerator.no_sync(self.training.model):
            loss = next(losses)
            self.training.accelerator.backward(loss / self.all)
        found.append(loss.detach())
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return gradients

    def _refuse_counting(self, before: dict[str, Tensor]) -> None:
        """Raises ValueError if the model updates a buffer in its forward, because its value would depend on one process only."""
        self.first = False
        now = dict(self.training.unwrapped.named_buffers())
        if changed := [name for name, value in before.items() if not torch.equal(value, now[name])]:
            raise ValueError(f"train.strict: the model keeps running values ({changed[0]}), which differ by process; leave it out")


@torch.no_grad()
def add_over_processes(tensors: Sequence[Tensor]) -> None:
    """Sums tensors of one dtype over the processes, in place and in the order of the tree. A single process does nothing.

    The algorithm is recursive halving and doubling: halves are exchanged with the neighbour, quarters with the next pair, and so
    on, until each process has its part of the sum. Then the parts are exchanged in reverse order. Each process sends about two
    gradients for any number of processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    rank, flat = distributed.get_rank(), torch.cat([tensor.flatten() for tensor in tensors])
    part, way, distance = flat, list[tuple[Tensor, Tensor, int]](), 1
    while distance < distributed.get_world_size():
        halves = part.tensor_split(2)
        mine, others = halves[bool(rank & distance)], halves[not rank & distance]
        received = torch.empty_like(mine)
        _swap(others, received, rank ^ distance)
        way.append((mine, others, rank ^ distance))
        part, distance = mine.add_(received), 2 * distance
    for mine, others, peer in reversed(way):
        _swap(mine, others, peer)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))  # keeps the memory layout that a single process has


def _swap(sent: Tensor, received: Tensor, peer: int) -> None:
    ways = [distributed.P2POp(distributed.isend, sent, peer), distributed.P2POp(distributed.irecv, received, peer)]
    for work in distributed.batch_isend_irecv(ways):
        work.wait()
