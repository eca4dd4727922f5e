"""timm's augmentations, drawn from our keys: a sample's result does not depend on its batch, and global generators stay
unchanged."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import NAME_TO_OP, rand_augment_transform
from torch import Tensor
from video_files import write

from mmm.core.rng import sample_keys, seeded
from mmm.data import Clips, ClipsConfig, Images, ImagesConfig, open_data, train_batches
from mmm.data.transforms.augment import _policy, check_policy, erase, rand_augment
from mmm.train.mixup import SoftConfig, SoftTargets, check_mixing, soft_cross_entropy

IMAGE_POLICY, CLIP_POLICY = "rand-m9-mstd0.5-inc1", "rand-m7-n4-mstd0.5-inc1"
MEAN = (0.5, 0.4, 0.3)


def keys(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, 0, torch.arange(count))


def picture(seed: int = 0, channels: int = 3, side: int = 24) -> Tensor:
    """Returns an image with structure, uint8 (1, h, w, C), so that every operation has a visible effect."""
    rows = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    return torch.from_numpy(rows.repeat(side // 6, 0).repeat(side // 6, 1).copy())[None]


def generators() -> tuple[object, ...]:
    """Returns the states of all global generators."""
    return random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()


def changed(frames: Tensor, key: Tensor, policy: str = IMAGE_POLICY, mean: tuple[float, ...] = MEAN) -> Tensor:
    frames = frames.clone()
    rand_augment(frames, key, policy, mean)
    return frames


# --- generators -------------------------------------------------------------------------------------------------------------


def test_what_is_drawn_inside_follows_from_the_key_and_moves_nothing_outside() -> None:
    def draw(key: int) -> tuple[float, float, float]:
        with seeded(torch.tensor(key)):
            return random.random(), np.random.rand(), torch.rand(()).item()

    first = draw(5)
    torch.rand(1), random.random(), np.random.rand()
    assert draw(5) == first
    for one, other in zip(first, draw(-5), strict=True):  # the sign is part of the key
        assert one != other
    for one, other in zip(first[:2], draw(5 + 2**40), strict=False):  # the high bits are, too, but torch drops them
        assert one != other
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    before = generators()
    with suppress(KeyError), seeded(torch.tensor(5)):
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyError
    assert generators() == before


# --- RandAugment ------------------------------------------------------------------------------------------------------------


def test_it_is_timm_s_own_under_the_sample_s_key() -> None:
    """The pixels equal those of timm, with its order of random draws, and with MAE's resampling and fill."""
    from mmm.core.rng import Stream, stream

    change = rand_augment_transform(IMAGE_POLICY, {"img_mean": (128, 102, 76), "interpolation": Image.Resampling.BICUBIC})
    for seed, key in enumerate(keys(12)):
        frame = picture(seed)
        with seeded(stream(key[None], Stream.POLICY)[0]):
            expected = np.asarray(change(Image.fromarray(frame[0].numpy())))
        assert np.array_equal(changed(frame, key)[0].numpy(), expected)


def test_each_key_draws_anew_and_no_generator_moves() -> None:
    frame, before = picture(), generators()
    results = [changed(frame, key) for key in keys(20)]
    assert generators() == before
    assert len({result.numpy().tobytes() for result in results}) > 10
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    assert all(torch.equal(result, changed(frame, key)) for result, key in zip(results, keys(20), strict=True))


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    clip = picture().expand(4, -1, -1, -1)
    different = torch.cat([picture(seed) for seed in range(4)])
    for key in keys(12):
        moved = changed(clip, key, CLIP_POLICY)
        assert all(torch.equal(frame, moved[0]) for frame in moved)
        alone = torch.cat([changed(frame[None], key, CLIP_POLICY) for frame in different])
        assert torch.equal(changed(different, key, CLIP_POLICY), alone)
    assert any(not torch.equal(changed(clip, key, CLIP_POLICY), clip) for key in keys(12))


def test_grey_pictures_are_augmented_too() -> None:
    frame = picture(channels=1)
    results = [changed(frame, key, CLIP_POLICY, (0.5,)) for key in keys(30)]
    assert all(result.shape == frame.shape for result in results)
    assert len({result.numpy().tobytes() for result in results}) > 15


@pytest.mark.parametrize("operations", ["inc0", "inc1", "tweights", "t3a", "t3aw"])
def test_every_operation_runs_at_every_magnitude(operations: str) -> None:
    """Pillow 13 posterizes to 1 to 8 bits; timm requests 0 at one end of the range, and fewer than 0 above magnitude 10."""
    for magnitude, channels in product(range(21), (1, 3)):
        image = Image.fromarray(picture(channels=channels)[0].numpy().squeeze())
        policy: Any = _policy(f"rand-m{magnitude}-mmax20-p1.0-{operations}", MEAN[:channels])
        assert all((op(image).mode, op(image).size) == (image.mode, image.size) for op in policy.ops)


def test_posterizing_keeps_the_highest_bits_down_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def posterize(image: Image.Image, bits: int) -> Image.Image:  # Pillow 13 and later refuse 0 bits
        assert 1 <= bits <= 8
        return ImageOps.posterize(image, bits)

    monkeypatch.setattr("timm.data.auto_augment.ImageOps", SimpleNamespace(posterize=posterize))
    pixels = picture()[0].numpy()
    for magnitude in range(21):
        policy: Any = _policy(f"rand-m{magnitude}-mmax20-p1.0-inc1", MEAN)
        posterize = next(op for op in policy.ops if op.name == "PosterizeIncreasing")
        step = 2 ** (8 - max(0, 4 - int(magnitude / 10 * 4)))
        assert np.array_equal(np.asarray(posterize(Image.fromarray(pixels))), pixels.astype(int) // step * step)


@pytest.mark.parametrize(
    ("policy", "channels", "said"),
    [
        ("rand-9", 3, "'9' is not understood"),
        ("rand-m9-mstd", 3, "'mstd' is not understood"),
        ("augmix-m5", 3, "'augmix' is not understood"),
        (IMAGE_POLICY, 4, "data.channels 4"),
    ],
)
def test_what_cannot_be_done_is_said(policy: str, channels: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImagesConfig(augment=policy, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels).input()


def test_policies_that_timm_knows_are_taken() -> None:
    for policy in (IMAGE_POLICY, CLIP_POLICY, "rand-m9-n3-p0.7-mmax20-inc0-tweights", "rand-t3a"):
        check_policy(policy, 3)
        changed(picture(), keys(1)[0], policy)


# --- through the loader -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        Image.fromarray(picture(i, side=60)[0].numpy()).save(folder / f"{i}.png")  # too large to be cropped as a batch
    config = ImagesConfig(source=str(folder), holdout=0.0, image_size=24, workers=0, augment=IMAGE_POLICY)
    return open_data(config, "train")  # type: ignore


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        write(folder / f"{i}.mp4", count=12 + i, size=(48, 64))
    config = ClipsConfig(source=str(folder), holdout=0.0, image_size=24, frames=4, stride=2, workers=0, augment=CLIP_POLICY)
    return open_data(config, "train")  # type: ignore


def seen(part: Images | Clips, *, workers: int = 0, parts: int = 1, rank: int = 0, repeats: int = 1) -> Tensor:
    """Returns all pixels of three steps of eight samples."""
    config = replace(part.config, workers=workers, repeats=repeats)
    batches = train_batches(part, config, seed=3, batch_size=8 // parts, steps=3, world=parts, rank=rank)
    return torch.stack([batch.pixels for batch in batches])  # (steps, B, ...)


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_same_samples_whatever_the_workers_and_processes(kind: str, request: pytest.FixtureRequest) -> None:
    part = request.getfixturevalue(kind)
    whole = seen(part)
    assert torch.equal(whole, seen(part, workers=2))
    assert torch.equal(whole, torch.cat([seen(part, parts=2, rank=rank) for rank in (0, 1)], 1))
    bare = seen(type(part)(part.table, replace(part.config, augment=None), part.rows, part.where))
    differ = (whole != bare).flatten(2).any(2)
    assert differ.float().mean() > 0.5
    assert not differ.all() or kind == "clips"  # each of an image's two operations has probability 0.5


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_views_of_one_input_are_augmented_apart(kind: str, request: pytest.FixtureRequest) -> None:
    part = request.getfixturevalue(kind)
    whole = replace(part.config, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    if isinstance(whole, ClipsConfig):
        whole = replace(whole, crop="random_resized")
    same_crops = type(part)(part.table, whole, part.rows, part.where)
    pairs = seen(same_crops, repeats=2).unflatten(1, (-1, 2))
    assert (pairs[:, :, 0] != pairs[:, :, 1]).flatten(2).any(2).float().mean() > 0.5


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_an_operation_that_fails_names_the_sample_and_itself(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setitem(NAME_TO_OP, "Sharpness", fail)
    part = request.getfixturevalue(kind)
    with pytest.raises(
        ValueError, match=r"\d\.(png|mp4): the operation Sharpness\(1\.72\) of data.augment failed: OSError: no room"
    ):
        seen(type(part)(part.table, replace(part.config, augment="rand-m9-n40-p1"), part.rows, part.where), workers=2)


# --- erasing ----------------------------------------------------------------------------------------------------------------


def test_a_quarter_is_erased_each_by_its_own_key() -> None:
    before = generators()
    x = erase(torch.zeros(400, 2, 10, 12), keys(400), 0.25)
    assert generators() == before
    hit = (x != 0).flatten(1).any(1)
    assert 0.18 < hit.float().mean() < 0.32
    shuffled = torch.randperm(400)
    assert torch.equal(erase(torch.zeros(400, 2, 10, 12), keys(400)[shuffled], 0.25), x[shuffled])
    assert torch.equal(erase(torch.zeros(400, 2, 10, 12), keys(400), 0.0), torch.zeros(400, 2, 10, 12))
    values = x[x != 0]
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1


def test_of_a_clip_the_same_box_of_all_frames_with_noise_of_each() -> None:
    x = torch.zeros(8, 5, 12, 12, 3).permute(0, 4, 1, 2, 3)  # (B, C, T, h, w) as clips lie in memory
    erase(x, keys(8), 1.0)
    boxes = x != 0
    for sample in boxes:
        assert sample.any()
        assert (sample == sample[:1, :1]).all()
        area = sample[0, 0]
        assert area.sum() == area.any(0).sum() * area.any(1).sum()  # one box
    assert not torch.equal(x[0, :, 0], x[0, :, 1])


# --- mixing -----------------------------------------------------------------------------------------------------------------


def mixed(config: SoftConfig, key: Tensor, shape: tuple[int, ...] = (6, 3, 4, 8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mixed samples, whose values were the sample's number before, with their targets and labels."""
    x = torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    labels = torch.arange(shape[0]) % 5
    return *SoftTargets(config, 5)(x, labels, key), labels


def test_smoothing_alone_is_torch_s() -> None:
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    _, targets = SoftTargets(SoftConfig(smoothing=0.1), 5)(torch.zeros(6, 3, 2, 2), labels, keys(1)[0])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_targets_say_what_was_mixed(name: str) -> None:
    """The partner's share of the pixels, or of their values, equals the weight of its label."""
    before = generators()
    for key in keys(10):
        x, targets, labels = mixed(SoftConfig(**{name: 1.0}), key)
        own, partner = torch.arange(1.0, 7.0), torch.arange(6.0, 0.0, -1.0)
        share = (x.flatten(1).mean(1) - partner) / (own - partner)  # share of the sample itself
        expected = torch.zeros(6, 5)
        expected[torch.arange(6), labels] += share
        expected[torch.arange(6), labels.flip(0)] += 1 - share
        torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(x, x[:, :1, :1].expand_as(x))  # equal in all channels and frames
    assert generators() == before


def test_cutmix_cuts_the_picture_and_never_the_time() -> None:
    """timm's own CutMix would cut frames from a clip."""
    cut = 0
    for key in keys(10):
        x, _, _ = mixed(SoftConfig(cutmix=1.0), key)
        frame = x[0, 0, 0]
        assert set(frame.unique().tolist()) <= {1.0, 6.0}
        cut += len(frame.unique()) == 2
    assert cut > 5


def test_both_take_turns_by_the_key() -> None:
    config = SoftConfig(mixup=0.8, cutmix=1.0, smoothing=0.1)
    kinds = [bool(set(mixed(config, key)[0][0].unique().tolist()) - {1.0, 6.0}) for key in keys(30)]
    assert 5 < sum(kinds) < 25
    first, again = mixed(config, keys(1)[0]), mixed(config, keys(1)[0])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))


def test_an_odd_micro_batch_cannot_be_mixed() -> None:
    check_mixing(SoftConfig(), 7)
    check_mixing(SoftConfig(cutmix=1.0), 8)
    with pytest.raises(ValueError, match="and a micro-batch has 7"):
        check_mixing(SoftConfig(mixup=0.8), 7)
    with pytest.raises(ValueError, match=r"soft.smoothing 1.5"):
        SoftConfig(smoothing=1.5)
    with pytest.raises(ValueError, match=r"soft.mixup -1"):
        SoftConfig(mixup=-1)


def test_folder_of_images_is_untouched_without_a_policy(tmp_path: Path) -> None:
    """An image that equals its crop is returned unchanged."""
    Image.fromarray(picture()[0].numpy()).save(tmp_path / "a.png")
    config = ImagesConfig(source=str(tmp_path), holdout=0.0, image_size=24, workers=0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    (batch,) = train_batches(open_data(config, "train"), config, seed=0, batch_size=1, steps=1)
    assert torch.equal(batch.pixels[0].permute(1, 2, 0), picture()[0])
