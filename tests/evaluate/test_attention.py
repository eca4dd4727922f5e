"""Tests of the attention and fusion weights of decoders: known shares, and pictures and numbers from a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.decoders import CrossAttentionDecoder, LinearDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.attention.decoder_attention import DecoderAttention, Layer, _shares, attention_weights, watching
from mmm.evaluate.attention.fusion_weights import MapSizes, fusion_of, fusion_weights
from mmm.evaluate.run_results import Record
from mmm.layers.transformer import CrossAttention
from mmm.maskers import RandomMasker
from tasks import attention

SELF = SelfAttentionDecoder.Config(width=16, depth=2, heads=2)
CROSS = CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")
Build = Callable[..., MaskedModel]


def look(model: MaskedModel, samples: int = 3) -> dict[str, object]:
    """Returns the decoder's attention on noise of 24 x 16 pixels: 24 tokens, 6 visible, 18 hidden."""
    x = torch.randn(samples, 3, 24, 16)
    mask = model.masker(sample_keys(0, 0, torch.arange(samples)), (6, 4))
    looks = DecoderAttention()
    for rows in (slice(0, 2), slice(2, None)):  # two batches, of unequal size
        part = type(mask)(*(None if t is None else t[rows] for t in (mask.visible, mask.predict, mask.blank)))
        features = model.encoder(model.tokenizer.split(x[rows]), (6, 4), part)
        looks.add(model.decoder, features, part, (6, 4))
    return looks.result()


def blind(model: MaskedModel) -> MaskedModel:
    """Makes all attention scores equal, so that attention is even."""
    with torch.no_grad():
        for part in model.decoder.modules():
            if isinstance(part, CrossAttention):
                part.q.weight.zero_(), part.q.bias.zero_()
            elif hasattr(part, "qkv"):
                part.qkv.weight[:16] = 0
                part.qkv.bias[:16] = 0
    return model


@pytest.mark.parametrize(
    ("decoder", "predict", "shares"),
    [  # class token, visible, itself, other hidden
        (SELF, None, {"all": (1 / 25, 6 / 25, 1 / 25, 17 / 25)}),
        (SELF, 0.25, {"all": (1 / 13, 6 / 13, 1 / 13, 5 / 13)}),
        (CROSS, 0.25, {"encoded": (1 / 7, 6 / 7, 0, 0)}),
        (replace(CROSS, self_attention=True), 0.5, {"predicted": (0, 0, 1 / 12, 11 / 12), "encoded": (1 / 7, 6 / 7, 0, 0)}),
    ],
    ids=["mae", "mae_quarter", "crossmae", "crossmae_with_self_attention"],
)
def test_even_attention_has_the_shares_of_the_counts(decoder, predict, shares, build: Build) -> None:
    model = blind(build(size=(24, 16), masker=RandomMasker.Config(ratio=0.75, predict=predict), decoder=decoder))
    found = look(model)
    assert list(found["mean"]) == list(shares)
    for reads, expected in shares.items():
        mean = found["mean"][reads]
        for name, value in zip(("prefix", "visible", "itself", "other_hidden"), expected, strict=True):
            assert mean["share"][name] == pytest.approx(value, abs=1e-6)
            assert mean["evenly"][name] == pytest.approx(value, abs=1e-12)
        for name, times in mean["to_one_token"].items():
            assert times is None or times == pytest.approx(1, abs=1e-5), name
    assert len(found["layers"]) == 2 * len(shares)


def test_the_measure_of_crossmae_on_attention_made_by_hand() -> None:
    """The measure sums the mean attention to one key over eight blocks of 16 heads, with 49 visible tokens, a class token and 147
    masked tokens. If the first 50 tokens get 55.4 % of the attention, the result is the published totals."""
    found, rows = DecoderAttention(), 2
    for block in range(8):
        weights = torch.cat([torch.full((rows, 16, 147, 50), 0.554 / 50), torch.full((rows, 16, 147, 147), 0.446 / 147)], dim=3)
        counts = (1, 49, 1, 146)
        evenly = torch.tensor(counts, dtype=torch.float64) / 197
        found.layers[f"blocks.{block}.attn"] = Layer("all", _shares(weights, counts) * rows, evenly, 197, 16)
    found.samples = rows
    measured = found.result()["mean"]["all"]["crossmae"]
    assert measured["visible"] == pytest.approx(8 * 16 * 0.554 / 50)  # 1.418
    assert measured["masked"] == pytest.approx(8 * 16 * 0.446 / 147)  # 0.388
    assert 50 * measured["visible"] + 147 * measured["masked"] == pytest.approx(8 * 16)
    assert (round(measured["visible"], 2), round(measured["masked"], 2)) == (1.42, 0.39)


def test_blanks_that_the_encoder_sees_are_hidden_tokens(build: Build) -> None:
    model = blind(build(size=(24, 16), masker=RandomMasker.Config(ratio=0.75, blank=True), decoder=CROSS))
    share = look(model)["mean"]["encoded"]["share"]
    assert (share["visible"], share["hidden"]) == (pytest.approx(6 / 25, abs=1e-6), pytest.approx(18 / 25, abs=1e-6))


@pytest.mark.parametrize("decoder", [SELF, CROSS, replace(CROSS, self_attention=True)], ids=["self", "cross", "both"])
def test_the_weights_are_those_that_the_decoder_uses(decoder, build: Build) -> None:
    """The weights times the layer's values give the layer's output."""
    model = build(size=(24, 16), decoder=decoder).double()
    x, mask = torch.randn(2, 3, 24, 16, dtype=torch.float64), model.masker(sample_keys(0, 0, torch.arange(2)), (6, 4))
    seen: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    with watching(model.decoder, lambda name, layer, inputs: seen.append((layer, inputs))):
        watched = model(x, mask=mask).prediction
    assert torch.equal(watched, model(x, mask=mask).prediction)
    assert len(seen) == (4 if getattr(decoder, "self_attention", False) else 2)
    for layer, inputs in seen:
        weights = attention_weights(layer, inputs, slice(-5, None)).double()
        assert torch.allclose(weights.sum(-1), torch.ones(()).double(), atol=1e-6)
        values = layer.kv(inputs[1])[..., 16:] if isinstance(layer, CrossAttention) else layer.qkv(inputs[0])[..., 32:]
        values = values.unflatten(2, (2, 8)).transpose(1, 2)  # (B, h, K, c)
        out = layer.proj((weights @ values).transpose(1, 2).flatten(2))
        assert (out - layer(*inputs)[:, -5:]).abs().max() <= 1e-6  # weights are fp32


@pytest.mark.parametrize("kind", ["blocks", "shared"])
def test_the_weights_have_the_bias_of_relative_positions(kind, build: Build) -> None:
    """The weights times the layer's values give the layer's output, also for a grid other than that of the tables."""
    model = build(encoder=VisionTransformer.Config(width=24, depth=2, heads=2, relative_bias=kind)).double()
    for name, table in model.encoder.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(table)
    seen: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    with torch.no_grad(), watching(model.encoder, lambda name, layer, inputs: seen.append((layer, inputs))):
        model.encode(torch.randn(2, 3, 24, 16, dtype=torch.float64))
    assert len(seen) == 2
    for layer, inputs in seen:
        weights = attention_weights(layer, inputs)
        assert weights.shape == (2, 2, 25, 25)
        assert torch.allclose(attention_weights(layer, inputs, slice(3, 5)), weights[:, :, 3:5], atol=1e-6)
        values = layer.qkv(inputs[0])[..., 48:].unflatten(2, (2, 12)).transpose(1, 2)  # (B, h, K, c)
        out = layer.proj((weights.double() @ values).transpose(1, 2).flatten(2))
        assert (out - layer(*inputs)).abs().max() <= 1e-6  # weights are fp32


def test_sharp_attention_goes_where_it_is_drawn(build: Build) -> None:
    """If only the keys of visible tokens match the queries, the visible tokens get all attention."""
    model = build(size=(24, 16), decoder=replace(SELF, depth=1))
    layer = model.decoder.blocks[0].attn
    with torch.no_grad():
        model.decoder.blocks[0].norm1.weight.zero_()
        model.decoder.blocks[0].norm1.bias.fill_(1.0)
        layer.qkv.weight.zero_()
        layer.qkv.bias.zero_()
    assert look(model)["mean"]["all"]["to_one_token"]["visible"] == pytest.approx(1, abs=1e-5)
    forward = layer.qkv.forward

    def pointed(x: Tensor) -> Tensor:
        qkv = forward(x).clone()
        qkv[..., :16] = 10.0
        qkv[:, 1:7, 16:32] = 10.0  # the visible ones come after the class token
        return qkv

    layer.qkv.forward = pointed
    share = look(model)["mean"]["all"]["share"]
    assert share["visible"] == pytest.approx(1, abs=1e-6)
    assert share["hidden"] == pytest.approx(0, abs=1e-6)


def test_a_decoder_without_attention_is_refused(build: Build) -> None:
    model = build(size=(24, 16), masker=RandomMasker.Config(blank=True), decoder=LinearDecoder.Config())
    with pytest.raises(ValueError, match="LinearDecoder has no attention"):
        look(model)


def test_fusion_weights_count_the_maps_size(build: Build) -> None:
    model = build(size=(24, 16), decoder=replace(CROSS, fusion_blocks=(2,)))
    fusion, sizes = fusion_of(model.decoder), MapSizes()
    x, mask = torch.randn(2, 3, 24, 16), model.masker(sample_keys(0, 0, torch.arange(2)), (6, 4))
    features = model.encoder(model.tokenizer.split(x), (6, 4), mask)
    sizes.add(features)
    sizes.add(features)
    found = fusion_weights(fusion, sizes)
    assert found["maps"] == [0, 2]
    assert found["weights"] == fusion.mix.weight.double().tolist()
    rms = [features.blocks[block].square().mean().sqrt().item() for block in (0, 2)]
    assert found["sizes"] == pytest.approx(rms, rel=1e-5)
    part = fusion.mix.weight.abs() * torch.tensor(rms)
    assert torch.allclose(torch.tensor(found["shares"]), F.normalize(part, p=1, dim=1), atol=1e-5)
    assert fusion_of(build(decoder=SELF).decoder) is None


def test_a_runs_folder_gets_pictures_and_numbers(run_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2")
    run_recipe("image_crossmae", *small, "--folder", str(tmp_path / "run"))
    found = attention.run(attention.Config(model=str(tmp_path / "run"), samples=10, batch_size=4))
    pictures = tmp_path / "run" / "pictures"
    assert {"attention_00000002.png", "attention_00000002.json", "fusion_00000002.png"} <= {p.name for p in pictures.iterdir()}
    assert json.loads((pictures / "attention_00000002.json").read_text()) == json.loads(json.dumps(found))
    assert found["samples"] == 10
    assert found["attention"]["mean"]["encoded"]["share"]["hidden"] == 0
    assert torch.tensor(found["fusion"]["weights"]).shape == (2, 3)
    assert [line["kind"] for line in map(json.loads, (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines())] == [
        "attention"
    ]
    assert "visible tokens" in capsys.readouterr().out


def test_mae_has_no_fusion_to_draw(run_recipe, tmp_path: Path) -> None:
    small = ("--encoder.width", "24", "--encoder.depth", "2", "--encoder.heads", "2")
    run_recipe("image_mae", *small, "--folder", str(tmp_path / "run"))
    flags = attention.Config(model=str(tmp_path / "run"), samples=4, out=str(tmp_path / "views"), source="builtin:photographs")
    found = attention.run(flags)
    assert found["fusion"] is None
    assert {p.name for p in (tmp_path / "views").iterdir()} == {"attention_00000002.png", "attention_00000002.json"}
    assert Record.read(tmp_path / "run").evaluations == {}  # the source is not that of the run
