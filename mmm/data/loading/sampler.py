"""The order of samples of several groups that alternate: a pure function of the seed, without state to save."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmm.data.loading.loader import Order


class WeightedOrder:
    """Several groups of samples, each with its own order, that alternate in a fixed cycle.

    Each cycle of sum(weights) samples has weights[i] samples of group i, spread as evenly as possible. Epochs are counted per
    group.

    Args:
        groups: the indices of each group's samples, int64 (n_i,); empty groups are left out.
        weights: a whole number for each group.
        seed: random seed of the run.
        source: see `Order`.
    """

    def __init__(self, groups: Sequence[Tensor], weights: Sequence[int], seed: int, source: int = 0) -> None:
        numbers = [number for number, group in enumerate(groups) if len(group)]
        self.groups = [groups[number] for number in numbers]
        self.orders = [Order(len(groups[number]), seed, source, number) for number in numbers]
        self.cycle = torch.tensor(spread([weights[number] for number in numbers]))  # (sum of weights,)
        # number of samples of each group before each position of a cycle; the last row is a whole cycle
        turns = torch.nn.functional.one_hot(self.cycle, len(numbers))
        self.before = torch.cat([torch.zeros_like(turns[:1]), turns.cumsum(0)])  # (sum of weights + 1, groups)

    def at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """See `Order.at`."""
        place = torch.arange(first, first + count, dtype=torch.int64)
        group = self.cycle[place % len(self.cycle)]
        epoch, index = torch.empty_like(place), torch.empty_like(place)
        for number, (order, samples) in enumerate(zip(self.orders, self.groups, strict=True)):
            here = group == number
            start, end = (self._before(edge, number) for edge in (first, first + count))
            epoch[here], own = order.at(start, end - start)
            index[here] = samples[own]
        return epoch, index

    def _before(self, place: int, group: int) -> int:
        """Returns the number of a group's samples before a position of the run."""
        cycles, rest = divmod(place, len(self.cycle))
        return cycles * int(self.before[-1, group]) + int(self.before[rest, group])


def spread(shares: Sequence[int]) -> list[int]:
    """Makes a cycle that contains each number i shares[i] times, spread evenly: the next number is the one that is furthest behind
    its share."""
    total = sum(shares)
    cycle: list[int] = []
    for place in range(1, total + 1):
        cycle.append(max(range(len(shares)), key=lambda number: place * shares[number] - total * cycle.count(number)))
    return cycle
