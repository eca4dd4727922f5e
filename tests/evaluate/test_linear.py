"""Tests of the linear classifier on few labels: agreement with scikit-learn, choice of labels, and choice of the penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mmm.evaluate.features.logistic_regression import Logistic, accuracy, few_label_accuracy, few_labels

Tables = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Tables:
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    return x[:1200].float(), y[:1200], x[1200:].float(), y[1200:]


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_agrees_with_scikit_learn(digits: Tables, penalty: float) -> None:
    train, labels, test, expected = digits
    centre, spread = train.mean(0), train.std(0).clamp(min=0.5)
    train, test = (train - centre) / spread, (test - centre) / spread
    ours = Logistic(train.shape[1], 10).fit(train, labels, penalty, iterations=300, tolerance=1e-6)
    theirs = LogisticRegression(C=1 / (penalty * len(train)), max_iter=1000, tol=1e-8).fit(train.double().numpy(), labels.numpy())
    with torch.no_grad():
        shares = ours(test).softmax(1).numpy()
    assert np.allclose(ours.weight.detach().numpy().T, theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    assert np.allclose(shares, theirs.predict_proba(test.double().numpy()), atol=2e-3)
    assert abs(accuracy(ours(test), expected) - theirs.score(test.double().numpy(), expected.numpy())) <= 1 / len(expected)


def test_labels_are_drawn_by_key_evenly_and_once() -> None:
    labels = torch.arange(4).repeat(50)[torch.randperm(200)]
    fit, choose = few_labels(labels, each=20, seed=3)
    assert labels[fit].bincount().tolist() == [16] * 4
    assert labels[choose].bincount().tolist() == [4] * 4
    assert len(torch.cat([fit, choose]).unique()) == 80
    again = few_labels(labels, each=20, seed=3)
    assert torch.equal(fit, again[0])
    assert torch.equal(choose, again[1])
    assert not torch.equal(fit, few_labels(labels, each=20, seed=4)[0])


def test_fewer_labels_hold_to_those_that_were_there() -> None:
    """Ten labels per class are among the twenty, so that a sweep over their number compares nested sets."""
    labels = torch.arange(3).repeat(40)
    small, large = (set(torch.cat(few_labels(labels, each)).tolist()) for each in (10, 20))
    assert small < large


def test_a_small_class_gives_all_it_has_and_a_single_label_is_trained_on() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3 + [2])
    fit, choose = few_labels(labels, each=5)
    assert labels[fit].bincount().tolist() == [4, 2, 1]
    assert labels[choose].bincount(minlength=3).tolist() == [1, 1, 0]


def test_the_test_part_chooses_nothing(digits: Tables) -> None:
    train, labels, test, expected = digits
    found = few_label_accuracy(train, labels, test, expected, each=20)
    other = few_label_accuracy(train, labels, test[:50], expected[:50].flip(0), each=20)
    assert other["penalty"] == found["penalty"]
    assert found["labels"] == other["labels"] == 200
    assert 0.85 < found["top1"] < 0.97


def test_scale_and_constant_values_do_not_matter(digits: Tables) -> None:
    """Features are standardised by the labelled training samples. Digits have pixels that are always 0."""
    train, labels, test, expected = digits
    found = few_label_accuracy(train, labels, test, expected, each=10)
    scaled = few_label_accuracy(train * 1000 + 5, labels, test * 1000 + 5, expected, each=10)
    assert scaled["top1"] == pytest.approx(found["top1"], abs=0.01)


def test_one_label_a_class_is_enough(digits: Tables) -> None:
    train, labels, test, expected = digits
    found = few_label_accuracy(train, labels, test, expected, each=1)
    assert (found["labels"], found["penalty"]) == (10, 0.01)
    assert found["top1"] > 0.3
