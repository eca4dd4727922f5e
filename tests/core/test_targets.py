"""Targets: every published convention against a plain formula, and predictions shown as pixels.

Shapes: B samples, N tokens, Q predicted, P values per token, C channels, n = P / C pixels per token.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mmm import Input, Mask
from mmm.core.tokens import take
from mmm.core.types import Features
from mmm.targets import LOSSES, PixelTarget
from mmm.targets.losses import mean_loss

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
MASK = Mask(torch.tensor([[0, 1], [4, 2]]), torch.tensor([[5, 3, 2], [0, 1, 5]]))
GRID = (2, 3)
PIXELS = 32  # n of a 4 x 4 patch, two frames deep
NO_FEATURES = Features(torch.empty(2, 0, 1), 0, torch.empty(2, 0, dtype=torch.int64))


def target(channels: int = 3, **options: object) -> PixelTarget:
    data = Input(size=(8, 12), channels=channels, mean=MEAN[:channels], std=STD[:channels])
    return PixelTarget(PixelTarget.Config(**options), token=(2, 4, 4), data=data, encoder=torch.nn.Identity())


def patches(channels: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 6, PIXELS * channels, dtype=dtype) * 2 + 1


def target_of(part: PixelTarget, raw: Tensor) -> Tensor:
    return part.pick(part.teach(raw, raw, GRID), MASK)


def statistics(values: list[float], less: int) -> tuple[float, float]:
    """Returns the mean, and the variance divided by len - less."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / (len(values) - less)


CONVENTIONS = {  # options; per channel; divide by n - this; epsilon; inside the root; pixels in [0, 1]
    "mae": ({}, False, 1, 1e-6, True, False),
    "videomae": ({"standardise": "channel", "epsilon_inside": False, "pixels": "unit"}, True, 1, 1e-6, False, True),
    "omnimae": ({"standardise": "channel"}, True, 1, 1e-6, True, False),
    "bootmae": ({"standardise": "channel", "unbiased": False, "epsilon": 1e-5}, True, 0, 1e-5, True, False),
    "big_epsilon_outside": ({"epsilon": 0.5, "epsilon_inside": False}, False, 1, 0.5, False, False),
    "big_epsilon_inside": ({"epsilon": 0.5, "pixels": "unit"}, False, 1, 0.5, True, True),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_published_conventions_equal_plain_formulas(name: str) -> None:
    options, by_channel, less, epsilon, inside, unit = CONVENTIONS[name]
    raw = patches()
    expected = target_of(target(**options), raw)
    mean, std = torch.tensor(MEAN).tolist(), torch.tensor(STD).tolist()  # rounded to fp32
    for sample in range(2):
        for slot, token in enumerate(MASK.predict[sample].tolist()):
            values = raw[sample, token].tolist()
            if unit:
                values = [v * std[i % 3] + mean[i % 3] for i, v in enumerate(values)]
            for i, value in enumerate(values):
                centre, variance = statistics(values[i % 3 :: 3] if by_channel else values, less)
                spread = math.sqrt(variance + epsilon) if inside else math.sqrt(variance) + epsilon
                assert expected[sample, slot, i].item() == pytest.approx((value - centre) / spread, rel=1e-6, abs=1e-6)
                if i > 7:
                    break  # all channels are covered; the rest is the same arithmetic


def test_simmim_takes_the_pixels_as_they_are() -> None:
    raw = patches()
    assert torch.equal(target_of(target(standardise="none", loss="l1"), raw), take(raw, MASK.predict))


def test_pixmim_leaves_out_high_frequencies() -> None:
    """PixMIM uses an ideal filter, 1 within the circle and 0 outside, on the whole spectrum of each frame and channel
    separately."""
    frames = np.random.default_rng(0).normal(size=(2, 3, 8, 12))
    distance = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(12)[None])
    expected = np.fft.ifft2(np.fft.fft2(frames) * (distance <= 0.3)).real
    cut = {"p": 4, "q": 4}
    raw, filtered = (rearrange(torch.from_numpy(one), "b c (h p) (w q) -> b (h w) (p q c)", **cut) for one in (frames, expected))
    data = Input(size=(8, 12), mean=MEAN, std=STD)
    config = PixelTarget.Config(low_pass=0.3, standardise="none")
    part = PixelTarget(config, token=(4, 4), data=data, encoder=torch.nn.Identity())
    assert (part.pick(part.teach(raw, raw, GRID), MASK) - take(filtered, MASK.predict)).abs().max() < 1e-12
    assert abs(expected - frames).max() > 0.5
    with pytest.raises(ValueError, match=r"target\.low_pass 0\.6"):
        PixelTarget.Config(low_pass=0.6)


def test_differences_are_to_the_frame_before() -> None:
    """The previous frame may belong to another tube; the differences of the first frame are 0. There are two tubes of two frames on
    a plane of 1 x 3."""
    clip = torch.randn(2, 3, 4, 4, 12, dtype=torch.float64)
    cut = {"p": 2, "q": 4, "r": 4}
    pattern = "b c (t p) (h q) (w r) -> b (t h w) (p q r c)"
    plain = torch.stack([clip[:, :, t] - clip[:, :, max(t - 1, 0)] for t in range(4)], dim=2)
    data = Input(size=(4, 4, 12), mean=MEAN, std=STD)
    config = PixelTarget.Config(differences=True, standardise="none", loss="l1")
    part = PixelTarget(config, token=(2, 4, 4), data=data, encoder=torch.nn.Identity())
    raw = rearrange(clip, pattern, **cut)
    found = part.pick(part.teach(clip, raw, (2, 1, 3)), MASK)
    assert torch.equal(found, take(rearrange(plain, pattern, **cut), MASK.predict))
    assert part.show(found, raw, MASK) is None
    with pytest.raises(ValueError, match=r"target\.differences"):
        PixelTarget(config, token=(4, 4), data=Input(size=(8, 12)), encoder=torch.nn.Identity())


def test_maes_target_has_mean_0_and_unbiased_variance_1() -> None:
    expected = target_of(target(), patches())
    assert expected.mean(-1).abs().max() < 1e-12
    assert (expected.var(-1) - 1).abs().max() < 1e-5


def test_a_flat_patch_is_zero_not_a_division_by_zero() -> None:
    for inside in (True, False):
        flat = torch.ones(2, 6, PIXELS * 3)
        assert not target_of(target(epsilon_inside=inside), flat).any()


# --- predictions as pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", ["normalised", "unit"])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("standardise", ["patch", "channel", "none"])
def test_show_inverts_the_target_to_the_original_pixels(standardise: str, inside: bool, pixels: str, channels: int) -> None:
    part = target(channels, standardise=standardise, epsilon_inside=inside, pixels=pixels).double()
    raw = patches(channels)
    shown = part.show(target_of(part, raw), raw, MASK)
    assert (shown - take(raw, MASK.predict)).abs().max() <= 1e-12
    assert part.uses_original == (standardise != "none")


def test_show_says_what_it_took_of_the_original() -> None:
    """If the original's mean is put back, a prediction of 0 shows each token's own mean; otherwise it shows the pixel value that 0
    means."""
    raw, nothing = patches(), torch.zeros(2, 3, PIXELS * 3)
    tokens = take(raw, MASK.predict)
    assert torch.allclose(target().show(nothing, raw, MASK), tokens.mean(-1, keepdim=True).expand_as(tokens))
    plain = target(standardise="none", pixels="unit").show(nothing, raw, MASK).unflatten(2, (-1, 3))
    assert torch.allclose(plain, torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], dtype=torch.float64))


# --- precision --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"standardise": "channel", "pixels": "unit"}, {"standardise": "none"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_and_losses_are_fp32_whatever_comes_in(dtype: torch.dtype, options: dict[str, object]) -> None:
    part = target(**options)
    raw = patches(dtype=dtype)
    expected = target_of(part, raw)
    assert expected.dtype == torch.float32
    assert torch.equal(expected, target_of(part, raw.float()))
    assert part.loss(torch.zeros_like(expected, dtype=dtype), expected, MASK, NO_FEATURES).dtype == torch.float32


def test_the_buffers_are_not_saved() -> None:
    assert not target().state_dict()
    assert not target().update(torch.nn.Identity(), 3, 10, torch.tensor(True))


# --- losses -----------------------------------------------------------------------------------------------------------------

PLAIN = {
    "mse": lambda p, w: sum((a - b) ** 2 for a, b in zip(p, w, strict=True)) / len(p),
    "scaled_mse": lambda p, w: sum((a - b) ** 2 for a, b in zip(p, w, strict=True)) / math.sqrt(len(p)),
    "l1": lambda p, w: sum(abs(a - b) for a, b in zip(p, w, strict=True)) / len(p),
    "smooth_l1": lambda p, w: (
        sum(0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5 for a, b in zip(p, w, strict=True)) / len(p)
    ),
    "cosine": lambda p, w: 1 - sum(a * b for a, b in zip(p, w, strict=True)) / math.hypot(*p) / math.hypot(*w),
    "cross_entropy": lambda p, w: math.log(sum(math.exp(a) for a in p)) - p[w],
    "soft_cross_entropy": lambda p, w: sum(b * (math.log(sum(math.exp(a) for a in p)) - a) for a, b in zip(p, w, strict=True)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_half_precision_are_summed_in_fp32(name: str) -> None:
    prediction = torch.randn(2, 300, 5).bfloat16()
    expected = torch.randint(5, (2, 300)) if name == "cross_entropy" else torch.randn(2, 300, 5)
    loss = mean_loss(name, prediction, expected, None)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mean_loss(name, prediction.float(), expected, None))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_equal_plain_formulas(name: str, weighted: bool) -> None:
    prediction = torch.randn(2, 3, 5, dtype=torch.float64) * 2
    expected = torch.randint(5, (2, 3)) if name == "cross_entropy" else torch.randn(2, 3, 5, dtype=torch.float64)
    weight = torch.tensor([[1, 0, 2], [0.5, 1, 0]]) if weighted else torch.ones(2, 3)
    each = [PLAIN[name](prediction[b, q].tolist(), expected[b, q].tolist()) for b in range(2) for q in range(3)]
    plain = sum(w * e for w, e in zip(weight.flatten().tolist(), each, strict=True)) / 6
    assert mean_loss(name, prediction, expected, weight if weighted else None).item() == pytest.approx(plain, rel=1e-12)


def test_maes_loss_is_the_mean_over_hidden_tokens_of_the_batch() -> None:
    prediction, raw = torch.randn(2, 3, PIXELS * 3, dtype=torch.float64), patches()
    part = target()
    expected = target_of(part, raw)
    assert part.loss(prediction, expected, MASK, NO_FEATURES).item() == pytest.approx(
        F.mse_loss(prediction, expected).item(), rel=1e-12
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "soft_cross_entropy", "mean_squared"])
def test_a_loss_that_pixels_do_not_have_is_refused(loss: str) -> None:
    with pytest.raises(ValueError, match=r"target\.loss"):
        PixelTarget.Config(loss=loss)


@pytest.mark.parametrize("values", [{"mean": (0.5,)}, {"std": (0.5, 0.5)}], ids=str)
def test_a_value_a_channel_is_asked_for(values: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="3 channels"):
        Input(size=(8, 8), **values)
