"""Masks: exact counts, dependence on each sample's key alone, and the shapes that the papers describe.

Shapes: B samples, N tokens, V visible, Q predicted.
"""

from __future__ import annotations

import math

import pytest
import torch
from other_device import other_device
from torch import Tensor

from mmm import Mask
from mmm.core.rng import Stream, permutation, sample_keys, stream
from mmm.core.tokens import keep_count
from mmm.maskers import BlockMasker, maskers
from mmm.maskers.block import RECTANGLES

GRIDS = [(14, 14), (7, 9), (1, 20), (4, 6, 8), (8, 14, 14), (1, 5, 5)]
KEYS = sample_keys(3, 0, torch.arange(16))
every_masker = pytest.mark.parametrize("name", maskers.parts)
every_ratio = pytest.mark.parametrize("name", ["random", "tube", "block", "inverse_block"])  # hide exactly `ratio` of any grid


def draw(name: str, grid: tuple[int, ...], keys: Tensor = KEYS, **options: object) -> Mask:
    part = maskers[name]
    return part(part.Config(**options))(keys, grid, **scores_for(name, grid, len(keys)))


def scores_for(name: str, grid: tuple[int, ...], samples: int) -> dict[str, Tensor]:
    if not maskers[name].needs_scores:
        return {}
    return {"scores": torch.linspace(0, 1, math.prod(grid)).expand(samples, -1)}


def sets(mask: Mask) -> list[Tensor]:
    """Returns all index sets of a mask and of the masks in `also`."""
    found = [one for family in mask.families for one in (family.visible, family.predict, family.blank)]
    return [one for one in found if one is not None]


def shown(mask: Mask, tokens: int) -> Tensor:
    """Returns a table that marks the visible tokens, bool (B, N)."""
    return torch.zeros(len(mask.visible), tokens, dtype=torch.bool).scatter(1, mask.visible, value=True)


# --- every masker -----------------------------------------------------------------------------------------------------------


@every_ratio
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.5, 0.6, 0.75, 0.9])
def test_visible_and_predicted_share_out_the_grid_exactly(name: str, grid: tuple[int, ...], ratio: float) -> None:
    mask = draw(name, grid, ratio=ratio)
    tokens, plane = math.prod(grid), math.prod(grid[-2:])
    assert mask.visible.dtype == mask.predict.dtype == torch.int64
    everything = torch.cat([mask.visible, mask.predict], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(tokens).expand(16, -1))  # disjoint and complete
    hidden = round(ratio * tokens) if name == "random" else round(ratio * plane) * (tokens // plane)
    assert mask.predict.shape == (16, hidden)
    assert mask.blank is None
    assert mask.weight is None


@every_masker
def test_each_sample_is_masked_alone_as_in_a_batch(name: str) -> None:
    keys = sample_keys(1, 2, torch.arange(200))
    whole = draw(name, (3, 6, 10), keys)
    for parts in (1, 7, 64):
        cut = [sets(draw(name, (3, 6, 10), k)) for k in keys.split(parts)]
        assert all(torch.equal(torch.cat(rows), one) for rows, one in zip(zip(*cut, strict=True), sets(whole), strict=True))


@every_masker
def test_a_masker_that_was_never_moved_draws_the_same_masks_on_another_device(name: str) -> None:
    part = maskers[name]
    masker, scores = part(part.Config()), scores_for(name, (4, 6, 8), 16)
    assert not list(masker.buffers())  # the data stream's masker is not part of the model, so it is never moved with it
    with other_device() as device:
        there = sets(masker(KEYS.to(device), (4, 6, 8), **{key: value.to(device) for key, value in scores.items()}))
    here = sets(masker(KEYS, (4, 6, 8), **scores))
    assert all(one.device == device for one in there)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(there, here, strict=True))


@pytest.mark.parametrize("name", [name for name in maskers.parts if name != "causal"])
def test_other_keys_give_other_masks_and_the_global_generator_none(name: str) -> None:
    grid = (12, 4, 4) if name == "frame" else (14, 14)
    one = draw(name, grid)
    torch.manual_seed(99)
    assert torch.equal(draw(name, grid).visible, one.visible)
    rows = shown(one, math.prod(grid))
    assert len(rows.unique(dim=0)) == len(KEYS)
    assert not torch.equal(rows, shown(draw(name, grid, sample_keys(3, 1, torch.arange(16))), math.prod(grid)))


@every_masker
def test_several_masks_of_a_sample_stand_beside_each_other(name: str) -> None:
    """Each sample has m rows that depend on its key alone; each row has the same length as without the option."""
    many = draw(name, (4, 6, 8), masks=3)
    alone = draw(name, (4, 6, 8), KEYS[5:6], masks=3)
    assert all(len(rows) % 48 == 0 for rows in sets(many))
    assert all(torch.equal(rows[len(rows) // 16 * 5 :][: len(one)], one) for rows, one in zip(sets(many), sets(alone), strict=True))
    assert [one.shape[1:] for one in sets(many)] == [one.shape[1:] for one in sets(draw(name, (4, 6, 8)))]
    if name not in ("causal", "frame"):
        assert len(shown(many, 192).view(16, 3, 192)[0].unique(dim=0)) == 3


@every_ratio
def test_a_part_is_predicted_of_the_hidden(name: str) -> None:
    """CrossMAE's counts for 196 tokens: visible, neither, predicted."""
    for predict, counts in ((0.75, (49, 0, 147)), (0.25, (49, 98, 49)), (0.15, (49, 118, 29))):
        mask = draw(name, (14, 14), ratio=0.75, predict=predict)
        seen, predicted = mask.visible.shape[1], mask.predict.shape[1]
        assert (seen, 196 - seen - predicted, predicted) == counts
        assert not shown(mask, 196).gather(1, mask.predict).any()
        assert torch.equal(mask.visible, draw(name, (14, 14), ratio=0.75).visible)  # the visible tokens are the same


@every_ratio
def test_counts_are_truncated_as_the_published_code_does(name: str) -> None:
    """MAE keeps int(N (1 - ratio)) tokens; CrossMAE then drops int(N (ratio - predict)) and predicts the rest."""
    for ratio, predict, counts in (
        (0.75, None, (49, 0, 147)),
        (0.75, 0.25, (49, 98, 49)),
        (0.75, 0.15, (49, 117, 30)),
        (0.9, None, (19, 0, 177)),
    ):
        mask = draw(name, (14, 14), ratio=ratio, predict=predict, rounding="truncate")
        seen, predicted = mask.visible.shape[1], mask.predict.shape[1]
        assert (seen, 196 - seen - predicted, predicted) == counts


@every_ratio
def test_blanks_stand_in_all_hidden_places(name: str) -> None:
    mask = draw(name, (6, 6), ratio=0.5, predict=0.25, blank=True)
    plain = draw(name, (6, 6), ratio=0.5)
    assert torch.equal(mask.blank.sort().values, plain.predict.sort().values)
    assert torch.equal(mask.where, torch.cat([mask.visible, mask.blank], dim=1))
    assert torch.isin(mask.predict[0], mask.blank[0]).all()
    assert mask.predict.shape[1] == 9


@every_ratio
def test_places_are_hidden_as_often_as_the_ratio_says(name: str) -> None:
    """Random and tube masks hide all places equally often; rectangles lie more often in the middle."""
    keys = sample_keys(0, 0, torch.arange(8000))
    hidden = 1 - shown(draw(name, (6, 8), keys, ratio=0.5), 48).double().mean(0)
    assert hidden.mean().item() == pytest.approx(0.5)
    if name in ("random", "tube"):
        assert (hidden - 0.5).abs().max() < 5 * 0.5 / 8000**0.5
    else:
        assert 0.1 < hidden.min() < hidden.max() < 0.9


@every_ratio
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.0}, "masker.ratio 0 "),
        ({"ratio": 1.0}, "masker.ratio 1 "),
        ({"ratio": float("nan")}, "masker.ratio nan"),
        ({"ratio": 0.5, "predict": 0.6}, "masker.predict 0.6"),
        ({"ratio": 0.5, "predict": 0.0}, "masker.predict 0 "),
        ({"ratio": 0.5, "ratio_end": 0.3, "predict": 0.4}, r"masker.predict 0\.4 is above masker.ratio_end 0\.3"),
        ({"running_cell": True}, "set masker.predict"),
        ({"predict": 0.2, "predict_visible": True}, "masker.predict_visible"),
        ({"masks": 0}, "masker.masks 0"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused_by_name(name: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        maskers[name].Config(**options)


@every_ratio
def test_a_ratio_that_leaves_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"masker\.ratio 0\.99 leaves 0 visible"):
        draw(name, (3, 3), ratio=0.99)
    with pytest.raises(ValueError, match="0 predicted"):
        draw(name, (3, 3), ratio=0.5, predict=0.01)


@every_ratio
def test_the_ratio_moves_linearly_to_its_end(name: str) -> None:
    masker = maskers[name](maskers[name].Config(ratio=0.25, ratio_end=0.75))
    seen = [masker(KEYS, (4, 4), step=step, steps=8).visible.shape[1] for step in (0, 2, 4, 6, 7)]
    assert seen == [12, 10, 8, 6, 5]


@every_ratio
@pytest.mark.parametrize("grid", [(6, 8), (3, 6, 8)], ids=str)
def test_units_hide_whole_squares(name: str, grid: tuple[int, ...]) -> None:
    """SimMIM hides squares of 32 pixels: 2 x 2 tokens of 16; predicted tokens form squares, too."""
    mask = draw(name, grid, ratio=0.6, predict=0.3, unit=2)
    for tokens in (mask.visible, mask.predict):
        chosen = torch.zeros(16, math.prod(grid), dtype=torch.bool).scatter(1, tokens, value=True).view(16, -1, 3, 2, 4, 2)
        assert torch.equal(chosen, chosen[:, :, :, :1, :, :1].expand_as(chosen))
    units = math.prod(grid) // 4 if name == "random" else 12
    assert mask.visible.shape[1] == (units - round(0.6 * units)) * (math.prod(grid) // units)
    with pytest.raises(ValueError, match=r"masker\.unit 4 does not divide"):
        draw(name, grid, unit=4)


@every_ratio
def test_visible_tokens_are_predicted_and_no_hidden_ones(name: str) -> None:
    """UMT predicts the visible tokens."""
    mask = draw(name, (6, 6), predict_visible=True)
    assert torch.equal(mask.predict, mask.visible)
    assert mask.echo == mask.visible.shape[1]
    assert maskers[name].Config(predict_visible=True).echoes_only
    assert not maskers[name].Config().echoes_only


# --- counts -----------------------------------------------------------------------------------------------------------------


def test_the_count_is_rounded_where_mae_truncates() -> None:
    """MAE keeps int(N (1 - ratio)) tokens. At 0.75 of square grids both agree; elsewhere they differ by at most one token."""
    for tokens in (196, 256, 576, 784, 1024, 1568, 3136):
        assert keep_count(0.75, tokens) == int(tokens * (1 - 0.75))
        for percent in range(40, 96, 5):
            assert 0 <= keep_count(percent / 100, tokens) - int(tokens * (1 - percent / 100)) <= 1
            assert abs(keep_count(percent / 100, tokens) - tokens * (100 - percent) / 100) <= 0.5
    assert (keep_count(0.9, 100), int(100 * (1 - 0.9))) == (10, 9)
    assert (keep_count(0.9, 1568), int(1568 * (1 - 0.9))) == (157, 156)


def test_frozen_masks() -> None:
    """These masks must never change, so that recorded runs can be repeated; see test_keys."""
    keys = sample_keys(0, 0, torch.arange(2))
    assert draw("random", (2, 4, 5), keys).visible[1].tolist() == [17, 14, 15, 8, 7, 35, 20, 27, 24, 1]
    assert draw("tube", (2, 4, 5), keys).visible.tolist() == [[9, 29, 2, 22], [17, 37, 14, 34]]


# --- random -----------------------------------------------------------------------------------------------------------------


def test_random_is_the_permutation_of_the_mask_stream() -> None:
    order = permutation(stream(KEYS, Stream.MASK), 196)
    mask = draw("random", (14, 14), predict=0.25)
    assert torch.equal(mask.visible, order[:, :49])  # MAE: the first ones are visible
    assert torch.equal(mask.predict, order[:, 147:])  # CrossMAE: the last ones are predicted


def test_random_units_differ_from_frame_to_frame() -> None:
    seen = shown(draw("random", (3, 6, 8), ratio=0.6, unit=2), 144).view(16, 3, 48)
    assert not (seen[:, 0] == seen[:, 1]).all()


# --- tube -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tube", "block", "inverse_block"])
def test_the_same_places_are_hidden_in_every_frame(name: str) -> None:
    seen = shown(draw(name, (8, 14, 14), ratio=0.6), 8 * 196).view(16, 8, 196)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))


def test_videomaes_counts() -> None:
    mask = draw("tube", (8, 14, 14), ratio=0.9)
    assert mask.visible.shape[1] == 8 * 20
    assert mask.predict.shape[1] == 8 * 176


def test_random_masks_differ_from_frame_to_frame() -> None:
    seen = shown(draw("random", (8, 14, 14), ratio=0.9), 8 * 196).view(16, 8, 196)
    assert not (seen[:, 0] == seen[:, 1]).all(dim=1).any()


# --- block ------------------------------------------------------------------------------------------------------------------


def rectangles(config: BlockMasker.Config, keys: Tensor, height: int, width: int) -> Tensor:
    """Returns (B, R, 4): top, bottom, left, right."""
    return torch.stack(BlockMasker(config)._rectangles(stream(keys, Stream.MASK), height, width), dim=-1)


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.6), ((14, 14), 0.4), ((6, 20), 0.75), ((5, 5), 0.9)], ids=str)
def test_blocks_are_rectangles_hidden_one_after_another_until_the_count(grid: tuple[int, int], ratio: float) -> None:
    """The vectorised masks equal a loop over the paper's algorithm: whole rectangles, with the last one cut to the count."""
    keys, config = sample_keys(11, 0, torch.arange(64)), BlockMasker.Config(ratio=ratio)
    mask, expected = BlockMasker(config)(keys, grid), round(ratio * grid[0] * grid[1])
    for row, boxes in enumerate(rectangles(config, keys, *grid).tolist()):
        hidden: list[int] = []
        for top, bottom, left, right in boxes:
            inside = [y * grid[1] + x for y in range(top, bottom) for x in range(left, right)]
            new = [place for place in inside if place not in hidden]
            if len(hidden) + len(new) >= expected:
                cut = set(mask.predict[row].tolist()) - set(hidden)
                assert set(hidden) < set(mask.predict[row].tolist())
                assert cut <= set(new)
                break
            hidden += new
        else:
            assert set(hidden) < set(mask.predict[row].tolist())


@pytest.mark.parametrize("grid", [(14, 14), (6, 20)], ids=str)
def test_rectangles_have_the_areas_and_aspects_asked_for(grid: tuple[int, int]) -> None:
    config = BlockMasker.Config()
    top, bottom, left, right = rectangles(config, sample_keys(0, 0, torch.arange(2000)), *grid).flatten(0, 1).unbind(1)
    high, wide = (bottom - top).double(), (right - left).double()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= grid[0]).all()
    assert (right <= grid[1]).all()
    free = (high < grid[0]) & (wide < grid[1])  # not cut at the grid's border
    for side, other in ((high, wide), (wide, high)):  # each side is rounded by at most half a token
        assert ((side + 0.5) / (other - 0.5) >= 0.3).all()
        assert ((side - 0.5) / (other + 0.5) <= 1 / 0.3)[free].all()
    area = grid[0] * grid[1]
    assert ((high + 0.5) * (wide + 0.5) >= 0.08 * area)[free].all()
    assert ((high - 0.5) * (wide - 0.5) <= 0.4 * area).all()
    assert top.min() == left.min() == 0
    assert bottom.max() == grid[0]
    assert right.max() == grid[1]


def test_block_masks_favour_no_row() -> None:
    """Rows are hidden as often as their mirror images, and hidden tokens of all rows are predicted equally often."""
    mask = draw("block", (14, 14), sample_keys(0, 0, torch.arange(20_000)), ratio=0.4, predict=0.1)
    hidden = 1 - shown(mask, 196).double().mean(0).view(14, 14)
    predicted = torch.zeros(len(mask.predict), 196).scatter(1, mask.predict, 1.0).double().mean(0).view(14, 14)
    assert (hidden - hidden.flip(0)).abs().max() < 5 * (2 * 0.24 / 20_000) ** 0.5  # five standard deviations
    assert (hidden - hidden.flip(1)).abs().max() < 5 * (2 * 0.24 / 20_000) ** 0.5
    share = (predicted / hidden).mean(1)  # the share of a row's hidden tokens
    assert (share - round(0.1 * 196) / round(0.4 * 196)).abs().max() < 0.01


def test_blocks_hold_together_and_random_masks_do_not() -> None:
    """Compares the share of hidden tokens that have a hidden neighbour on all four sides."""

    def surrounded(name: str) -> float:
        hidden = ~shown(draw(name, (14, 14), sample_keys(0, 0, torch.arange(500)), ratio=0.6), 196).view(-1, 14, 14)
        inner = hidden[:, 1:-1, 1:-1]
        around = hidden[:, :-2, 1:-1] & hidden[:, 2:, 1:-1] & hidden[:, 1:-1, :-2] & hidden[:, 1:-1, 2:]
        return ((inner & around).sum() / inner.sum()).item()

    assert surrounded("block") > 0.6
    assert surrounded("random") < 0.16  # 0.6^4 = 0.13


@pytest.mark.parametrize(("ratio", "half", "full"), [(0.4, 1, 1), (0.6, 0.9995, 1), (0.75, 0.995, 0.9999), (0.9, 0.6, 0.99)])
def test_how_many_masks_the_rectangles_fill(ratio: float, half: float, full: float) -> None:
    """Tests the claim at RECTANGLES, at 14 x 14: the share of masks that are full after half of the rectangles, and after all.

    Of 100,000 masks, the shares that were full after 16 and after 32 rectangles were 100 and 100 % at a ratio of 0.4, 99.999 and
    100 % at 0.6, 99.69 and 100 % at 0.75, 61.6 and 99.3 % at 0.9.
    """
    boxes = rectangles(BlockMasker.Config(ratio=ratio), sample_keys(0, 0, torch.arange(4000)), 14, 14)
    assert boxes.shape[1] == RECTANGLES == 32
    place = torch.arange(14)
    covered, shares = torch.zeros(len(boxes), 14, 14, dtype=torch.bool), []
    for top, bottom, left, right in (box.unbind(1) for box in boxes.unbind(1)):
        rows = (place >= top[:, None]) & (place < bottom[:, None])
        columns = (place >= left[:, None]) & (place < right[:, None])
        covered |= rows[:, :, None] & columns[:, None, :]
        shares.append((covered.flatten(1).sum(1) >= round(ratio * 196)).double().mean().item())
    assert shares[15] >= half
    assert shares[31] >= full


def test_a_mask_that_the_rectangles_do_not_fill_is_filled_with_single_tokens() -> None:
    mask = draw("block", (14, 14), ratio=0.95, smallest=0.01, largest=0.02)
    assert mask.predict.shape[1] == round(0.95 * 196)
    assert len(mask.predict[0].unique()) == mask.predict.shape[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"smallest": 0.5, "largest": 0.4}, "masker.smallest 0.5"),
        ({"smallest": 0.0}, "masker.smallest 0 "),
        ({"largest": 1.5}, "masker.largest 1.5"),
        ({"aspect": 0.0}, "masker.aspect 0 "),
        ({"aspect": 2.0}, "masker.aspect 2 "),
    ],
    ids=str,
)
def test_impossible_blocks_are_refused_by_name(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BlockMasker.Config(**options)
