"""Keyed randomness: the published hash, bits that do not depend on how samples are batched, and uniform, independent draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mmm.core.rng import Stream, integers, permutation, sample_keys, scores, stream, uniform

WORD = (1 << 64) - 1


def mix(x: int) -> int:
    """Computes splitmix64's finaliser on Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


GOLDEN = 0x9E3779B97F4A7C15


def key_of(seed: int, source: int, epoch: int, index: int, repeat: int) -> int:
    key = mix((seed + GOLDEN) & WORD)
    for part in (source, epoch, index, repeat):
        key = mix((key + part * GOLDEN) & WORD)
    return key


def chi2(counts: Tensor, expected: float) -> float:
    """Returns the difference of chi-squared from its expected value, in standard deviations."""
    freedom = counts.numel() - 1
    return (float(((counts.double() - expected) ** 2 / expected).sum()) - freedom) / (2 * freedom) ** 0.5


# --- known answers ----------------------------------------------------------------------------------------------------------


def test_scores_are_splitmix64s_published_sequence() -> None:
    """The expected values are the first outputs of splitmix64 from state 0, computed by its authors' C code."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert scores(torch.zeros(1, dtype=torch.int64), 5)[0].tolist() == [signed(x) for x in published]


@pytest.mark.parametrize(
    "parts", [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (3, 1, 7, 123456789, 2), (-1, 0, 2**40, 2**62, 0), (2**63 - 1, 5, 0, 1, 1)], ids=str
)
def test_keys_equal_pythons_integers(parts: tuple[int, ...]) -> None:
    seed, source, epoch, index, repeat = parts
    ours = sample_keys(seed, epoch, index, source=source, repeat=repeat)
    assert ours.dtype == torch.int64
    assert ours.tolist() == [signed(key_of(*parts))]
    assert stream(ours, Stream.MASK).tolist() == [signed(mix((key_of(*parts) + 4 * GOLDEN) & WORD))]
    assert scores(ours, 3)[0].tolist() == [signed(mix((key_of(*parts) + i * GOLDEN) & WORD)) for i in (1, 2, 3)]
    assert uniform(ours, 3)[0].tolist() == [(mix((key_of(*parts) + i * GOLDEN) & WORD) >> 40) / 2**24 for i in (1, 2, 3)]
    assert integers(ours, 10, 3)[0].tolist() == [(mix((key_of(*parts) + i * GOLDEN) & WORD) >> 1) % 10 for i in (1, 2, 3)]


def test_runs_of_yesterday_are_repeated() -> None:
    """If this fails, every recorded or resumed run changes: do not edit the numbers, but find the cause."""
    assert {purpose.name: int(purpose) for purpose in Stream} == {
        "ORDER": 1,
        "CROP": 2,
        "FLIP": 3,
        "MASK": 4,
        "CLIP": 5,
        "AUGMENT": 6,
        "HOLDOUT": 7,
        "SUBSTITUTE": 8,
        "BATCH": 9,
        "NOISE": 10,
        "POLICY": 11,
        "ERASE": 12,
        "MIX": 13,
        "MASKS": 14,
        "PHOTOMETRIC": 15,
        "SIZE": 16,
    }
    keys = sample_keys(0, 0, torch.arange(2))
    assert keys.tolist() == [6137703061587064917, -6446376115228621013]
    assert permutation(keys, 8).tolist() == [[4, 2, 6, 1, 3, 7, 0, 5], [7, 3, 6, 5, 0, 4, 2, 1]]


# --- the same bits for any batching -----------------------------------------------------------------------------------------


def test_any_split_of_a_batch_gives_the_same_bits() -> None:
    index, epoch = torch.randint(10**6, (97,)), torch.randint(50, (97,))
    whole = sample_keys(9, epoch, index)
    draws = {"scores": scores, "uniform": uniform, "permutation": permutation}
    for parts in (1, 5, 32, 96):
        cut = torch.cat([sample_keys(9, e, i) for e, i in zip(epoch.split(parts), index.split(parts), strict=True)])
        assert torch.equal(cut, whole)
        for name, draw in draws.items():
            assert torch.equal(torch.cat([draw(k, 31) for k in whole.split(parts)]), draw(whole, 31)), name
    assert torch.equal(torch.cat([sample_keys(9, int(e), int(i)) for e, i in zip(epoch, index, strict=True)]), whole)


def test_more_draws_begin_with_the_fewer() -> None:
    keys = sample_keys(0, 0, torch.arange(5))
    assert torch.equal(scores(keys, 100)[:, :7], scores(keys, 7))


def test_scalars_broadcast() -> None:
    assert sample_keys(0, torch.arange(4), 7).shape == (4,)
    assert sample_keys(0, 0, torch.tensor(7)).shape == (1,)


def test_no_generator_is_read_or_moved() -> None:
    before = torch.get_rng_state()
    first = permutation(stream(sample_keys(0, 0, torch.arange(4)), Stream.MASK), 20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(permutation(stream(sample_keys(0, 0, torch.arange(4)), Stream.MASK), 20), first)


# --- uniform and independent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        sample_keys(0, 0, torch.arange(50_000)),
        sample_keys(0, torch.arange(50_000), 3),
        torch.cat([sample_keys(seed, 0, 0) for seed in range(4000)]),
    ],
    ids=["samples", "epochs", "seeds"],
)
def test_draws_are_uniform_in_all_their_bits(keys: Tensor) -> None:
    n = 4
    drawn = uniform(keys, n)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() < 1
    total = drawn.numel()
    assert abs(chi2(torch.histc(drawn, 100, 0, 1), total / 100)) < 5
    bits = (scores(keys, n).flatten()[:, None] >> torch.arange(64)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / total**0.5
    pairs = (uniform(keys, 2) * 16).long()  # two draws of one key are independent
    assert abs(chi2((pairs[:, 0] * 16 + pairs[:, 1]).bincount(minlength=256), len(keys) / 256)) < 5
    follow = (uniform(keys, 1)[:, 0] * 16).long()  # draws of neighbouring keys are independent
    assert abs(chi2((follow[:-1] * 16 + follow[1:]).bincount(minlength=256), (len(keys) - 1) / 256)) < 5


def test_streams_are_independent() -> None:
    keys = sample_keys(0, 0, torch.arange(20_000))
    drawn = {purpose: (uniform(stream(keys, purpose), 1)[:, 0] * 16).long() for purpose in Stream}
    for (a, x), (b, y) in itertools.combinations(drawn.items(), 2):
        assert abs(chi2((x * 16 + y).bincount(minlength=256), len(keys) / 256)) < 5, (a.name, b.name)


def test_no_two_names_share_a_key() -> None:
    grid = torch.cartesian_prod(torch.arange(20), torch.arange(2), torch.arange(20), torch.arange(50), torch.arange(3))
    keys = torch.cat([sample_keys(s, g[:, 2], g[:, 3], source=g[:, 1], repeat=g[:, 4]) for s, g in enumerate(grid.split(6000))])
    keys = torch.cat([keys, *(stream(keys, purpose) for purpose in Stream)])
    assert len(keys.unique()) == len(keys)


def test_a_permutation_is_one_and_each_is_as_likely() -> None:
    drawn = permutation(sample_keys(0, 0, torch.arange(60_000)), 5)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(5).expand_as(drawn))
    number = (drawn * 5 ** torch.arange(5)).sum(1).unique(return_counts=True)[1]
    assert len(number) == 120
    assert abs(chi2(number, 60_000 / 120)) < 5
    long = permutation(sample_keys(0, 0, torch.arange(3)), 100_000)
    assert torch.equal(long.sort(dim=1).values, torch.arange(100_000).expand_as(long))


def test_integers_stay_in_range_and_take_a_limit_each() -> None:
    keys = sample_keys(0, 0, torch.arange(6000))
    drawn = integers(keys, 7, 10)
    assert drawn.dtype == torch.int64
    assert abs(chi2(drawn.flatten().bincount(minlength=7), 60_000 / 7)) < 5
    high = torch.arange(1, 6001)[:, None]
    limited = integers(keys, high, 10)
    assert (limited >= 0).all()
    assert (limited < high).all()
    assert not limited[0].any()
