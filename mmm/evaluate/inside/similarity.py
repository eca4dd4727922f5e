"""Centred kernel alignment (CKA) between the layers of one network or of two.

Linear CKA of features X (n, p) and Y (n, q) of the same n samples compares their Gram matrices: it is 1 where they are equal up to
a rotation and a scale, and near 0 where they are unrelated (Kornblith et al., ICML 2019). The plain form is biased upwards unless
n is far above the widths: independent Gaussian features of 64 samples and 768 values give 0.92. The unbiased form averages
unbiased estimates of HSIC over batches and computes one ratio at the end (Nguyen, Raghu and Kornblith, ICLR 2021, section 2.2);
ratios of batches are never averaged.

Shapes: n samples of a batch, L and M layers, D values of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class MinibatchCKA:
    """Accumulates unbiased linear CKA between all pairs of layers, batch by batch.

    Example:
        cka = MinibatchCKA()
        for batch in batches:
            cka.add(layers_of_one_network(batch), layers_of_the_other(batch))
        matrix = cka.result()
    """

    def __init__(self) -> None:
        """Starts with no batch."""
        self.batches = 0
        self._cross = self._first = self._second = torch.zeros(())

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor] | None = None) -> None:
        """Adds one batch.

        Args:
            first: one table of features per layer, (n, D) each; widths may differ. n is at least 4.
            second: the layers of the other network on the same samples. None: compares the layers of `first` with each other.

        Raises:
            ValueError: a batch has fewer than 4 samples, or the two networks got different numbers of samples.
        """
        a = torch.stack([_unbiased_gram(values) for values in first])  # (L, n * n)
        b = a if second is None else torch.stack([_unbiased_gram(values) for values in second])  # (M, n * n)
        if a.shape[1] != b.shape[1]:
            raise ValueError(
                f"the two networks saw {len(first[0])} and {len((second or first)[0])} samples; give both the same batch"
            )
        n = len(first[0])
        scale = n * (n - 3)
        self._cross = self._cross + a @ b.T / scale  # (L, M)
        self._first = self._first + a.square().sum(1) / scale  # (L,)
        self._second = self._second + b.square().sum(1) / scale  # (M,)
        self.batches += 1

    def result(self) -> Tensor:
        """Returns CKA of each pair, fp64 (L, M).

        Raises:
            ValueError: no batch was added.
        """
        if not self.batches:
            raise ValueError("no batch was added, so there is nothing to compare; give at least 4 samples")
        return self._cross / (self._first[:, None] * self._second[None]).sqrt()


def _unbiased_gram(values: Tensor) -> Tensor:
    """Returns the Gram matrix with the centring that makes inner products unbiased estimates of HSIC (U-centring), (n * n,)."""
    x = _as_rows(values)
    n = len(x)
    if n < 4:
        raise ValueError(f"a batch of {n} samples is too small for unbiased CKA; give at least 4")
    gram = x @ x.T  # (n, n)
    gram.fill_diagonal_(0)
    rows = gram.sum(1)
    gram = gram - (rows[:, None] + rows[None]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0).flatten()


def _as_rows(values: Tensor) -> Tensor:
    """Returns features as fp64 on the CPU: nearly equal rows cause cancellation in Gram matrices, and some devices have no fp64."""
    return values.detach().cpu().double()
