"""Samplers of published methods (I-JEPA, V-JEPA, data2vec 2.0, CAPI, UM-MAE, VideoMAE V2, MaskFeat, UMT) against restatements.

Where a published sampler has a fault (sizes that differ between workers, borders that are never used, counts cut in raster order),
the restatement draws what the method intends.

Shapes: B samples, N tokens, V visible, Q predicted.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from test_keys import chi2
from test_maskers import KEYS, draw, shown
from torch import Tensor

from mmm.core.rng import sample_keys
from mmm.maskers import BlockMasker, BlockUnionMasker, MultiBlockMasker, mask_from_pixels, maskers
from mmm.maskers.bernoulli import most
from mmm.maskers.echo import nearest_distance
from mmm.maskers.multi_block import mean_union

MANY = sample_keys(5, 0, torch.arange(3000))


def share(index: Tensor, tokens: int) -> Tensor:
    """Returns the share of rows that contain each token, (N,)."""
    return torch.zeros(len(index), tokens).scatter(1, index, 1.0).double().mean(0)


def deviation(found: Tensor, wanted: Tensor, samples: int, simulated: int) -> float:
    """Returns the largest difference between two tables of frequencies, in standard deviations."""
    spread = (wanted * (1 - wanted)).clamp(min=1e-3) * (1 / samples + 1 / simulated)
    return ((found - wanted).abs() / spread.sqrt()).max().item()


# --- I-JEPA -----------------------------------------------------------------------------------------------------------------


def multi_block(**options: object) -> MultiBlockMasker:
    return MultiBlockMasker(MultiBlockMasker.Config(**options))


def test_target_blocks_are_rectangles_of_one_size_anywhere_on_the_grid() -> None:
    masker, keys = multi_block(), MANY[:2000]
    for step in range(3):
        tall, wide, *_ = masker._sizes(step, 14, 14)
        mask = masker(keys, (14, 14), step=step)
        assert mask.visible.shape == (2000, 196 - round(0.74 * 196))
        assert mask.predict.shape == (8000, tall * wide)
        rows, columns = mask.predict // 14, mask.predict % 14
        assert torch.equal(rows.amax(1) - rows.amin(1), torch.full((8000,), tall - 1))
        assert torch.equal(columns.amax(1) - columns.amin(1), torch.full((8000,), wide - 1))
        corner = rows.amin(1) * (15 - wide) + columns.amin(1)  # the last row and column are reached as often as any other
        places = (15 - tall) * (15 - wide)
        assert abs(chi2(corner.bincount(minlength=places), 8000 / places)) < 5
        assert not shown(mask, 196).repeat_interleave(4, 0).gather(1, mask.predict).any()


def test_the_sizes_of_an_update_are_those_of_the_paper_and_follow_from_the_step_alone() -> None:
    """Area and aspect are drawn separately; the published code derives both from one draw, which reaches 5 of these 11 sizes."""
    masker, generator = multi_block(), random.Random(1)
    found = Counter(masker._sizes(step, 14, 14)[:2] for step in range(1500))
    wanted = Counter()
    for _ in range(100_000):
        area, aspect = int(196 * generator.uniform(0.15, 0.2)), generator.uniform(0.75, 1.5)
        wanted[round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))] += 1
    assert set(found) <= set(wanted)
    for size, count in wanted.items():
        expected = count / 100_000 * 1500
        assert abs(found[size] - expected) < 5 * math.sqrt(expected + 1), size
    context = [masker._sizes(step, 14, 14)[2:] for step in range(100)]
    assert set(context) == {(13, 13), (14, 14)}


def test_the_visible_tokens_are_a_random_part_of_what_the_context_leaves() -> None:
    """Rows are visible as often as their mirror images. The published code keeps the upper part."""
    masker = multi_block()
    for step in (0, 7):
        seen = share(masker(MANY, (14, 14), step=step).visible, 196).view(14, 14)
        assert (seen - seen.flip(0)).abs().max() < 5 * math.sqrt(2 * 0.2 / 3000)
        assert (seen - seen.flip(1)).abs().max() < 5 * math.sqrt(2 * 0.2 / 3000)


def test_targets_that_leave_too_little_lie_at_one_place_and_counts_stay() -> None:
    masker = multi_block(ratio=0.35, targets=8, context=(0.2, 0.2))  # the context almost never leaves 127 of 196
    mask = masker(KEYS, (14, 14))
    groups = mask.predict.view(16, 8, -1)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert mask.visible.shape[1] == 196 - round(0.35 * 196)
    assert len(torch.cat([mask.visible[0], groups[0, 0]]).unique()) == mask.visible.shape[1] + groups.shape[2]
    with pytest.raises(ValueError, match=r"masker\.ratio 0\.1 asks for 176; raise masker\.ratio"):
        multi_block(ratio=0.1)(KEYS, (14, 14))


def test_blocks_of_clips_are_held_through_time() -> None:
    for mask in (draw("multi_block", (4, 8, 8)), *draw("block_union", (4, 8, 8)).families):
        for tokens in (mask.visible, mask.predict):
            chosen = torch.zeros(len(tokens), 256).scatter(1, tokens, 1.0).view(-1, 4, 64)
            assert torch.equal(chosen, chosen[:, :1].expand_as(chosen))


# --- V-JEPA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "scale"), [(8, 0.15), (2, 0.7), (10, 0.15)])
def test_the_predicted_tokens_are_the_union_of_blocks(count: int, scale: float) -> None:
    """Compares the frequency of every place, and the mean size of the union, with V-JEPA's sampler, its unions cut or filled to one
    size."""
    masker = BlockUnionMasker(BlockUnionMasker.Config(blocks=(count,), scale=(scale,)))
    found = torch.stack(
        [share(masker(sample_keys(5, step, torch.arange(100)), (14, 14), step=step).predict, 196) for step in range(60)]
    ).mean(0)
    generator, sizes, wanted = random.Random(2), 0.0, torch.zeros(196, dtype=torch.float64)
    quota, draws = mean_union(14, 14, count, scale, 0.75, 1.5), 3000
    for _ in range(draws):
        area, aspect = int(196 * scale), generator.uniform(0.75, 1.5)
        tall, wide = min(14, round(math.sqrt(area * aspect))), min(14, round(math.sqrt(area / aspect)))
        union = set()
        for _ in range(count):
            top, left = generator.randint(0, 14 - tall), generator.randint(0, 14 - wide)
            union |= {y * 14 + x for y in range(top, top + tall) for x in range(left, left + wide)}
        sizes += len(union)
        rest = sorted(set(range(196)) - union)
        more = generator.sample(rest, max(0, quota - len(union)))
        kept = generator.sample(sorted(union), quota) if len(union) > quota else [*union, *more]
        wanted[kept] += 1
    assert quota == pytest.approx(sizes / draws, abs=0.5 + 5 * 15 / draws**0.5)
    assert (found - wanted / draws).abs().max() < 0.06  # 60 sizes are compared with all sizes


def test_the_masks_of_v_jepa_share_out_the_grid_and_differ_in_their_counts() -> None:
    mask = draw("block_union", (14, 14))
    counts = [mean_union(14, 14, 8, 0.15, 0.75, 1.5), mean_union(14, 14, 2, 0.7, 0.75, 1.5)]
    assert [one.predict.shape[1] for one in mask.families] == counts
    for one in mask.families:
        everything = torch.cat([one.visible, one.predict], dim=1).sort(dim=1).values
        assert torch.equal(everything, torch.arange(196).expand(16, -1))
    assert not torch.equal(shown(mask, 196), shown(mask.also[0], 196))


def test_visible_tokens_are_echoed_with_the_weights_of_v_jepa_2_1() -> None:
    """The loss is mean(hidden) + 0.5 mean(visible / sqrt(d)), d to the nearest predicted token; the weight rises during the run."""
    options = {"echo": 0.5, "echo_rise": (0.25, 0.5)}
    masker = BlockUnionMasker(BlockUnionMasker.Config(**options))
    plain = BlockUnionMasker(BlockUnionMasker.Config())(KEYS, (2, 6, 8), step=6)
    for mask, before in zip(masker(KEYS, (2, 6, 8), step=6, steps=10).families, plain.families, strict=True):
        hidden = before.predict.shape[1]
        assert mask.echo == mask.visible.shape[1]
        assert torch.equal(mask.predict, torch.cat([before.predict, before.visible], dim=1))
        loss = torch.rand(mask.predict.shape)
        wanted = 0.0
        for row in range(16):
            here, there = ([(n // 48, n // 8 % 6, n % 8) for n in one[row].tolist()] for one in (before.visible, before.predict))
            near = [min(math.dist(a, b) for b in there) for a in here]
            echoed = loss[row, hidden:] / torch.tensor(near).sqrt()
            wanted += (loss[row, :hidden].mean() + 0.5 * echoed.mean()).item() / 16
        assert (loss * mask.weight).mean().item() == pytest.approx(wanted, rel=1e-5)
    for step, factor in ((0, 0.0), (25, 0.0), (30, 0.2), (50, 1.0), (99, 1.0)):
        weight = masker(KEYS, (6, 8), step=step, steps=100).weight
        full = masker(KEYS, (6, 8), step=step, steps=1 if step else 2).weight if factor == 1 else None
        assert (weight[:, -1] > 0).all() == (factor > 0)
        assert full is None or torch.equal(weight, full)


def test_distances_are_euclidean_in_tokens() -> None:
    assert nearest_distance(torch.tensor([[0, 7]]), torch.tensor([[5, 11]]), (3, 4)).tolist() == [pytest.approx([2**0.5, 1.0])]


# --- data2vec 2.0 and CAPI --------------------------------------------------------------------------------------------------


def test_squares_are_shown_as_in_data2vec() -> None:
    """data2vec draws 5 centres with replacement, 3 x 3 squares cut off at the borders, and random tokens up to 39 of 196
    (data_utils.py)."""
    found = share(draw("inverse_block", (14, 14), MANY).visible, 196)
    generator, wanted, draws = random.Random(3), torch.zeros(196, dtype=torch.float64), 3000
    neighbours = 0.0
    for _ in range(draws):
        kept = set()
        for _ in range(int(196 * 0.27 / 9)):
            y, x = divmod(generator.randrange(196), 14)
            kept |= {min(max(y + a, 0), 13) * 14 + min(max(x + b, 0), 13) for a in (-1, 0, 1) for b in (-1, 0, 1)}
        rest = sorted(set(range(196)) - kept)
        kept = set(generator.sample(sorted(kept), 39)) if len(kept) > 39 else kept | set(generator.sample(rest, 39 - len(kept)))
        wanted[sorted(kept)] += 1
        neighbours += sum(one % 14 < 13 and one + 1 in kept for one in kept) / draws
    assert deviation(found, wanted / draws, 3000, draws) < 5
    seen = shown(draw("inverse_block", (14, 14), MANY), 196).view(-1, 14, 14)
    assert (seen[:, :, 1:] & seen[:, :, :-1]).sum().item() / 3000 == pytest.approx(neighbours, rel=0.02)


def capi(generator: random.Random, height: int, width: int, count: int) -> set[int]:
    """Returns CAPI's block before its roll (data.py)."""
    low = max(math.log(0.5), math.log(count / width**2))
    high = min(math.log(2), math.log(height**2 / (count + 1e-5)))
    aspect = math.exp(generator.uniform(low, high))
    tall, wide = math.ceil(math.sqrt(count * aspect)), math.ceil(math.sqrt(count / aspect))
    top, left = generator.randint(0, height - tall), generator.randint(0, width - wide)
    return set([y * width + x for y in range(top, top + tall) for x in range(left, left + wide)][:count])


@pytest.mark.parametrize("grid", [(16, 16), (12, 18)], ids=str)
def test_one_rectangle_is_shown_as_in_capi(grid: tuple[int, int]) -> None:
    options = {"side": None, "ratio": 0.65, "predict": 0.03}
    tokens, draws, generator = math.prod(grid), 3000, random.Random(4)
    mask = draw("inverse_block", grid, MANY, **options)
    count, wanted = mask.visible.shape[1], torch.zeros(tokens, dtype=torch.float64)
    heights: Counter[int] = Counter()
    for _ in range(draws):
        kept = sorted(capi(generator, *grid, count))
        wanted[kept] += 1
        heights[kept[-1] // grid[1] - kept[0] // grid[1]] += 1
    assert deviation(share(mask.visible, tokens), wanted / draws, 3000, draws) < 5
    rows = mask.visible // grid[1]
    found = Counter((rows.amax(1) - rows.amin(1)).tolist())
    for height, number in heights.items():
        assert abs(found[height] - number) < 5 * math.sqrt(2 * number + 2), height
    assert mask.predict.shape[1] == round(0.03 * tokens)  # a random part of the hidden tokens
    hidden = 1 - share(mask.visible, tokens)
    assert (share(mask.predict, tokens) / hidden - mask.predict.shape[1] / (tokens - count)).abs().max() < 0.04


def test_a_roll_moves_the_rectangle_around_the_borders() -> None:
    plain, rolled = (draw("inverse_block", (16, 16), MANY, side=None, ratio=0.65, roll=roll) for roll in (False, True))
    seen = share(rolled.visible, 256)
    assert (seen - 90 / 256).abs().max() < 5 * math.sqrt(0.25 / 3000)  # every place is visible equally often
    for row in range(50):  # the same shape at another place
        one = {(n // 16, n % 16) for n in plain.visible[row].tolist()}
        other = {(n // 16, n % 16) for n in rolled.visible[row].tolist()}
        moves = {((y + a) % 16, (x + b) % 16) == (0, 0) for y, x in one for a in range(16) for b in range(16)}
        assert moves
        assert any({((y + a) % 16, (x + b) % 16) for y, x in one} == other for a in range(16) for b in range(16))


# --- UM-MAE -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(16, 16), (2, 6, 8)], ids=str)
def test_one_of_each_cell_is_seen_and_each_place_equally_often(grid: tuple[int, ...]) -> None:
    mask = draw("uniform", grid, MANY)
    cells, tokens = math.prod(grid) // 4, math.prod(grid)
    assert mask.visible.shape[1] == cells - round(cells * 0.25)  # 48 of 64
    kept = torch.cat([mask.visible, mask.blank], dim=1)
    everything = torch.cat([kept, mask.predict], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(tokens).expand(len(MANY), -1))
    row, column = kept // grid[-1], kept % grid[-1]
    cell = (row // 2 * (grid[-1] // 2) + column // 2).sort(dim=1).values
    assert torch.equal(cell, torch.arange(cells).expand_as(cell))
    place = (row % 2) * 2 + column % 2
    counts = torch.zeros(len(MANY), 4).scatter_add(1, place, torch.ones_like(place).float())
    assert torch.equal(counts, torch.full_like(counts, cells / 4))
    for part in (mask.visible, mask.blank):
        assert (share(part, tokens) - part.shape[1] / tokens).abs().max() < 5 * math.sqrt(0.19 / 3000)


def test_odd_grids_and_other_ratios_are_refused() -> None:
    with pytest.raises(ValueError, match="even sides"):
        draw("uniform", (3, 4))
    with pytest.raises(ValueError, match=r"masker\.name uniform has no masker\.ratio"):
        draw("uniform", (4, 4), ratio=0.5)
    assert draw("uniform", (4, 4), secondary=0.0).blank is None


# --- VideoMAE V2 ------------------------------------------------------------------------------------------------------------


def test_the_running_cell_is_video_mae_v2_s() -> None:
    """Predicts exactly the hidden tokens whose (k + p + t + 1) mod 4 is at least 2, with one phase p per clip: 704 of 1,568."""
    mask = draw("tube", (8, 14, 14), sample_keys(1, 0, torch.arange(400)), predict=0.449, running_cell=True)
    assert mask.predict.shape[1] == 704
    phases = []
    for visible, predict in zip(mask.visible.tolist(), mask.predict.tolist(), strict=True):
        hidden = set(range(1568)) - set(visible)
        tables = [{n for n in hidden if ((n // 14 % 14 % 2) * 2 + n % 14 % 2 + p + n // 196 + 1) % 4 >= 2} for p in range(4)]
        phases.append(tables.index(set(predict)))
    assert abs(chi2(torch.tensor(phases).bincount(minlength=4), 100)) < 4


@pytest.mark.parametrize(("name", "grid"), [("random", (3, 5, 7)), ("tube", (6, 4, 4)), ("block", (6, 8))], ids=str)
def test_a_running_cell_keeps_the_count_where_its_pattern_does_not(name: str, grid: tuple[int, ...]) -> None:
    mask, plain = (draw(name, grid, ratio=0.5, predict=0.2, running_cell=cell) for cell in (True, False))
    assert mask.predict.shape == plain.predict.shape
    assert torch.equal(mask.visible, plain.visible)
    assert not shown(mask, math.prod(grid)).gather(1, mask.predict).any()
    assert all(len(row.unique()) == len(row) for row in mask.predict)


# --- frames -----------------------------------------------------------------------------------------------------------------


def test_whole_frames_are_hidden() -> None:
    mask = draw("frame", (8, 3, 4), MANY, ratio=0.75, predict=0.25)
    frames = mask.visible.view(len(MANY), 2, 12) // 12
    assert torch.equal(frames, frames[..., :1].expand_as(frames))
    assert mask.predict.shape[1] == 24
    pairs = frames[:, :, 0].sort(dim=1).values
    counts = (pairs[:, 0] * 8 + pairs[:, 1]).unique(return_counts=True)[1]
    assert len(counts) == 28
    assert abs(chi2(counts, 3000 / 28)) < 5
    with pytest.raises(ValueError, match="hides frames of clips"):
        draw("frame", (8, 8))
    with pytest.raises(ValueError, match=r"no masker\.unit"):
        draw("frame", (8, 8), unit=2)


def test_the_first_frames_are_seen_and_the_next_ones_predicted() -> None:
    mask = draw("causal", (8, 2, 2), ratio=0.5, predict=0.25)
    assert torch.equal(mask.visible.sort(dim=1).values, torch.arange(16).expand(16, -1))
    assert torch.equal(mask.predict.sort(dim=1).values, torch.arange(16, 24).expand(16, -1))


# --- MaskFeat's boxes -------------------------------------------------------------------------------------------------------


def test_boxes_of_clips_are_hidden_one_after_another_until_the_count() -> None:
    """All boxes are whole except the last one, which is cut; 157 of 8 x 7 x 7 units of 2 x 2 tokens are hidden."""
    options = {"duration": "random", "ratio": 0.4, "smallest": 9 / 49, "largest": 1.0, "unit": 2}
    keys = sample_keys(6, 0, torch.arange(64))
    mask = draw("block", (8, 14, 14), keys, **options)
    assert mask.predict.shape[1] == 157 * 4
    masker = BlockMasker(BlockMasker.Config(**options))
    boxes = masker._covered(masker.mask_keys(keys), (8, 7, 7))
    members = masker.members((8, 14, 14))
    for row, covers in enumerate(boxes):
        hidden: set[int] = set()
        predicted = set(mask.predict[row].tolist())
        for cover in covers:
            new = set(torch.arange(392)[cover].tolist()) - hidden
            if len(hidden) + len(new) >= 157:
                break
            hidden |= new
        units = {unit for unit in range(392) if set(members[unit].tolist()) <= predicted}
        assert len(units) == 157
        assert hidden < units <= hidden | new


def test_boxes_last_from_one_frame_to_all() -> None:
    masker = BlockMasker(BlockMasker.Config(duration="random", smallest=0.2, largest=0.2))
    covers = masker._covered(masker.mask_keys(MANY[:200]), (8, 5, 5)).unflatten(2, (8, 25)).any(-1)  # (B, R, T')
    lengths, starts = covers.sum(-1).flatten(), covers.to(torch.int8).argmax(-1).flatten()
    assert abs(chi2(lengths.bincount(minlength=9)[1:], 6400 / 8)) < 5
    assert abs(chi2(starts[lengths == 3].bincount(minlength=6), (lengths == 3).sum().item() / 6)) < 5
    edges = covers.long().diff(dim=-1).abs().sum(-1) + covers[..., 0].long() + covers[..., -1].long()
    assert (edges == 2).all()  # each box is one contiguous range


# --- UMT --------------------------------------------------------------------------------------------------------------------


def test_tokens_are_seen_in_proportion_to_their_scores() -> None:
    """The frequencies are those of torch.multinomial without replacement in each frame."""
    scores = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    part = draw("attention", (2, 3, 4), KEYS)
    assert part.visible.shape[1] == 2 * (12 - round(0.8 * 12))
    from mmm.maskers import AttentionMasker

    masker = AttentionMasker(AttentionMasker.Config(ratio=0.75))
    mask = masker(MANY, (2, 3, 4), scores=scores.flatten().expand(3000, -1))
    assert ((mask.visible < 12).sum(1) == 3).all()
    theirs = torch.multinomial(scores.repeat(3000, 1), 3, generator=torch.Generator().manual_seed(1)).view(3000, 2, 3)
    wanted = share((theirs + torch.tensor([[0], [12]])).flatten(1), 24)
    assert deviation(share(mask.visible, 24), wanted, 3000, 3000) < 5
    for bad, words in ((None, "needs a score for each token"), (torch.ones(3000, 5), r"scores are \(3000, 5\)")):
        with pytest.raises(ValueError, match=words):
            masker(MANY, (2, 3, 4), scores=bad)


# --- Bernoulli --------------------------------------------------------------------------------------------------------------


def assert_binomial(hidden: Tensor, ratio: float) -> None:
    """Asserts by chi-square that the numbers of hidden tokens, of 20, are binomial."""
    wanted = torch.tensor([math.comb(20, n) * ratio**n * (1 - ratio) ** (20 - n) * len(hidden) for n in range(21)])
    usual, found = wanted > 5, hidden.bincount(minlength=21)
    assert abs((((found - wanted) ** 2 / wanted)[usual].sum() - usual.sum()) / (2 * usual.sum()) ** 0.5) < 5


def test_each_token_is_hidden_with_one_probability() -> None:
    """The number of hidden tokens in a sample is binomial, tokens are independent, and rows are padded with copies that do not
    count."""
    mask = draw("bernoulli", (4, 5), MANY, ratio=0.6)
    assert_binomial(mask.valid_predict.sum(1), 0.6)
    assert most(20, 0.6) == mask.predict.shape[1] < 20
    hidden = torch.zeros(3000, 20, dtype=torch.bool).scatter(1, mask.predict, value=True)
    seen = torch.zeros(3000, 20, dtype=torch.bool).scatter(1, mask.visible, value=True)
    assert not (hidden & seen).any()
    assert (hidden ^ seen).sum() == 3000 * 20 - (hidden | seen).logical_not().sum()
    assert torch.equal(hidden.sum(1), mask.valid_predict.sum(1))
    assert torch.equal(seen.sum(1), mask.valid.sum(1))
    assert ((hidden | seen).sum(1) < 20).sum() < 5  # rows that are longer than the padded length
    assert (hidden.double().mean(0) - 0.6).abs().max() < 5 * (0.24 / 3000) ** 0.5
    centred = hidden.double() - 0.6
    assert ((centred.T @ centred / 3000).fill_diagonal_(0)).abs().max() < 5 * 0.24 / 3000**0.5
    assert torch.allclose(mask.weight.sum(1), torch.full((3000,), float(mask.predict.shape[1])))
    assert not mask.weight[~mask.valid_predict].any()
    part = draw("bernoulli", (4, 6), MANY, ratio=0.6, predict=0.3, unit=2, blank=True)
    assert torch.equal(part.valid_predict.sum(1), 4 * (part.valid[:, part.visible.shape[1] :].sum(1) / 8).round().long().clamp(1))


def test_the_samples_of_an_update_share_a_number() -> None:
    """The number is binomial, and all sets of the same number are equally probable."""
    masker = maskers["bernoulli"](maskers["bernoulli"].Config(ratio=0.6, lengths="update"))
    keys = sample_keys(0, 0, torch.arange(2))
    assert_binomial(torch.tensor([masker(keys, (4, 5), step=step).predict.shape[1] for step in range(1200)]), 0.6)
    mask = masker(MANY, (4, 5), step=3)
    assert (share(mask.visible, 20) - mask.visible.shape[1] / 20).abs().max() < 5 * 0.5 / 3000**0.5


# --- painted ----------------------------------------------------------------------------------------------------------------


def test_painted_pixels_hide_the_tokens_that_they_cover() -> None:
    painted = torch.zeros(32, 48)
    painted[8:24, 16:28] = 255  # for tokens of 8 pixels: rows 1 and 2, column 2 and half of column 3
    mask = mask_from_pixels(painted > 0, (4, 6))
    assert mask.predict.tolist() == [[8, 9, 14, 15]]
    assert mask.visible.shape == (1, 20)
    assert mask_from_pixels(painted > 0, (4, 6), share=0.6, samples=3, blank=True).blank.tolist() == [[8, 14]] * 3
    other = torch.zeros(320, 480).numpy()
    other[80:240, 160:320] = 1  # the same part at another size, as an array
    assert mask_from_pixels(other, (4, 6)).predict.tolist() == [[8, 9, 14, 15]]
    assert mask_from_pixels(painted > 0, (2, 4, 6)).predict.tolist() == [[8, 9, 14, 15, 32, 33, 38, 39]]  # in all frames
    clip = torch.stack([painted > 0, painted < 0])
    assert mask_from_pixels(clip, (2, 4, 6)).predict.tolist() == [[8, 9, 14, 15]]
    several = torch.stack([painted > 0, (painted > 0).roll(8, 1)])
    assert mask_from_pixels(several, (4, 6)).predict.tolist() == [[8, 9, 14, 15], [9, 10, 15, 16]]


def test_masks_of_another_number_of_samples_are_refused() -> None:
    several = torch.eye(4).view(1, 4, 4).expand(3, 4, 4)
    assert len(mask_from_pixels(several, (4, 4), samples=3).visible) == 3
    with pytest.raises(ValueError, match="given for 3 samples, and there are 2"):
        mask_from_pixels(several, (4, 4), samples=2)


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        (torch.zeros(8, 8), "hide 0 of 16 tokens"),
        (torch.ones(8, 8), "hide 16 of 16"),
        (torch.ones(8), r"hidden pixels are \(8,\)"),
        (torch.stack([torch.eye(8), torch.triu(torch.ones(8, 8))]), "from 4 to 10 tokens"),
    ],
    ids=["nothing", "everything", "a line", "unlike"],
)
def test_paint_that_makes_no_mask_is_refused(hidden: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mask_from_pixels(hidden, (4, 4))
