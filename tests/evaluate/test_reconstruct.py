"""Tests of reconstructions: the pixels that are shown, baselines that use no hidden pixels, and the errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from mmm import Input, MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.tokens import take
from mmm.data import ImagesConfig, open_images
from mmm.decoders import LinearDecoder
from mmm.evaluate.plots.image_grid import CELL, GAP, MARGIN, NOTHING, draw_grid, resize_cells, to_rgb
from mmm.evaluate.reconstruction.baselines import fill_hidden
from mmm.evaluate.reconstruction.gallery import GIVEN, OWN, GalleryConfig, format_gallery, make_gallery
from mmm.evaluate.reconstruction.reconstruct import Reconstruction, every_hidden, psnr, reconstruct
from mmm.maskers import RandomMasker, TubeMasker
from mmm.targets import PixelTarget

Build = Callable[..., MaskedModel]
PLAIN = PixelTarget.Config(standardise="none")


def sample(model: MaskedModel, size: tuple[int, ...] = (12, 16), channels: int = 3, rows: int = 2) -> tuple[Tensor, Input]:
    """Returns noise, normalised as the model of `build` expects it, and the Input that describes it."""
    mean, std = model.target.mean.tolist(), model.target.std.tolist()
    unit = torch.rand(rows, channels, *size)
    data = Input(size=size, channels=channels, mean=tuple(mean), std=tuple(std))
    view = (1, channels, *[1] * len(size))
    return (unit - torch.tensor(mean).view(view)) / torch.tensor(std).view(view), data


def shown(model: MaskedModel, x: Tensor, data: Input) -> Reconstruction:
    return reconstruct(model.eval(), x, data, sample_keys(0, 0, torch.arange(len(x))))


@pytest.mark.parametrize(("size", "channels"), [((12, 16), 1), ((12, 16), 3), ((16, 12), 5), ((4, 8, 12), 3)])
def test_visible_and_predicted_share_out_the_picture(build: Build, size: tuple[int, ...], channels: int) -> None:
    model = build(size, channels)
    found = shown(model, *sample(model, size, channels))
    seen, made = ~found.visible.isnan(), ~found.predicted.isnan()
    assert torch.equal(seen, ~made)
    assert seen.double().mean().item() == pytest.approx(0.25)
    assert torch.equal(found.pasted[seen], found.original[seen])
    assert torch.equal(found.visible[seen], found.original[seen])
    assert torch.equal(found.pasted[made], found.predicted[made])
    assert 0 <= float(found.pasted.min()) <= float(found.pasted.max()) <= 1
    assert found.original.shape == (2, channels, *size)


@pytest.mark.parametrize("standardise", ["patch", "channel", "none"])
@pytest.mark.parametrize("pixels", ["normalised", "unit"])
def test_honest_guesses_know_nothing_hidden(build: Build, standardise: str, pixels: str) -> None:
    """Other values in the hidden tokens change only the two baselines that are named after the original."""
    model = build(target=PixelTarget.Config(standardise=standardise, pixels=pixels)).eval()
    x, data = sample(model)
    patches, grid = model.tokenizer.split(x), model.tokenizer.grid(x)
    mask = every_hidden(model.masker(sample_keys(0, 0, torch.arange(2)), grid), 2, 12)
    other = patches.scatter(1, mask.predict[..., None].expand(-1, -1, patches.shape[2]), 7.0)
    prediction = model(x, mask=mask).prediction
    first, second = (fill_hidden(model, prediction, values, grid, mask, data) for values in (patches, other))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == (set() if standardise == "none" else {"model_given_original", "original_alone"})


def test_errors_are_of_the_hidden_pixels(build: Build) -> None:
    model = build(target=PLAIN)
    found = shown(model, *sample(model))
    for row in range(2):
        hidden = ~found.predicted[row].isnan()
        expected, got = (part[row][hidden].double().numpy() for part in (found.original, found.predicted))
        assert psnr(found.errors["model"][row].item()) == pytest.approx(
            peak_signal_noise_ratio(expected, got, data_range=1), abs=1e-4
        )
        seen = ~found.visible[row].isnan()
        mean = torch.stack([found.original[row, c][seen[c]].mean() for c in range(3)])[:, None, None].expand(3, 12, 16)
        reference = peak_signal_noise_ratio(expected, mean[hidden].double().numpy(), data_range=1)
        assert psnr(found.errors["visible_mean"][row].item()) == pytest.approx(reference, abs=1e-4)


def test_given_the_original_a_perfect_prediction_is_perfect(build: Build) -> None:
    """With the original but no prediction, each token is filled with its own mean."""
    model = build(channels=1, target=PixelTarget.Config(epsilon=0.0)).eval()
    x, data = sample(model, channels=1)
    patches, grid = model.tokenizer.split(x), model.tokenizer.grid(x)
    mask = every_hidden(model.masker(sample_keys(0, 0, torch.arange(2)), grid), 2, 12)
    filled = fill_hidden(model, model(x, mask=mask).target, patches, grid, mask, data)
    hidden = take(patches * data.std[0] + data.mean[0], mask.predict)
    assert torch.allclose(filled["model_given_original"], hidden, atol=1e-5)
    assert torch.allclose(filled["original_alone"], hidden.mean(2, keepdim=True).expand_as(hidden), atol=1e-5)


def test_a_flat_image_is_guessed_from_what_is_visible(build: Build) -> None:
    model = build(target=PLAIN)
    _, data = sample(model)
    found = shown(model, torch.zeros(2, 3, 12, 16) + 0.3, data)
    for name in ("visible_blend", "visible_mean"):
        assert psnr(found.errors[name].mean().item()) == pytest.approx(100, abs=1)
    assert psnr(found.errors["model"].mean().item()) < 60


def test_all_hidden_tokens_are_shown_whatever_part_training_predicts(build: Build) -> None:
    parts = {
        "a part": {"masker": RandomMasker.Config(ratio=0.75, predict=0.25)},
        "blanks": {"masker": RandomMasker.Config(ratio=0.5, blank=True), "decoder": LinearDecoder.Config()},
    }
    for name, chosen in parts.items():
        model = build(**chosen)
        made = ~shown(model, *sample(model)).predicted.isnan()
        assert made.double().mean().item() == pytest.approx(chosen["masker"].ratio), name


def test_tubes_hide_the_same_places_and_show_a_middle_frame(build: Build) -> None:
    model = build((8, 8, 12), masker=TubeMasker.Config(ratio=0.5))
    found = shown(model, *sample(model, (8, 8, 12)))
    frames = found.visible.isnan().unbind(2)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    assert to_rgb(found.visible).shape == (2, 8, 12, 3)


def test_a_target_without_pixels_is_said(build: Build) -> None:
    model = build()
    model.target.show = lambda prediction, patches, mask: None
    with pytest.raises(ValueError, match=r"target.name pixels does not predict pixels"):
        shown(model, *sample(model))


def test_cells_are_enlarged_by_whole_pixels_and_channels_become_colours() -> None:
    x = torch.rand(1, 1, 8, 10)
    cells = resize_cells(to_rgb(x))
    factor = round(CELL / 10)
    assert cells.shape == (1, 8 * factor, 10 * factor, 3)
    assert len(cells[0, :factor, :factor].unique()) == 1
    many = torch.rand(2, 5, 4, 4)
    assert torch.equal(to_rgb(many), to_rgb(many[:, :3]))
    assert max(resize_cells(to_rgb(torch.rand(1, 3, 400, 700))).shape[1:3]) == 320


def test_a_grid_has_its_samples_in_place(tmp_path: Path) -> None:
    red, none = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(4, 3, 8, 8), torch.full((4, 3, 8, 8), torch.nan)
    path = draw_grid([("red", red), ("none", none)], tmp_path / "new" / "grid.png", title="t", notes=["word " * 200], groups=2)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    side = 8 * round(CELL / 8)
    top = int(np.argmax((pixels[:, MARGIN + 5] == (255, 0, 0)).all(1)))
    for row, column in ((0, 0), (1, 0), (0, 2), (1, 2)):
        x = MARGIN + column * (side + GAP) + (3 * GAP if column else 0)
        y = top + row * (side + GAP)
        assert (pixels[y : y + side, x : x + side] == (255, 0, 0)).all()
        assert (pixels[y : y + side, x + side + GAP : x + 2 * side + GAP] == NOTHING).all()
    assert pixels.shape[0] > top + 2 * side + 5 * 20  # the note was wrapped into several lines


def test_a_gallery_of_real_photographs(build: Build, real_data: Path, tmp_path: Path) -> None:
    """An unreadable file is left out and named, and the figures are those of the others."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for file in sorted((real_data / "images" / "train").rglob("*.JPEG"))[:7]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture at all")
    model = build((32, 48)).eval()
    config = ImagesConfig(
        source=str(folder), image_size=(32, 48), holdout=0.0, workers=0, mean=tuple(model.target.mean.tolist()),
        std=tuple(model.target.std.tolist()),
    )  # fmt: skip
    images = open_images(config, "train")
    found = make_gallery(model.train(), images, GalleryConfig(samples=3, measured=None), path=tmp_path / "grid.png", batch_size=3)
    assert model.training
    assert found["samples"] == 7
    assert found["hidden"] == pytest.approx(0.75)
    assert ["broken.jpg" in problem["name"] for problem in found["problems"]] == [True]
    assert Image.open(tmp_path / "grid.png").size[0] > 4 * 144
    assert GIVEN in format_gallery(found)
    same = make_gallery(model, images, GalleryConfig(samples=3, measured=None), path=None, batch_size=5)
    assert same["psnr"] == pytest.approx(found["psnr"], abs=1e-3)
    assert OWN not in format_gallery(same)
    other = make_gallery(model, images, GalleryConfig(samples=3, measured=None, mask_seed=1), path=None)
    assert other["psnr"] != pytest.approx(found["psnr"], abs=1e-3)
    model.target.config = replace(model.target.config, standardise="none")
    assert set(make_gallery(model, images, GalleryConfig(measured=4), path=None)["psnr"]) == {
        "model", "visible_blend", "visible_mean", "visible_nearest",
    }  # fmt: skip


def test_painted_pixels_are_hidden_and_predicted(build) -> None:
    model, x = build(size=(12, 16)), torch.rand(2, 3, 12, 16)
    painted = torch.zeros(12, 16)
    painted[4:8, 8:] = 1
    found = model.reconstruct(x, hidden=painted)
    assert torch.equal(found.visible.isnan()[:, 0], (painted > 0).expand(2, -1, -1))
    assert torch.equal(found.predicted.isfinite()[:, 0], (painted > 0).expand(2, -1, -1))
    other = torch.zeros(16, 24)
    other[1:9, 9:15] = 1  # most of one unit of 8 pixels
    units = build(size=(16, 24), masker=RandomMasker.Config(unit=2)).reconstruct(torch.rand(1, 3, 16, 24), hidden=other)
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[:8, 8:16] = True
    assert torch.equal(units.visible.isnan()[0, 0], expected)
    with pytest.raises(ValueError, match="give one of them"):
        model.reconstruct(x, hidden=painted, ratio=0.5)
