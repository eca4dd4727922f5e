"""Several weighted sources in one run: the order of the samples follows from the seed and the step alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tar_files import photographs, write_tar

from mmm.data import Images, ImagesConfig, open_images, train_batches
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import Order
from mmm.data.loading.sampler import WeightedOrder

CONFIG = ImagesConfig(image_size=16, workers=0, holdout=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes two sources with two classes each: `a` holds 10 images as files, `b` 3 in a tar."""
    root, pictures = tmp_path_factory.mktemp("sources"), photographs(13)
    for number, picture in enumerate(pictures[:10]):
        (root / "a" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (root / "a" / str(number % 2) / f"{number}.jpg").write_bytes(picture)
    members = [(f"{n}.jpg", pictures[10 + n]) for n in range(3)] + [(f"{n}.cls", b"%d" % (n % 2)) for n in range(3)]
    write_tar(root / "b.tar", members)
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(folders: Path, *weights: int, split: str = "train", **changes: object) -> Images:
    source = f"{folders / 'a'}+{folders / 'b.tar'}"
    return open_images(replace(CONFIG, source=source, weights=weights, **changes), split)  # type: ignore


def test_samples_names_and_labels_follow_each_other(folders: Path) -> None:
    part = opened(folders)
    alone = open_images(replace(CONFIG, source=str(folders / "b.tar")), "train")
    assert len(part) == 13
    assert [part.raw(10 + n) for n in range(3)] == [alone.raw(n) for n in range(3)]
    assert part.name(0) == f"{folders / 'a'}: 0/0.jpg"
    assert part.name(12) == f"{folders / 'b.tar'}: b.tar/2.jpg"
    assert part.labels().tolist() == [0] * 5 + [1] * 5 + [0, 1, 0]


def test_without_weights_one_order_passes_over_all(folders: Path) -> None:
    part = opened(folders)
    assert torch.equal(part.order(3).at(0, 26)[1], Order(13, 3).at(0, 26)[1])


def test_weights_hold_in_every_stretch_and_each_source_has_its_own_epochs(folders: Path) -> None:
    epoch, index = opened(folders, 3, 1).order(5).at(0, 80)
    first = index < 10
    assert first.view(-1, 4).sum(1).tolist() == [3] * 20
    for mine, samples in ((first, range(10)), (~first, range(10, 13))):
        own, passes = index[mine].tolist(), epoch[mine].tolist()
        assert passes == [place // len(samples) for place in range(len(own))]
        for start in range(0, len(own) - len(samples) + 1, len(samples)):
            assert sorted(own[start : start + len(samples)]) == list(samples)
    orders = {tuple(index[~first][start : start + 3].tolist()) for start in range(0, 18, 3)}
    assert len(orders) > 1


def test_groups_of_equal_length_are_not_permuted_alike() -> None:
    order = WeightedOrder([torch.arange(50), torch.arange(50) + 50], [1, 1], seed=0)
    index = order.at(0, 200)[1]
    assert not torch.equal(index[0::2], index[1::2] - 50)
    alone = WeightedOrder([torch.arange(0), torch.arange(50) + 50], [1, 1], seed=0)  # does not depend on the other group
    assert torch.equal(alone.at(0, 100)[1], index[1::2])
    other = WeightedOrder([torch.arange(50), torch.arange(50) + 50], [1, 1], seed=0, source=1)
    assert not torch.equal(other.at(0, 200)[1], index)


def test_from_anywhere_on_it_is_the_same(folders: Path) -> None:
    order = opened(folders, 5, 2).order(1)
    whole = torch.stack(order.at(0, 100))
    for first, count in ((0, 0), (1, 1), (6, 9), (33, 60), (99, 1)):
        assert torch.equal(torch.stack(order.at(first, count)), whole[:, first : first + count])


def test_processes_and_a_resume_change_nothing(folders: Path) -> None:
    mixture = Mixture([opened(folders, 3, 1)], (1,), seed=2)
    whole = [batch.keys.tolist() for batch in mixture.batches(batch_size=8, steps=4)]
    ranks = [mixture.batches(batch_size=2, steps=4, world=2, rank=rank, accumulation=2) for rank in (0, 1)]
    halves = [[batch.keys.tolist() for batch in part] for part in ranks]
    parts = [half[micro::2] for half in halves for micro in (0, 1)]
    assert [[key for keys in four for key in keys] for four in zip(*parts, strict=True)] == whole
    assert [batch.keys.tolist() for batch in mixture.batches(batch_size=8, steps=4, start_step=3)] == whole[3:]
    assert len({key for batch in whole for key in batch}) == 32
    for step, batch in enumerate(mixture.batches(batch_size=8, steps=4)):
        assert mixture.name_samples(step, 8) == batch.index.tolist()
        assert Counter((batch.index < 10).tolist()) == {True: 6, False: 2}


def test_repeats_count_as_samples_of_their_source(folders: Path) -> None:
    part = opened(folders, 1, 1, repeats=2)
    (batch,) = train_batches(part, part.config, seed=0, batch_size=8, steps=1)
    assert Counter((batch.index < 10).tolist()) == {True: 4, False: 4}


def test_held_out_samples_are_of_both_and_not_trained_on(folders: Path) -> None:
    train, held = opened(folders, 3, 1, holdout=0.4), opened(folders, 3, 1, split="eval", holdout=0.4)
    seen = set(train.rows[train.order(0).at(0, 200)[1]].tolist())
    assert seen == set(range(13)) - set(held.rows.tolist())


def test_a_subset_without_one_source_leaves_its_turns_out(folders: Path) -> None:
    part = opened(folders, 3, 1).subset(torch.tensor([4, 11, 2, 0]))  # 11 is a sample of the second source
    assert sorted(part.order(0).at(0, 4)[1].tolist()) == [0, 1, 2, 3]
    alone = opened(folders, 3, 1).subset(torch.tensor([4, 2, 0]))
    assert sorted(alone.order(0).at(0, 3)[1].tolist()) == [0, 1, 2]


def test_a_weight_of_the_only_source_changes_nothing(folders: Path) -> None:
    plain, weighted = (open_images(replace(CONFIG, source=str(folders / "a"), weights=weights), "train") for weights in ((), (2,)))
    assert weighted.order(3).at(5, 20)[1].tolist() == plain.order(3).at(5, 20)[1].tolist()


def test_a_broken_sample_is_named_with_its_source(folders: Path, tmp_path: Path) -> None:
    broken = write_tar(tmp_path / "c.tar", {"x.jpg": b"no picture"})
    part = open_images(replace(CONFIG, source=f"{folders / 'a'} + {broken}", weights=(1, 1)), "train")
    (batch,) = train_batches(part, CONFIG, seed=0, batch_size=2, steps=1)
    assert [problem.name for problem in batch.problems] == [f"{broken}: c.tar/x.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (1, 2, 3)}, r"data\.weights has 3 numbers for 2 of data\.source"),
        ({"weights": (1, 0)}, r"data\.weights \(1, 0\) is not a list, each a whole number of at least 1"),
        ({"weights": (1000, 1)}, r"data\.weights 1000 1 add up to more than 1000"),
        ({"source": "{a}+{a}/gone"}, "gone does not exist"),
        ({"source": "{a}", "weights": (1, 1)}, r"data\.weights has 2 numbers for 1 of"),
        ({"source": "{a}+builtin:photographs", "split": "test"}, "no such split"),
    ],
)
def test_what_does_not_fit_is_one_line(folders: Path, changes: dict[str, object], message: str) -> None:
    changes = {"source": "{a}+{b}"} | changes
    changes["source"] = str(changes["source"]).format(a=folders / "a", b=folders / "b.tar")
    with pytest.raises(ValueError, match=message):
        open_images(replace(CONFIG, **changes), "train")  # type: ignore


def test_weighted_order_takes_turns_as_spread_says() -> None:
    order = WeightedOrder([torch.tensor([7]), torch.tensor([3, 5])], [2, 1], seed=0)
    assert [place != 7 for place in order.at(0, 9)[1].tolist()] == [False, True, False] * 3
