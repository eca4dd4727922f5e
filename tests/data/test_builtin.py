"""The built-in photographs: real, fixed, and with no pixel in two splits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from mmm.data import ImagesConfig, open_images
from mmm.data.sources.builtin_images import PHOTOGRAPHS, STRIPS, TILE, Photographs

GREY = ImagesConfig(source="builtin:photographs", channels=1, mean=(0.5,), std=(0.25,), image_size=32, workers=0)


def test_the_splits_have_their_sizes_and_classes() -> None:
    for split, (_, _, count) in STRIPS.items():
        images = open_images(GREY, split)
        assert len(images) == count * len(PHOTOGRAPHS)
        assert torch.equal(images.labels().bincount(), torch.full((len(PHOTOGRAPHS),), count))
        assert len(set(images.table.column.names)) == len(images)
    assert len(open_images(GREY, "train")) == 2880
    assert open_images(GREY, "eval").where == "validation"  # so that tuning never uses the test split


def test_no_pixel_is_in_two_splits() -> None:
    widths = {}
    for split in STRIPS:
        for name in Photographs("photographs", 1).table(split).column.names:
            file, _, left = re.fullmatch(r"(\S+) at (\d+), (\d+)", name).groups()
            start, end = widths.get((file, split), (10**6, 0))
            widths[file, split] = (min(start, int(left)), max(end, int(left) + TILE))
    for file in PHOTOGRAPHS:
        train, validation, test = (widths[file, split] for split in ("train", "validation", "test"))
        assert train[1] + 8 <= validation[0]
        assert validation[1] + 8 <= test[0]


def test_tiles_are_pieces_of_the_bundled_photographs_in_a_light_of_their_own() -> None:
    table = Photographs("photographs", 3).table("test")
    for row in range(0, len(table.column), 97):
        file, top, left = re.fullmatch(r"(\S+) at (\d+), (\d+)", table.column.name(row)).groups()
        whole = Image.open(Path(skimage.__path__[0]) / "data" / file).convert("RGB")
        if whole.height <= 512:
            box = (int(left), int(top), int(left) + TILE, int(top) + TILE)
            tile, piece = table.column[row].astype(float), np.asarray(whole.crop(box)).astype(float)
            gain, offset = np.polyfit(piece.ravel(), tile.ravel(), 1)
            inside = (gain * piece + offset > 1) & (gain * piece + offset < 254)  # pixels that the change of light did not clip
            assert np.corrcoef(piece[inside], tile[inside])[0, 1] > 0.98
            assert gain > 0
        assert table.classes[table.labels[row]] == file.split(".")[0]


def test_brightness_and_contrast_say_nothing_of_the_photograph() -> None:
    table = Photographs("photographs", 1).table("train")
    means = table.column.values.mean(axis=(1, 2, 3))
    deviations = table.column.values.std(axis=(1, 2, 3))
    assert 85 < means.min() < means.max() < 170
    assert deviations.max() < 61
    by_class = [means[table.labels.numpy() == label] for label in range(len(table.classes))]
    assert np.ptp([part.mean() for part in by_class]) < 12  # means are drawn over 75 levels, 240 times a class


def test_tiles_are_the_same_each_time_and_grey_where_asked() -> None:
    first, second = (Photographs("photographs", 1).table("validation") for _ in range(2))
    np.testing.assert_array_equal(first.column.values, second.column.values)
    assert first.fingerprint == second.fingerprint != Photographs("photographs", 1).table("test").fingerprint
    assert first.column.values.shape[1:] == (TILE, TILE, 1)
    brick = Photographs("photographs", 3).table("validation").column[0]
    assert (brick == brick[:, :, :1]).all()  # a grey photograph, repeated in each channel


def test_other_names_and_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"builtin:fotographs.*did you mean 'photographs'\?"):
        Photographs("fotographs", 3)
    with pytest.raises(ValueError, match=r"data\.channels 5: builtin:photographs has 1 \(grey\) or 3"):
        Photographs("photographs", 5)
