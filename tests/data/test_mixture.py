"""Two sources in one training run: the source and the samples of an update follow from the step alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmm.data import Images, ImagesConfig, open_images, train_batches
from mmm.data.datasets.mixture import Mixture, spread

CONFIG = ImagesConfig(source="builtin:photographs", image_size=32, channels=1, mean=(0.5,), std=(0.2,), workers=0)


@pytest.fixture(scope="module")
def images() -> Images:
    return open_images(CONFIG, "train")


@pytest.mark.parametrize("updates", [(1,), (1, 1), (2, 1), (1, 3), (5, 2), (3, 2, 1)])
def test_a_cycle_holds_each_source_as_often_as_it_says_and_evenly(updates: tuple[int, ...]) -> None:
    cycle = spread(updates)
    total = sum(updates)
    assert [cycle.count(source) for source in range(len(updates))] == list(updates)
    for place in range(1, total + 1):
        for source, number in enumerate(updates):
            assert abs(cycle[:place].count(source) - place * number / total) < 1


def test_updates_before_a_step_are_those_that_took_the_source(images: Images) -> None:
    mixture = Mixture([images, images], (3, 2), seed=0)
    turns = [mixture.source(step) for step in range(23)]
    for step in range(23):
        assert [mixture.before(source, step) for source in (0, 1)] == [turns[:step].count(source) for source in (0, 1)]


def test_one_source_is_what_the_loader_alone_gives(images: Images) -> None:
    found = Mixture([images], (1,), seed=3).batches(batch_size=4, steps=3, accumulation=2)
    alone = train_batches(images, CONFIG, seed=3, batch_size=4, steps=3, accumulation=2)
    for one, two in zip(found, alone, strict=True):
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.keys, two.keys)


def test_stopped_anywhere_it_goes_on_as_if_it_had_not(images: Images) -> None:
    few = images.subset(torch.arange(7))  # epochs end in the middle of updates
    other = Images(few.table, replace(CONFIG, repeats=2), few.rows, few.where)
    mixture = Mixture([few, other], (1, 2), seed=1)

    def keys(start: int) -> list[list[int]]:
        return [batch.keys.tolist() for batch in mixture.batches(batch_size=4, steps=8, start_step=start)]

    whole = keys(0)
    for start in (1, 2, 5):
        assert keys(start) == whole[start:]
    assert len({tuple(batch) for batch in whole}) == 8


def test_two_processes_share_an_update(images: Images) -> None:
    mixture = Mixture([images, images], (1, 1), seed=1)
    whole = [batch.keys.tolist() for batch in mixture.batches(batch_size=4, steps=4)]
    halves = zip(*(mixture.batches(batch_size=2, steps=4, world=2, rank=rank) for rank in (0, 1)), strict=True)
    assert [one.keys.tolist() + two.keys.tolist() for one, two in halves] == whole


def test_the_same_picture_is_cut_differently_in_each_source(images: Images) -> None:
    one = images.subset(torch.tensor([5]))
    first, second = Mixture([one, one], (1, 1), seed=1).batches(batch_size=1, steps=2)
    assert first.index.tolist() == second.index.tolist()
    assert first.keys.tolist() != second.keys.tolist()
    assert not torch.equal(first.pixels, second.pixels)


def test_sources_of_equal_length_are_not_permuted_alike(images: Images) -> None:
    few = images.subset(torch.arange(40))
    first, second = (batch.index.tolist() for batch in Mixture([few, few], (1, 1), seed=1).batches(batch_size=40, steps=2))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_an_epoch_is_one_pass_over_the_first_source(images: Images) -> None:
    repeated = Images(images.table, replace(CONFIG, repeats=4), images.rows, images.where)
    assert Mixture([images], (1,), seed=0).epoch == len(images)
    assert Mixture([repeated], (1,), seed=0).epoch == 4 * len(images)
    assert Mixture([repeated, images], (2, 1), seed=0).epoch == 4 * len(images) * 3 // 2


def test_names_of_an_update_are_its_samples(images: Images) -> None:
    repeated = Images(images.table, replace(CONFIG, repeats=2), images.rows, images.where)
    mixture = Mixture([images, repeated], (1, 1), seed=0)
    for step, batch in enumerate(mixture.batches(batch_size=4, steps=4)):
        assert batch.index.tolist() == mixture.name_samples(step, 4)
