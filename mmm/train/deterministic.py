"""The same bits on 1, 2 and 4 processes (`train.strict`): gradients are summed in one fixed tree over the update's micro-batches.

A sum of floats depends on its order. Here the order is that of the micro-batches of one update, counted over all processes: their
row is halved again and again, and the sums of two halves are added. A process holds a contiguous part of the row, which with a
power of two of processes is a whole subtree: it sums that by itself, and the processes go on with the same tree, pair by pair. So
who computed a micro-batch changes nothing, and neither does how often the run was stopped, and on how many processes it went on.

Promised are weights, the optimizer's state, averages, and `loss` and `grad_norm` in the metrics, on one kind of CPU with one
version of torch, where `train.micro_batch_size` and `train.threads` stay as they are. Evaluations between updates are shared out by
process, and agree to rounding. On GPUs of one kind the same is meant, and torch is asked for its deterministic kernels; nobody has
tried it there.

Memory: log2(micro-batches of a process) + 1 gradients, and with several processes 1.5 more. DDP's exchange while it computes is
given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, distributed

from mmm.train.config import TrainConfig
from mmm.train.schedule import Plan
from mmm.train.state import Training


class FixedOrderGradients:
    """Computes the gradients of one update on this process and sums them over all."""

    def __init__(self, training: Training, plan: Plan, config: TrainConfig) -> None:
        """Raises ValueError: a task that computes other micro-batches than those that the config names."""
        if plan.micro_batch_size != config.micro_batch_size:
            raise ValueError(
                f"train.strict: this task computes {plan.micro_batch_size} samples together on {plan.processes} processes, "
                f"whatever train.micro_batch_size {config.micro_batch_size} says; leave train.strict out"
            )
        self.training, self.accumulation, self.all = training, plan.accumulation, plan.processes * plan.accumulation
        self.weights = [weight for weight in training.unwrapped.parameters() if weight.requires_grad]
        self.first = True

    def compute(self, losses: Iterator[Tensor]) -> list[Tensor]:
        """Leaves the mean gradient of the update in the weights.

        A weight that a micro-batch does not use counts with a gradient of 0.

        Args:
            losses: of this process's micro-batches, each with its graph, computed when it is asked for.

        Returns:
            The losses, detached.
        """
        found: list[Tensor] = []
        before = self._buffers() if self.first else {}
        gradients = self._subtree(self.accumulation, losses, found)
        self._refuse_counting(before)
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            add_over_processes([gradient for gradient in gradients if gradient.dtype == dtype])
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        return found

    def _subtree(self, count: int, losses: Iterator[Tensor], found: list[Tensor]) -> list[Tensor]:
        """The sum of the gradients of the next so many micro-batches, one tensor for each weight."""
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

    def _buffers(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.training.unwrapped.named_buffers()}

    def _refuse_counting(self, before: dict[str, Tensor]) -> None:
        """Refuses models whose forward counts or averages in a buffer: each process would count its own micro-batches only."""
        self.first = False
        now = dict(self.training.unwrapped.named_buffers())
        if changed := [name for name, value in before.items() if not torch.equal(value, now[name])]:
            raise ValueError(f"train.strict: the model keeps running values ({changed[0]}), which differ by process; leave it out")


@torch.no_grad()
def add_over_processes(tensors: Sequence[Tensor]) -> None:
    """Sums over the processes, in place and in the tree's order; of one dtype. On one process nothing is to be done.

    Halves are exchanged with the neighbour, quarters with the pair beside, and so on, until each process has its part of the sum;
    then back the same way (recursive halving and doubling): each sends about two gradients, however many processes there are.
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
        tensor.copy_(piece.view_as(tensor))  # into memory laid out as on one process


def _swap(sent: Tensor, received: Tensor, peer: int) -> None:
    ways = [distributed.P2POp(distributed.isend, sent, peer), distributed.P2POp(distributed.irecv, received, peer)]
    for work in distributed.batch_isend_irecv(ways):
        work.wait()
