"""Measures of the inside of a model are compared with independent formulas and with cases whose result is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageChops
from test_extract import CPU, ask, run, video_run, videos  # noqa: F401 (fixtures)

from mmm import Input, Mask, MaskedModel
from mmm.encoders import Hiera, VisionTransformer
from mmm.evaluate.attention.decoder_attention import SETS
from mmm.evaluate.inside.claims import claims
from mmm.evaluate.inside.distance import (
    attention_distance,
    even_distance,
    ring_shares,
    rollout,
    token_places,
    tokens_read,
)
from mmm.evaluate.inside.errors import DISTANCES, MOTIONS, ErrorByBin, ErrorByFrequency, nearest_visible, token_motion
from mmm.evaluate.inside.inspection import Inspection
from mmm.evaluate.inside.kernel import asymmetry, effective_rank, participation_ratio, spectrum
from mmm.evaluate.inside.maps import feature_colours
from mmm.evaluate.inside.report import draw_inspection, write_page
from mmm.evaluate.inside.similarity import MinibatchCKA
from mmm.evaluate.inside.stability import layer_changes, noise_gain
from mmm.evaluate.reconstruction.gallery import why_not
from mmm.maskers import RandomMasker
from mmm.targets import LatentTarget, PairTarget, PixelTarget, TargetConfig
from mmm.tokenizers import Patches, Tubes


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- similarity -------------------------------------------------------------------------------------------------------------


def hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the unbiased HSIC of two Gram matrices, as in Song et al. (JMLR 2012, equation 5)."""
    n = len(first)
    first, second = (gram - torch.diag(gram.diagonal()) for gram in (first, second))
    one = torch.ones(n, 1, dtype=torch.float64)
    middle = (one.T @ first @ one) * (one.T @ second @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one.T @ first @ second @ one)
    return ((first @ second).trace() + middle - last).squeeze() / (n * (n - 3))


def test_cka_is_the_ratio_of_mean_unbiased_hsic() -> None:
    batches = [([draw(n, 5, seed=n), draw(n, 9, seed=n + 1)], [draw(n, 7, seed=n + 2)]) for n in (8, 12, 30)]
    cka = MinibatchCKA()
    for first, second in batches:
        cka.add(first, second)
    for layer in range(2):
        grams = [(first[layer] @ first[layer].T, second[0] @ second[0].T) for first, second in batches]
        cross = sum(hsic(a, b) for a, b in grams)
        norm = sum(hsic(a, a) for a, _ in grams) * sum(hsic(b, b) for _, b in grams)
        assert cka.result()[layer, 0].item() == pytest.approx((cross / norm.sqrt()).item(), rel=1e-10)


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the plain linear CKA of two tables of features, (n, p) and (n, q)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def test_cka_of_known_cases() -> None:
    x = draw(256, 48)
    turned = 3 * x @ torch.linalg.qr(draw(48, 48, seed=1))[0]
    noise = draw(256, 48, seed=2)
    cka = MinibatchCKA()
    cka.add([x], [x, turned, noise])
    same, rotated, unrelated = cka.result()[0].tolist()
    assert same == pytest.approx(1, abs=1e-12)
    assert rotated == pytest.approx(1, abs=1e-12)
    assert abs(unrelated) < 0.05
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-12)


def test_the_plain_form_is_biased_and_the_other_is_not() -> None:
    """Plain CKA is large for few samples of wide features with nothing in common, which is the reason for the unbiased form."""
    x, y = draw(64, 768), draw(64, 768, seed=1)
    cka = MinibatchCKA()
    cka.add([x], [y])
    assert linear_cka(x, y) > 0.85
    assert abs(cka.result()[0, 0].item()) < 0.1


def test_cka_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        MinibatchCKA().add([draw(3, 2)])
    with pytest.raises(ValueError, match="same batch"):
        MinibatchCKA().add([draw(5, 2)], [draw(6, 2)])
    with pytest.raises(ValueError, match="no batch"):
        MinibatchCKA().result()


# --- the kernel -------------------------------------------------------------------------------------------------------------


def test_asymmetry_equals_its_definition() -> None:
    query, key = draw(4, 16), draw(4, 16, seed=1)
    form = query.T @ key
    assert asymmetry(query, key) == pytest.approx(((form - form.T).norm() / (2 * form.norm())).item(), rel=1e-12)
    assert asymmetry(query, query) == pytest.approx(0, abs=1e-7)
    skew = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert asymmetry(torch.eye(2, dtype=torch.float64), skew) == pytest.approx(1)
    assert asymmetry(draw(64, 512), draw(64, 512, seed=1)) == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_spectrum_and_effective_rank_of_known_matrices() -> None:
    assert spectrum(torch.eye(7)).tolist() == pytest.approx([1 / 7] * 7)
    assert spectrum(torch.diag(torch.tensor([1.0, 3.0, 0.0]))).tolist() == pytest.approx([0.75, 0.25, 0])
    x = draw(5, 5)
    values = torch.linalg.eigvalsh(x @ x.T).flip(0).sqrt()
    torch.testing.assert_close(spectrum(x), values / values.sum())
    assert effective_rank(spectrum(torch.eye(7))).item() == pytest.approx(7)
    assert effective_rank(spectrum(torch.full((7, 7), 1 / 7))).item() == pytest.approx(1, abs=1e-5)
    assert effective_rank(spectrum(torch.diag(torch.tensor([1.0, 1.0, 0.0])))).item() == pytest.approx(2)


@pytest.mark.parametrize("rows", [12, 400])
def test_participation_ratio_counts_directions(rows: int) -> None:
    x = draw(rows, 30)
    values = torch.linalg.eigvalsh(torch.cov(x.T))
    assert participation_ratio(x) == pytest.approx((values.sum() ** 2 / values.square().sum()).item(), rel=1e-9)


# --- attention --------------------------------------------------------------------------------------------------------------


def test_attention_distance_of_known_attention() -> None:
    places = token_places((14, 14), (16, 16))[None]
    even = torch.full((1, 2, 196, 196), 1 / 196)
    assert attention_distance(even, places, places).tolist() == pytest.approx([even_distance(places, places)] * 2, rel=1e-4)
    assert even_distance(places, places) == pytest.approx(116.5, abs=0.05)  # in pixels, for an image of 224 pixels
    assert attention_distance(torch.eye(196)[None, None], places, places).item() == pytest.approx(0, abs=0.1)  # cdist's rounding
    shifted = torch.eye(196).roll(1, 1)[None, None]  # each token attends to its right neighbour, the last of a row to the next row
    right = (16 * 182 + 14 * math.hypot(13 * 16, 16)) / 196
    last = math.hypot(13 * 16, 13 * 16)  # the last token attends to the first
    assert attention_distance(shifted, places, places).item() == pytest.approx(
        right + (last - math.hypot(13 * 16, 16)) / 196, rel=1e-3
    )


def test_rings_share_out_all_attention() -> None:
    places = token_places((6, 6), (1, 1))[None]
    weights = torch.rand(2, 3, 36, 36).softmax(-1)
    found, even = ring_shares(weights, places, places)
    assert found.sum(1).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert even.sum().item() == pytest.approx(1, abs=1e-5)
    own, _ = ring_shares(torch.eye(36)[None, None], places, places)
    assert own[0].tolist() == pytest.approx([1, 0, 0, 0, 0])
    counted = sum(abs(a // 6 - b // 6) + abs(a % 6 - b % 6) <= 1 for a in range(36) for b in range(36)) / 36**2
    assert even[0].item() == pytest.approx(counted, rel=1e-5)


def test_tokens_read() -> None:
    assert tokens_read(torch.full((1, 1, 4, 10), 0.1)).item() == pytest.approx(10, rel=1e-5)
    assert tokens_read(torch.eye(5)[None, None]).item() == pytest.approx(1)


def test_rollout_of_identity_is_identity() -> None:
    assert torch.equal(rollout([torch.eye(4)[None, None]] * 3)[0], torch.eye(4))
    mixed = rollout([torch.rand(1, 2, 4, 4).softmax(-1) for _ in range(3)])
    assert torch.allclose(mixed.sum(-1), torch.ones(1, 4))


# --- stability --------------------------------------------------------------------------------------------------------------


def test_changes_between_layers() -> None:
    x = draw(2, 5, 8).float()
    change, cosine = layer_changes([x, 2 * x, -2 * x])
    assert change.tolist() == pytest.approx([1, 2], rel=1e-5)
    assert cosine.tolist() == pytest.approx([1, -1], rel=1e-5)


def test_gain_of_a_linear_map() -> None:
    x = draw(3, 5, 8)
    assert noise_gain(lambda x: 2.5 * x + 1, x) == pytest.approx(2.5, rel=1e-9)


# --- errors -----------------------------------------------------------------------------------------------------------------


def test_error_by_distance_sorts_tokens_by_their_nearest_visible_one() -> None:
    """If the middle one of 3 x 3 tokens is visible, four tokens are at distance 1, and four at the square root of 2."""
    mask = Mask(torch.tensor([[4]]), torch.tensor([[0, 1, 2, 3, 5, 6, 7, 8]]))
    distance = nearest_visible(mask, token_places((3, 3), (1, 1)))
    found = ErrorByBin(DISTANCES)
    found.add(torch.tensor([[2.0, 1, 2, 1, 1, 2, 1, 2]]), distance)
    rows = found.result()
    assert [(row["tokens"], row["error"]) for row in rows] == [(4, 1.0), (4, 2.0), (0, None), (0, None), (0, None)]


def test_error_by_frequency() -> None:
    """A prediction without high frequencies has all its error there; half the original has a share of a quarter everywhere."""
    x = torch.linspace(0, 1, 64)
    low = torch.sin(2 * math.pi * 4 * x).expand(64, 64)[None, None]
    high = 0.5 * torch.sin(2 * math.pi * 24 * x).expand(64, 64)[None, None]
    found = ErrorByFrequency(bins=8)
    found.add(low, low + high)
    shares = [row["share"] for row in found.result()]
    assert max(shares[:3]) < 0.02
    assert shares[5] > 0.9 or shares[6] > 0.9
    half = ErrorByFrequency(bins=4)
    noise = draw(3, 2, 32, 32).float()
    noise -= noise.mean((-2, -1), keepdim=True)
    half.add(noise / 2, noise)
    assert [row["share"] for row in half.result()] == pytest.approx([0.25] * 4, rel=1e-3)


def test_error_by_motion_sorts_tokens_by_their_change() -> None:
    """The clip has two tubes of two frames and 2 x 2 pixels: one does not change, the other changes by 0.05 per frame."""
    clip = torch.zeros(1, 1, 2, 2, 4)
    clip[0, 0, 1, :, 2:] = 0.05
    tokenizer = Tubes(Tubes.Config(size=2, frames=2), channels=1)
    motion = token_motion(clip, tokenizer.split)
    torch.testing.assert_close(motion, torch.tensor([[0.0, 0.05]]))
    found = ErrorByBin(MOTIONS)
    found.add(torch.tensor([[1.0, 3.0]]), motion)
    found.add(torch.tensor([[2.0, 5.0]]), motion)
    assert [(row["tokens"], row["error"]) for row in found.result()] == [(2, 1.5), (0, None), (0, None), (2, 4.0), (0, None)]


# --- the task ---------------------------------------------------------------------------------------------------------------


def test_inspect_writes_numbers_pictures_and_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """A model is inspected beside the same model with random weights."""
    found = ask(
        [
            "inspect",
            str(run),
            str(run / "config.yaml"),
            "--samples",
            "12",
            "--out",
            str(tmp_path),
            "--device",
            "cpu",
            "--shown",
            "2",
            "--token",
            "0",
            "3",
        ]
    )
    trained, random = found["models"].values()
    assert trained["samples"] == 12
    assert len(trained["cka"]) == 3  # the input of the first of two blocks, and the outputs of both
    assert [row[place] for place, row in enumerate(trained["cka"])] == pytest.approx([1] * 3)
    assert len(found["between"]) == 3
    assert len(trained["attention"]["distance"]) == 2
    assert [sum(shares) for shares in trained["attention"]["spectrum"]] == pytest.approx([1, 1])
    assert all(0 < value < 16 * math.sqrt(2) for head in trained["attention"]["distance"] for value in head)
    assert sum(row["share"] for row in trained["decoder"]["rings"]) == pytest.approx(1, abs=1e-4)
    for layer in trained["decoder"]["layers"]:
        assert sum(layer["share"][name] for name in SETS) == pytest.approx(1, abs=1e-6)
        assert [sum(head) for head in layer["heads"]] == pytest.approx([1] * len(layer["heads"]), abs=1e-6)
        means = [sum(head[place] for head in layer["heads"]) / len(layer["heads"]) for place in range(4)]
        assert means == pytest.approx([layer["share"][name] for name in SETS], abs=1e-9)
        assert [sum(rings) for rings in layer["rings"]] == pytest.approx([1] * len(layer["heads"]), abs=1e-5)
    assert sum(row["tokens"] for row in trained["errors"]["by_distance"]) == 12 * 12  # three quarters of 16 tokens are hidden
    assert set(random["errors"]["psnr_by_ratio"]) == {"0.5", "0.75", "0.9"}
    page = (tmp_path / "inspection.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 7
    assert json.loads((tmp_path / "inspection.json").read_text())["models"].keys() == found["models"].keys()
    assert "the token at (0, 3)" in page
    assert trained["left_out"] == {}
    assert "non-symmetric kernel" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ask(["inspect", str(run), "--token", "4", "0", *CPU])
    assert "--token 4 0 is not on the grid of (4, 4) tokens" in capsys.readouterr().err


def test_each_model_gets_pixels_in_its_own_normalisation(run: Path, tmp_path: Path) -> None:  # noqa: F811
    """A model with another mean and deviation has the same numbers and pictures beside another model as alone."""
    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    tree["data"] |= {"mean": [0.2], "std": [0.9]}
    other = tmp_path / "other" / "config.yaml"
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(tree), encoding="utf-8")
    flags = ("--samples", "8", "--shown", "2", *CPU)
    alone, both = (
        ask(["inspect", *models, *flags, "--out", str(tmp_path / f"{len(models)}")])["models"]
        for models in ([str(other)], [str(run / "config.yaml"), str(other)])
    )
    (name,) = alone
    assert json.dumps(both[name]) == json.dumps(alone[name])
    pictures = (Image.open(tmp_path / file).convert("RGB") for file in ("1/maps.png", "2/maps_2.png"))
    assert ImageChops.difference(*pictures).getbbox() is None


def test_an_encoder_alone_has_the_measures_of_an_encoder(build: Callable[..., MaskedModel]) -> None:
    whole = build().eval()
    model = MaskedModel(whole.tokenizer, whole.masker, whole.encoder, None, whole.target)
    inspection = Inspection(model, Input(size=(12, 16)))
    with torch.no_grad():
        inspection.add(torch.randn(5, 3, 12, 16), torch.arange(5))
    found = inspection.result()
    assert "decoder" not in found
    assert "errors" not in found
    assert found["left_out"] == {"attention and errors of predictions": "the model has no decoder"}
    assert len(found["asymmetry"]) == len(found["attention"]["distance"]) == 2


@pytest.mark.parametrize("kind", ["blocks", "shared"])
def test_the_gain_is_that_of_blocks_with_their_relative_positions(build: Callable[..., MaskedModel], kind: str) -> None:
    """The function that is measured maps the output of each block to that of the next one."""
    model = build(encoder=VisionTransformer.Config(width=24, depth=2, heads=2, relative_bias=kind)).eval()
    encoder, inspection, x = model.encoder, Inspection(model, Input(size=(12, 16))), torch.randn(5, 3, 12, 16)
    for name, table in encoder.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(table)
    relative = encoder.relative((3, 4), torch.arange(12)[None])
    with torch.no_grad():
        layers, expected = inspection.layers(x), []
        for block, before, after in zip(encoder.blocks, layers, layers[1:], strict=False):
            whole = partial(block, relative=relative)
            assert torch.allclose(whole(before), after, atol=1e-6)
            expected.append(noise_gain(whole, before))
        inspection.add(x, torch.arange(5))
    found = inspection.result()
    assert found["stability"]["noise_gain"] == pytest.approx(expected, rel=1e-6)
    assert found["left_out"] == {}


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((12, 16), LatentTarget.Config()),
        ((12, 16), PairTarget.Config(first=LatentTarget.Config(), second=PixelTarget.Config())),
        ((4, 8, 12), PixelTarget.Config(differences=True, standardise="none")),
    ],
    ids=["latent", "pair", "differences"],
)
def test_a_target_without_pixels_leaves_out_only_the_errors(
    build: Callable[..., MaskedModel], size: tuple[int, ...], target: TargetConfig
) -> None:
    model = build(size, target=target).eval()
    inspection = Inspection(model, Input(size=size))
    with torch.no_grad():
        inspection.add(torch.randn(5, 3, *size), torch.arange(5))
    found = inspection.result()
    assert found["left_out"] == {"errors of predictions": f"{type(model.target).__name__} cannot be shown as pixels"}
    assert "errors" not in found
    assert found["decoder"]["rings"]
    assert len(found["attention"]["distance"]) == 2
    assert str(why_not(model)).startswith(f"target.name {target.name} does not predict pixels")


def test_a_hierarchical_encoder_is_inspected_as_far_as_it_goes(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """Layers of every stage are compared, predictions are measured, and what is not measured is named on the page."""
    encoder = Hiera.Config(width=8, heads=1, stages=(1, 1, 2, 1))
    masker = RandomMasker.Config(ratio=0.5, unit=2)
    model = build((64, 64), tokenizer=Patches.Config(size=16), encoder=encoder, masker=masker).eval()
    inspection = Inspection(model, Input(size=(64, 64)))
    with torch.no_grad():
        x = torch.randn(5, 3, 64, 64)
        inspection.add(x, torch.arange(5))
        layers = inspection.layers(x)
    assert [tuple(layer.shape[1:]) for layer in layers] == [(256, 8), (256, 8), (64, 16), (16, 32), (16, 32), (16, 64)]
    found = inspection.result() | {"tokens": 16, "data": "noise"}
    assert len(found["cka"]) == len(found["directions"]) == 6
    assert [row[place] for place, row in enumerate(found["cka"])] == pytest.approx([1] * 6)
    assert found["errors"]["by_distance"]
    assert found["decoder"]["rings"]
    assert set(found["left_out"]) == {
        *("attention of the encoder", "changes by each block", "gain of noise"),
        "predictions with 90% hidden",
    }
    assert [row["claim"] for row in claims(found)] == [
        "Neighbouring layers have similar features",
        "Hidden patches are interpolated globally",
    ]
    pictures = draw_inspection({"hiera": found}, None, tmp_path)
    page = write_page("Hiera", {"hiera": found}, pictures, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not measured: gain of noise; the stages of Hiera have tokens of different sizes." in page


def test_inspect_of_clips(video_run: Path, videos: Path, tmp_path: Path) -> None:  # noqa: F811
    found = ask(["inspect", str(video_run), "--source", str(videos), "--out", str(tmp_path / "clips"), *CPU])
    (one,) = found["models"].values()
    assert one["errors"]["psnr_by_ratio"]
    assert sum(row["tokens"] for row in one["errors"]["by_motion"]) == sum(row["tokens"] for row in one["errors"]["by_distance"])
    assert (tmp_path / "clips" / "motion.png").is_file()
    assert (tmp_path / "clips" / "maps.png").is_file()
    with pytest.raises(SystemExit):
        ask(["inspect", "a", "b", "c"])


def test_pca_colours_follow_the_features() -> None:
    """Two kinds of tokens get two colours, at any place."""
    kinds = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    tokens = kinds[..., None] * draw(1, 1, 16).float() + 0.01 * draw(3, 20, 16, seed=1).float()
    first = feature_colours(tokens, centre_places=False)[..., 0]
    assert (first[kinds].mean() - first[~kinds].mean()).abs() > 0.8
