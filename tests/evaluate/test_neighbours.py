"""Tests of nearest neighbours: agreement with scikit-learn, computation in blocks, and votes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mmm.evaluate.features import knn as neighbours
from mmm.evaluate.features.knn import accuracy, nearest_neighbours, neighbour_votes

Tables = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Tables:
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x = x.float() + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))  # no two distances are equal
    return x[:1200], y[:1200], x[1200:], y[1200:]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_agrees_with_scikit_learn(digits: Tables, k: int) -> None:
    train, labels, test, expected = digits
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07))
    reference.fit(train.double().numpy(), labels.numpy())
    votes = neighbour_votes(train, labels, test, classes=10, k=k)
    share = votes / votes.sum(1, keepdim=True)
    assert np.allclose(share.numpy(), reference.predict_proba(test.double().numpy()), atol=1e-4)
    found = nearest_neighbours(train, labels, test, expected, k)["top1"]
    assert abs(found - reference.score(test.double().numpy(), expected.numpy())) < 1 / len(expected)


def test_blocks_change_nothing(digits: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, _ = digits
    whole = neighbour_votes(train, labels, test, 10)
    monkeypatch.setattr(neighbours, "BLOCK", 7 * len(train))
    assert torch.allclose(neighbour_votes(train, labels, test, 10), whole, rtol=1e-4)


def test_the_length_of_a_feature_says_nothing(digits: Tables) -> None:
    train, labels, test, expected = digits
    long = train * torch.arange(1, len(train) + 1)[:, None]
    assert nearest_neighbours(long, labels, 3 * test, expected) == pytest.approx(nearest_neighbours(train, labels, test, expected))


def test_accuracy_counts_ties_and_missing_votes() -> None:
    votes = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 2])
    assert accuracy(votes, labels) == 0.25  # a tie goes to the lower class, so only the first is right
    assert accuracy(votes, labels, top=2) == 0.75
    assert accuracy(votes, labels, top=4) == 0.75  # the class of the last sample has no votes


def test_fewer_samples_than_neighbours_and_k_of_none() -> None:
    x, y = torch.eye(3), torch.arange(3)
    assert nearest_neighbours(x, y, x, y, k=20)["top1"] == 1.0
    with pytest.raises(ValueError, match="k is 0"):
        nearest_neighbours(x, y, x, y, k=0)
