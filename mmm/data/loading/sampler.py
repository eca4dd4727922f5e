"""The order of samples: a pure function of the seed, without state to save."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmm.core.rng import Stream, permutation, sample_keys, stream


class Order:
    """A permutation of the samples for each epoch, made from (seed, epoch).

    Sample p of a run is position p mod n of epoch p // n. A step therefore means the same samples on any number of processes
    and after any resume, a batch may cross the end of an epoch, and a data set may be smaller than a batch.

    Args:
        n: number of samples in the data set.
        seed: random seed of the run.
        source: number of the data set among several that a run mixes; two of equal length have different permutations.
        group: number of these samples among the groups of one source.
    """

    def __init__(self, n: int, seed: int, source: int = 0, group: int = 0) -> None:
        assert n > 0
        self.n, self.seed, self.source, self.group = n, seed, source, group
        self._epochs: dict[int, Tensor] = {}

    def at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """The epochs and indices of samples first .. first + count - 1 of the run, int64 (count,) each."""
        position = torch.arange(first, first + count, dtype=torch.int64)
        epoch, place = position // self.n, position % self.n
        index = torch.empty_like(position)
        for number in range(first // self.n, (first + count - 1) // self.n + 1 if count else 0):
            here = epoch == number
            index[here] = self._epoch(number)[place[here]]
        return epoch, index

    def _epoch(self, number: int) -> Tensor:
        """The permutation of an epoch, (n,). The last two are kept (1.28 million samples: 55 ms and 10 MB each)."""
        if number not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            key = stream(sample_keys(self.seed, number, self.group, source=self.source), Stream.ORDER)
            self._epochs[number] = permutation(key, self.n)[0]
        return self._epochs[number]


class WeightedOrder:
    """Several groups of samples, each with its own order, that alternate in a fixed cycle.

    Of every sum(weights) samples of the run, weights[i] are from group i, spread as evenly as possible. Epochs are counted per
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
        """Number of a group's samples before a position of the run."""
        cycles, rest = divmod(place, len(self.cycle))
        return cycles * int(self.before[-1, group]) + int(self.before[rest, group])


def spread(shares: Sequence[int]) -> list[int]:
    """A cycle that contains each number i shares[i] times, spread evenly: the next number is the one that lags most."""
    total = sum(shares)
    cycle: list[int] = []
    for place in range(1, total + 1):
        cycle.append(max(range(len(shares)), key=lambda number: place * shares[number] - total * cycle.count(number)))
    return cycle
