"""Samples in every usual form become the input that evaluation gives to the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import pictures, write

from mmm import Input
from mmm.data.decode.image import decode_image
from mmm.data.transforms.crop import center_crop, normalise
from mmm.transform import Transform

DATA = Input(size=(16, 24), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
CLIP = Input(size=(4, 16, 16))


@pytest.fixture
def photograph() -> Image.Image:
    return Image.fromarray((np.random.default_rng(0).random((40, 50, 3)) * 255).astype(np.uint8))


def test_every_form_of_an_image_is_the_same_sample(photograph: Image.Image, tmp_path: Path) -> None:
    """Every form gives the sample that evaluation makes from the file."""
    path = tmp_path / "photograph.png"
    photograph.save(path)
    expected = normalise(center_crop(decode_image(path, 3), (16, 24))[None], DATA.mean, DATA.std)
    transform, array = Transform(DATA), np.asarray(photograph)
    tensor = torch.from_numpy(array.copy())
    forms = [photograph, path, str(path), path.read_bytes(), array, tensor, tensor.permute(2, 0, 1), array.astype(np.float32) / 255]
    for form in forms:
        assert torch.equal(transform(form), expected)
        assert torch.equal(transform([form, form]), expected.expand(2, -1, -1, -1))
    assert torch.equal(transform(tensor[None].expand(3, -1, -1, -1)), expected.expand(3, -1, -1, -1))


def test_training_draws_crops_from_torch_s_generator(photograph: Image.Image) -> None:
    transform = Transform(DATA, training=True)
    torch.manual_seed(3)
    first = transform([photograph] * 4)
    assert first.shape == (4, 3, 16, 24)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(3)
    assert torch.equal(transform([photograph] * 4), first)


def test_every_form_of_a_clip(tmp_path: Path) -> None:
    frames = list(pictures(8))
    array = np.stack([np.asarray(frame) for frame in frames])  # (T, H, W, C)
    transform = Transform(CLIP)
    expected = transform(array)
    assert expected.shape == (1, 3, 4, 16, 16)
    for form in (list(frames), torch.from_numpy(array), torch.from_numpy(array).permute(0, 3, 1, 2), [array], array[None]):
        assert torch.equal(transform(form), expected)
    assert transform([array, array]).shape == (2, 3, 4, 16, 16)
    video = write(tmp_path / "video.mp4", count=8, options={"crf": "1"})
    assert (transform(video) - expected).abs().mean() < 0.1  # the encoding of the video is lossy


def test_a_folder_of_frames_has_no_times(tmp_path: Path) -> None:
    for number, frame in enumerate(pictures(8)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    assert Transform(replace(CLIP, stride=2))(tmp_path).shape == (1, 3, 4, 16, 16)
    with pytest.raises(ValueError, match="a folder of frames has no times; this model reads 10 frames per second"):
        Transform(replace(CLIP, stride=2, fps=10.0))(tmp_path)


def test_an_animated_gif_is_a_clip(tmp_path: Path) -> None:
    first, *others = [Image.new("RGB", (40, 40), (30 * number, 0, 0)) for number in range(8)]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others, duration=100)
    clip = Transform(CLIP)(tmp_path / "clip.gif")  # (1, 3, 4, H, W)
    assert clip[0, 0].mean((1, 2)).diff().min() > 0  # it becomes brighter


def test_what_cannot_be_taken_is_said(photograph: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples"):
        Transform(DATA)([])
    with pytest.raises(ValueError, match="clips of 4 frames"):
        Transform(CLIP)(photograph)
    array = np.asarray(photograph)
    with pytest.raises(ValueError, match=r"clips of 4 frames: .* not \(40, 50, 3\)"):  # it was read as 40 grey frames
        Transform(CLIP)(array)
    with pytest.raises(ValueError, match="has 2 frames"):
        Transform(CLIP)([photograph] * 2)
    with pytest.raises(ValueError, match="has 0 frames"):
        Transform(CLIP)([[]])
    for training in (False, True):
        with pytest.raises(ValueError, match=r"samples\[1\] cannot .* frames have the sizes 40 x 50 and 20 x 50 pixels; resize"):
            Transform(CLIP, training=training)([[array] * 4, [array, array[:20], array, array]])
    path = tmp_path / "0.png"
    photograph.save(path)
    with pytest.raises(ValueError, match=r"samples\[0\], .*0.png, cannot be read: .* the paths of the frames of one clip go into"):
        Transform(CLIP)([str(path)] * 4)
    assert Transform(CLIP)([[str(path)] * 4]).shape == (1, 3, 4, 16, 16)
    with pytest.raises(ValueError, match=r"samples\[1\] cannot be read: is of type NoneType; an image is Pillow's, a path"):
        Transform(DATA)([photograph, None])
    with pytest.raises(ValueError, match="cannot be read: 1 x 20000 pixels become 64 x 1280000"):
        Transform(Input(size=(64, 64)))(torch.zeros(1, 20000, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="from 0 to 1"):
        Transform(DATA)(torch.randn(3, 20, 20))
