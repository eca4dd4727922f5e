"""The nuclei of stardist's wheel as masks and as objects, or of a drawn image where the wheel is not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mmm.data.annotated.config import DepthConfig, MasksConfig, ObjectsConfig
from mmm.data.annotated.detection import open_objects
from mmm.data.annotated.pixels import open_pixels
from mmm.data.sources import nuclei
from mmm.data.sources.nuclei import FILES, PARTS, SMALLEST, TILE

COMMON: Any = {"source": "builtin:nuclei", "image_size": TILE, "channels": 1, "mean": (0.5,), "std": (0.2,), "workers": 0}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[np.ndarray]:
    """Makes a package that cannot be imported, with the two files: 80 bright discs on a dark image. Yields the masks."""
    rows, columns = np.mgrid[:512, :512]
    masks = np.zeros((512, 512), np.uint16)
    for number in range(80):
        masks[np.hypot(rows - (30 + number // 9 * 55), columns - (25 + number % 9 * 57)) < 12] = number + 1
    for file, values in zip(FILES, ((masks > 0) * 150 + 20, masks), strict=True):
        path = tmp_path / "stardist" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, values.astype(np.uint16))
    (tmp_path / "stardist" / "__init__.py").write_text("raise ImportError('csbdeep is not installed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    nuclei.nuclei.cache_clear()
    yield masks
    nuclei.nuclei.cache_clear()


def check(masks: np.ndarray) -> int:
    """Checks that the classes and objects of each tile are those of its part of the image. Returns the number of nuclei shown."""
    seen = set()
    for split, (start, end, _) in PARTS.items():
        pairs, objects = open_pixels(MasksConfig(**COMMON), split), open_objects(ObjectsConfig(**COMMON), split)
        assert pairs.classes == ("background", "nucleus")
        assert objects.classes == ("nucleus",)
        for index in range(0, len(pairs), 7 if split == "train" else 1):
            top, left = map(int, pairs.name(index).removeprefix("nuclei at ").split(", "))
            assert start <= left <= end - TILE
            part = masks[top : top + TILE, left : left + TILE]
            image, labels = pairs.read(index)
            assert np.array_equal(labels, part > 0)
            assert np.array_equal(image, objects.read(index))
            found = objects.objects(index)
            numbers = [number for number in np.unique(part) if number]
            assert len(found.masks) == len(numbers)
            for mask, number, many, box in zip(found.masks, numbers, found.crowd.tolist(), found.boxes.tolist(), strict=True):
                assert np.array_equal(mask, part == number)
                assert many == (mask.sum() < SMALLEST)
                rows, columns = np.nonzero(mask)
                assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            seen.update(numbers)
    return len(seen)


def test_tiles_show_the_nuclei_of_their_part(package: np.ndarray) -> None:
    assert check(package) == 80
    with pytest.raises(ValueError, match="has masks and no depths"):
        open_pixels(DepthConfig(**COMMON), "train")


@pytest.mark.skipif(importlib.util.find_spec("stardist") is None, reason="stardist's wheel holds the image: pip install --no-deps")
def test_stardist_has_125_nuclei() -> None:
    masks = tifffile.imread(nuclei.nuclei_folder() / FILES[1])
    assert len(np.unique(masks)) == 126
    assert check(masks) > 110  # some are in the gap between the splits


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stardist", None)
    for open_it, config in ((open_pixels, MasksConfig), (open_objects, ObjectsConfig)):
        with pytest.raises(ValueError, match="pip install --no-deps stardist"):
            open_it(config(**COMMON), "train")  # type: ignore[operator]
