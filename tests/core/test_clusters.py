"""CAPI's clusters: Sinkhorn and Knopp's algorithm, the clusters' own loss, and assignments over the batch of all processes.

Shapes: B samples, N tokens, K clusters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.tokens import take
from mmm.targets import ClusterTarget
from mmm.train.config import TrainConfig
from mmm.train.optimizer import make_optimizer

Build = Callable[..., MaskedModel]
GRID = (3, 4)


def model_of(build: Build, **options: Any) -> tuple[MaskedModel, Tensor]:
    target = ClusterTarget.Config(**{"clusters": 5, **options})
    return build(target=target).double(), torch.randn(6, 3, 12, 16, dtype=torch.float64)


def teach(model: MaskedModel, x: Tensor) -> Any:
    return model.target.teach(x, model.tokenizer.split(x), GRID)


def plain_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Divides the columns, then the rows, of one place's shares (B, K) by their sums, `iterations` times."""
    shares = (logits / temperature).exp()
    for _ in range(iterations):
        shares = shares / shares.sum(0, keepdim=True)
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def test_assignments_are_sinkhorn_and_knopps_at_each_place(build: Build) -> None:
    model, x = model_of(build, iterations=4, temperature=0.3)
    tokens = F.normalize(model.target.teacher.encoder(model.tokenizer.split(x), GRID, None).tokens, dim=-1)
    logits = F.linear(tokens, model.target.clusters.weight, model.target.clusters.bias)
    token_targets = teach(model, x)
    for place in range(12):
        assert torch.allclose(token_targets.tokens[:, place], plain_sinkhorn(logits[:, place], 0.3, 4), atol=1e-12)
    own = -(token_targets.tokens * (logits / 0.12).log_softmax(-1)).sum(-1).mean()
    assert token_targets.loss.item() == pytest.approx(own.item(), rel=1e-12)
    mask = model.masker(sample_keys(0, 0, torch.arange(6)), GRID)
    output = model(x, mask=mask)
    students = -(take(token_targets.tokens, mask.predict) * (output.prediction / 0.12).log_softmax(-1)).sum(-1).mean()
    assert output.loss.item() == pytest.approx((students + own).item(), rel=1e-12)


def test_assignments_use_all_clusters_alike(build: Build) -> None:
    shares = teach(model_of(build, iterations=50, temperature=0.3)[0], torch.randn(40, 3, 12, 16, dtype=torch.float64)).tokens
    assert torch.allclose(shares.sum(2), torch.ones(40, 12, dtype=torch.float64))
    assert torch.allclose(shares.sum(0), torch.full((12, 5), 8.0, dtype=torch.float64), atol=0.5)


def test_logits_that_lie_far_apart_are_no_division_by_zero(build: Build) -> None:
    model, _ = model_of(build)
    shares = model.target.assign(torch.tensor([[[0.0, 30, -30, 60, 5]], [[40, 0, 0, -40, 5]]]))
    assert shares.isfinite().all()
    assert torch.allclose(shares.sum(2), torch.ones(2, 1))


def test_only_the_clusters_learn_from_their_own_loss(build: Build) -> None:
    model, x = model_of(build)
    teach(model, x).loss.backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == {
        "target.clusters.weight",
        "target.clusters.bias",
    }


def test_the_clusters_have_a_learning_rate_of_their_own(build: Build) -> None:
    model, _ = model_of(build)
    optimizer = make_optimizer(model, TrainConfig(steps=1, batch_size=1, learning_rate=1e-3, weight_decay=0.1))
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    own, other = groups[id(model.target.clusters.weight)], groups[id(model.encoder.blocks[0].mlp.fc1.weight)]
    assert (own["lr_scale"], own["weight_decay"]) == (0.5, pytest.approx(0.01))
    assert (other["lr_scale"], other["weight_decay"]) == (1.0, 0.1)


class Threads:
    """Collective operations between threads, each in the role of a process."""

    def __init__(self, count: int) -> None:
        self.barrier, self.said = threading.Barrier(count, timeout=20), dict[int, Tensor]()

    def _all(self, value: Tensor) -> Tensor:
        self.said[threading.get_ident()] = value.clone()
        self.barrier.wait()
        every = torch.stack([self.said[one] for one in sorted(self.said)])
        self.barrier.wait()
        return every

    def sum(self, value: Tensor) -> Tensor:
        return self._all(value).sum(0)

    def max(self, value: Tensor) -> Tensor:
        return self._all(value).amax(0)


def test_two_processes_assign_as_one_does_and_an_evaluation_asks_nobody(build: Build) -> None:
    model, x = model_of(build)
    model.train()
    whole = teach(model, x).tokens
    model.target.collective = Threads(2)
    found: dict[int, Tensor] = {}

    def half(number: int) -> None:
        found[number] = teach(model, x[3 * number : 3 * number + 3]).tokens

    threads = [threading.Thread(target=half, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.allclose(torch.cat([found[0], found[1]]), whole, atol=1e-12)
    alone = teach(model.eval(), x[:3]).tokens  # no other process takes part
    assert not torch.allclose(alone, whole[:3], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clusters": 0}, r"target\.clusters 0"),
        ({"temperature": 0.0}, r"target\.temperature"),
        ({"iterations": 0}, r"target\.iter"),
    ],
)
def test_mistakes_are_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterTarget.Config(**options)
