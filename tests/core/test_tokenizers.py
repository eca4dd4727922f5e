"""Tokenizers: one definition for images and clips, its inverse, and the messages for inputs that do not fit.

Shapes: B samples, C channels, N tokens, P values per token.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mmm.core.positions import coordinates, resize_positions, sine_cosine
from mmm.tokenizers import GridTokenizer, Patches, Tubes

CASES = [
    (Patches.Config(size=4), (8, 12)),
    (Patches.Config(size=1), (3, 5)),
    (Patches.Config(size=14), (28, 14)),
    (Tubes.Config(size=4, frames=2), (6, 8, 12)),
    (Tubes.Config(size=2, frames=1), (3, 4, 6)),
    (Tubes.Config(size=4, frames=3), (3, 4, 8)),
]


def tokenizer(config, channels: int = 3) -> GridTokenizer:
    return {"patches": Patches, "tubes": Tubes}[config.name](config, channels=channels)


def cut(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Splits box by box: tokens in raster order, values in raster order, channels last."""
    grid = [range(side // token) for side, token in zip(x.shape[2:], size, strict=True)]
    tokens = []
    for place in itertools.product(*grid):
        box = x[(slice(None), slice(None), *(slice(p * s, (p + 1) * s) for p, s in zip(place, size, strict=True)))]
        tokens.append(box.movedim(1, -1).flatten(1))
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("config", "size"), CASES, ids=str)
def test_split_is_the_definition_and_join_its_inverse(config, size: tuple[int, ...], channels: int) -> None:
    part = tokenizer(config, channels)
    x = torch.randn(2, channels, *size)
    patches = part.split(x)
    assert torch.equal(patches, cut(x, part.size))
    assert torch.equal(part.join(patches, part.grid(x)), x)
    assert patches.shape == (2, math.prod(part.grid(x)), part.width)
    assert part.grid(x) == part.grid_of(size)
    assert not list(part.parameters())
    assert not part.state_dict()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_values_keep_their_type(dtype: torch.dtype) -> None:
    x = torch.randint(255, (2, 3, 8, 12)).to(dtype)
    assert tokenizer(Patches.Config(size=4)).split(x).dtype == dtype


def test_the_grid_follows_the_input_not_the_config() -> None:
    part = tokenizer(Tubes.Config(size=4, frames=2))
    assert part.grid(torch.zeros(1, 3, 4, 8, 12)) == (2, 2, 3)
    assert part.grid(torch.zeros(1, 3, 6, 4, 4)) == (3, 1, 1)


def test_an_image_is_one_tube_that_stands_still() -> None:
    part = tokenizer(Tubes.Config(size=4, frames=3))
    image = torch.randn(2, 3, 8, 12)
    assert part.grid(image) == part.grid_of((8, 12)) == (1, 2, 3)
    assert torch.equal(part.split(image), part.split(image[:, :, None].expand(-1, -1, 3, -1, -1)))


def test_memory_layout_does_not_matter() -> None:
    part, x = tokenizer(Patches.Config(size=4)), torch.randn(2, 3, 8, 12)
    assert torch.equal(part.split(x.contiguous(memory_format=torch.channels_last)), part.split(x))
    assert torch.equal(part.split(x.transpose(2, 3)), cut(x.transpose(2, 3), (4, 4)))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 1, 8, 12), r"\(2, 1, 8, 12\); expected \(samples, 3 channels, height, width\)"),
        ((3, 8, 12), "expected"),
        ((2, 3, 8, 13), "width 13 is not a multiple of the token's 4; use 12 or 16"),
        ((2, 3, 2, 12), "height 2 is not a multiple of the token's 4; use 4"),
        ((2, 3, 0, 12), "height 0"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_a_hint(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tokenizer(Patches.Config(size=4)).split(torch.zeros(shape))


def test_a_clip_among_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit tokens of 2"):
        tokenizer(Patches.Config(size=4)).split(torch.zeros(2, 3, 4, 8, 12))


# --- positions --------------------------------------------------------------------------------------------------------------


def test_coordinates_are_in_raster_order() -> None:
    assert coordinates((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert coordinates((2, 1, 2)).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(("grid", "width"), [((3, 4), 16), ((3, 4), 6), ((2, 3, 4), 12), ((2, 3, 4), 64)], ids=str)
def test_sines_and_cosines_share_the_width_between_axes(grid: tuple[int, ...], width: int) -> None:
    table = sine_cosine(coordinates(grid), width)
    share = 2 * math.ceil(width / (2 * len(grid)))
    for row, place in enumerate(itertools.product(*map(range, grid))):
        expected: list[float] = []
        for coordinate in reversed(place):  # columns come first
            angles = [coordinate / 10000 ** (2 * i / share) for i in range(share // 2)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[row].tolist() == pytest.approx(expected[:width], abs=1e-12)
    assert len(table.unique(dim=0)) == len(table)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="even width, not 7"):
        sine_cosine(coordinates((2, 2)), 7)


def test_positions_resize_along_their_own_axes() -> None:
    """A table that rises along one axis still does, within bicubic's error; the same grid gives the same values."""
    table = coordinates((6, 8)).float()[None]  # (1, 48, 2): the row in one channel, the column in the other
    assert resize_positions(table, (6, 8), (6, 8)) is table
    twice = resize_positions(table, (6, 8), (12, 16)).view(12, 16, 2)
    inner = twice[4:8, 4:12]
    assert torch.allclose(inner[..., 0], (torch.arange(4, 8) / 2 - 0.25)[:, None].expand(4, 8), atol=0.06)
    assert torch.allclose(inner[..., 1], (torch.arange(4, 12) / 2 - 0.25)[None].expand(4, 8), atol=0.06)
    with pytest.raises(ValueError, match="2 axes"):
        resize_positions(table, (6, 8), (2, 6, 8))
