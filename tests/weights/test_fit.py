"""Runs that start from weights of another size, of another clip length, or of an image model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmm import MaskedModel
from mmm.core.positions import resize_positions
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import Hiera, VisionTransformer
from mmm.maskers import RandomMasker
from mmm.tokenizers import Patches, Tubes
from mmm.weights.fit import Inflation
from mmm.weights.initialize import initialise_from

Build = Callable[..., MaskedModel]
LEARNED = VisionTransformer.Config(width=24, depth=2, heads=2, positions="learned")
DECODER = SelfAttentionDecoder.Config(width=16, depth=1, heads=2, positions="learned")


def saved(model: MaskedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("home", "size"), [((12, 16), (20, 16)), ((4, 12, 16), (8, 12, 16))])
def test_positions_of_another_size_or_length_are_resized(home: Any, size: Any, build: Build, tmp_path: Path) -> None:
    """The positions of encoder and decoder are resized; all other weights are copied."""
    source, model = (build(one, encoder=LEARNED, decoder=DECODER) for one in (home, size))
    assert initialise_from(model, saved(source, tmp_path)) == {"encoder", "decoder"}
    for part in ("encoder", "decoder"):
        theirs, ours = getattr(source, part), getattr(model, part)
        table = torch.cat([theirs.pos_embed[:, :1], resize_positions(theirs.pos_embed[:, 1:], theirs.home, ours.home)], dim=1)
        assert torch.equal(ours.pos_embed, table)
        others = {name: value for name, value in theirs.state_dict().items() if name != "pos_embed"}
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in others.items())


def test_an_encoder_alone_at_another_size_starts_a_model(build: Build, tmp_path: Path) -> None:
    source, model = build((12, 16), encoder=LEARNED), build((24, 16), encoder=LEARNED)
    source.decoder = None
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    assert initialise_from(model, saved(source, tmp_path)) == {"encoder"}
    assert all(torch.equal(model.decoder.state_dict()[name], value) for name, value in before.items())
    x = torch.randn(1, 3, 24, 16)
    assert torch.allclose(model.encode(x).last, source.encode(x).last, atol=1e-6)  # as the source model resizes its positions


@pytest.mark.parametrize("how", ["average", "centre"])
def test_an_inflated_image_model_sees_a_still_clip_as_its_image(how: Inflation, build: Build, tmp_path: Path) -> None:
    source = build((12, 16), encoder=LEARNED)
    still, longer = (build((frames, 12, 16), encoder=LEARNED) for frames in (2, 6))
    path = saved(source, tmp_path)
    for model in (still, longer):
        assert initialise_from(model, path, inflate=how) == {"encoder"}
    x = torch.randn(2, 3, 12, 16)
    clip = x[:, :, None].expand(-1, -1, 2, -1, -1)
    assert (still.encode(clip).last - source.encode(x).last).abs().max() < 1e-5
    if how == "centre":  # the frame of the kernel that holds the weights
        other = torch.stack([torch.randn_like(x), x], dim=2)
        assert (still.encode(other).last - source.encode(x).last).abs().max() < 1e-5
    table = longer.encoder.pos_embed  # (1, 1 + 3 x 12, D)
    assert torch.equal(table[:, 1:13], table[:, 25:])
    assert torch.equal(table[:, :13], source.encoder.pos_embed)


def test_positions_of_place_and_time_start_from_those_of_an_image(build: Build, tmp_path: Path) -> None:
    source, model = build((12, 16), encoder=LEARNED), build((4, 12, 16), encoder=replace(LEARNED, positions="separate"))
    initialise_from(model, saved(source, tmp_path), inflate="average")
    x = torch.randn(2, 3, 12, 16)
    still = build((2, 12, 16), encoder=replace(LEARNED, positions="separate"))
    initialise_from(still, tmp_path, inflate="average")
    assert (still.encode(x[:, :, None].expand(-1, -1, 2, -1, -1)).last - source.encode(x).last).abs().max() < 1e-5
    assert not model.encoder.pos_embed_temporal.any()
    assert torch.equal(model.encoder.pos_embed_class, source.encoder.pos_embed[:, :1])


def test_positions_of_place_and_time_become_one_table(build: Build, tmp_path: Path) -> None:
    source = build((4, 12, 16), encoder=replace(LEARNED, positions="separate"))
    path = saved(source, tmp_path)
    for size in ((4, 12, 16), (8, 16, 16)):
        model = build(size, encoder=LEARNED)
        initialise_from(model, path)
        x = torch.randn(1, 3, *size)
        assert torch.allclose(model.encode(x).last, source.encode(x).last, atol=1e-5)


def test_a_model_of_clips_starts_no_model_of_images(build: Build, tmp_path: Path) -> None:
    hiera = Hiera.Config(width=8, heads=1, stages=(1, 1, 1), mask_unit=4)
    clips = build((4, 32, 32), tokenizer=Tubes.Config(size=16, frames=2), encoder=hiera, masker=RandomMasker.Config())
    images = build((32, 32), tokenizer=Patches.Config(size=16), encoder=hiera, masker=RandomMasker.Config())
    separate = build((4, 12, 16), encoder=replace(LEARNED, positions="separate"))
    for number, (source, model) in enumerate([(clips, images), (separate, build((12, 16), encoder=LEARNED))]):
        with pytest.raises(ValueError, match="choose a tokenizer of tubes"):
            initialise_from(model, saved(source, tmp_path / str(number)))


def test_a_mask_token_that_one_side_lacks_is_no_obstacle(build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, masked = build(), build(masker=RandomMasker.Config(blank=True))
    own = masked.encoder.mask_token.clone()
    initialise_from(masked, saved(plain, tmp_path / "plain"))
    assert torch.equal(masked.encoder.mask_token, own)
    assert "has no mask token for the encoder" in caplog.text
    initialise_from(plain, saved(masked, tmp_path / "masked"))
    assert "is left out, because this model's encoder has none" in caplog.text


def test_fixed_positions_stay_the_clip_model_s_own(build: Build, tmp_path: Path) -> None:
    source, model = build((12, 16)), build((4, 12, 16))
    own = model.encoder.pos_embed.clone()
    initialise_from(model, saved(source, tmp_path), inflate="average")
    assert torch.equal(model.encoder.pos_embed, own)


def test_hiera_is_inflated_too(build: Build, tmp_path: Path) -> None:
    """The image weights go to the middle frame of a kernel; positions in space and time then have separate tables."""
    encoder = Hiera.Config(width=8, heads=1, stages=(1, 1, 1), mask_unit=4)
    parts = {"encoder": encoder, "masker": RandomMasker.Config()}
    source = build((32, 32), tokenizer=Patches.Config(size=16), **parts)
    model = build((4, 32, 32), tokenizer=Tubes.Config(size=16, frames=2), **parts)
    initialise_from(model, saved(source, tmp_path), inflate="centre")
    x = torch.randn(1, 3, 32, 32)
    alone = build((2, 32, 32), tokenizer=Tubes.Config(size=16, frames=2), **parts)
    initialise_from(alone, tmp_path, inflate="centre")
    clip = x[:, :, None].expand(-1, -1, 2, -1, -1)
    assert (alone.encode(clip).last - source.encode(x).last).abs().max() < 1e-5
    assert not model.encoder.pos_embed_temporal.any()


def test_what_cannot_be_fitted_is_refused(build: Build, tmp_path: Path) -> None:
    images, clips = build((12, 16), encoder=LEARNED), build((4, 12, 16), encoder=LEARNED)
    with pytest.raises(ValueError, match="--inflate average or --inflate centre"):
        initialise_from(clips, saved(images, tmp_path / "images"))
    with pytest.raises(ValueError, match="is a model of clips"):
        initialise_from(images, saved(clips, tmp_path / "clips"))
