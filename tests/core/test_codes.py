"""Codes as the target: BEiT against transformers, k-means against a plain loop, and the published tokenizers from files.

Shapes: B samples, N tokens, K codes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm import MaskedModel
from mmm.core.rng import sample_keys, scores
from mmm.core.tokens import take
from mmm.decoders import LinearDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import CodeTarget
from mmm.targets.kmeans import spherical_kmeans

Build = Callable[..., MaskedModel]
GRID = (3, 4)


def reader(x: Tensor) -> Callable[[int], Iterator[Tensor]]:
    return lambda count: iter(x[:count].split(8))


def unread(path: str) -> Any:
    raise AssertionError(path)


# --- BEiT ---------------------------------------------------------------------------------------------------------------------


def test_beit_equals_transformers(build: Build) -> None:
    """Compares loss and gradients with BeitForMaskedImageModeling: mask tokens, no bias of keys, layer scale, a linear layer on
    hidden tokens and cross-entropy, with added positions and without relative ones."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    model = build(
        (16, 16),
        masker=RandomMasker.Config(ratio=0.4, blank=True),
        encoder=VisionTransformer.Config(
            width=24, depth=2, heads=2, positions="learned", qkv_bias="qv", layer_scale=0.1, norm_epsilon=1e-12
        ),
        decoder=LinearDecoder.Config(),
        target=CodeTarget.Config(codes=50),
    ).double()
    config = BeitConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=16,
        patch_size=4,
        vocab_size=50,
        use_mask_token=True,
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
        attn_implementation="sdpa",
    )
    theirs = BeitForMaskedImageModeling(config).double().eval()
    theirs.load_state_dict(as_transformers(model), strict=True)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(3)), (4, 4))
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter(1, mask.predict, True)
    codes = model.target.teach(x, model.tokenizer.split(x), (4, 4)).tokens
    expected = theirs(x, bool_masked_pos=hidden, labels=codes[hidden]).loss
    loss = model(x, mask=mask).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    ours, other = model.encoder.mask_token.grad, theirs.beit.embeddings.mask_token.grad
    assert (ours - other).abs().max() < 1e-12 * other.abs().max()
    ours, other = model.decoder.head.weight.grad, theirs.lm_head.weight.grad
    assert (ours - other).abs().max() < 1e-12 * other.abs().max()


def as_transformers(model: MaskedModel) -> dict[str, Tensor]:
    """Returns our weights under BeitForMaskedImageModeling's names."""
    encoder, head = model.encoder.state_dict(), model.decoder.head
    names = {
        "cls_token": "cls_token",
        "mask_token": "mask_token",
        "position_embeddings": "pos_embed",
        "patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "patch_embeddings.projection.bias": "patch_embed.proj.bias",
    }
    found = {f"beit.embeddings.{theirs}": encoder[ours] for theirs, ours in names.items()}
    found |= {f"layernorm.{kind}": encoder[f"norm.{kind}"] for kind in ("weight", "bias")}
    found |= {"lm_head.weight": head.weight, "lm_head.bias": head.bias}
    for block in range(2):
        ours, theirs = f"blocks.{block}.", f"beit.layers.{block}."
        q, k, v = encoder[f"{ours}attn.qkv.weight"].chunk(3)
        found |= {f"{theirs}attention.{name}_proj.weight": one for name, one in (("q", q), ("k", k), ("v", v))}
        found |= {f"{theirs}attention.{name}_proj.bias": encoder[f"{ours}attn.qkv.{name}_bias"] for name in ("q", "v")}
        found |= {f"{theirs}lambda_{number}": encoder[f"{ours}ls{number}.gamma"] for number in (1, 2)}
        for there, here in (
            ("attention.o_proj", "attn.proj"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            found |= {f"{theirs}{there}.{kind}": encoder[f"{ours}{here}.{kind}"] for kind in ("weight", "bias")}
    return found


# --- k-means ------------------------------------------------------------------------------------------------------------------


def test_kmeans_equals_a_plain_loop() -> None:
    """Each point of norm 1 goes to the centre with the largest product; centres are sums scaled to norm 1; the first centres are
    drawn."""
    points = F.normalize(torch.randn(60, 5, dtype=torch.float64), dim=1)
    rows = scores(sample_keys(0, 0, 0), 60)[0].argsort()[:4].tolist()
    centres = [points[row] for row in rows]
    for _ in range(3):
        groups: list[list[Tensor]] = [[] for _ in range(4)]
        for point in points:
            products = [float(point @ centre) for centre in centres]
            groups[products.index(max(products))].append(point)
        assert all(groups)
        centres = [sum(group) / sum(group).norm() for group in groups]
    found = spherical_kmeans(7 * points, 4, 3)
    assert (found - torch.stack(centres)).abs().max() < 1e-12


def test_kmeans_leaves_no_cluster_empty() -> None:
    directions = torch.eye(6, dtype=torch.float64)
    points = torch.cat([directions[:1].repeat(200, 1), directions[1:]])  # the first centres are most likely all the same
    found = spherical_kmeans(points, 6, 10)
    assert torch.equal(found.argmax(1).sort().values, torch.arange(6))


def test_a_training_makes_the_codes_of_its_patches(build: Build) -> None:
    """Each patch minus its mean gets the code of the nearest direction of k-means; brightness and contrast change no code."""
    model = build(target=CodeTarget.Config(codes=6, samples=20, iterations=4))
    x = torch.randn(20, 3, 12, 16)
    before = model.target.vocabulary.centres.clone()
    model.target.begin(model, unread, reader(x))
    patches = model.tokenizer.split(x)
    values = patches - patches.mean(2, keepdim=True)
    products = F.normalize(values, dim=2) @ model.target.vocabulary.centres.T
    codes = model.target.teach(x, patches, GRID).tokens
    assert torch.equal(codes, products.argmax(2))
    assert codes.unique().numel() == 6
    assert (products.amax(2).mean() > (F.normalize(values, dim=2) @ before.T).amax(2).mean() + 0.1).item()
    assert torch.equal(model.target.teach(2 * x + 3, 2 * patches + 3, GRID).tokens, codes)
    mask = model.masker(sample_keys(0, 0, torch.arange(20)), GRID)
    output = model(x, mask=mask)
    logits = output.prediction.double()
    plain = torch.logsumexp(logits, 2) - logits.gather(2, take(codes, mask.predict)[..., None])[..., 0]
    assert output.loss.item() == pytest.approx(plain.mean().item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.target.teach(x, patches, GRID).tokens, codes)
    other = build(target=CodeTarget.Config(codes=6, samples=20, iterations=4))
    other.load_state_dict(model.state_dict())  # the vocabulary is saved with the model
    assert torch.equal(other.target.teach(x, patches, GRID).tokens, codes)


def test_codes_of_the_features_of_a_frozen_model(build: Build) -> None:
    teacher = build(encoder=VisionTransformer.Config(width=32, depth=3, heads=2)).eval()
    options = {"codes": 5, "samples": 16, "source": "runs/teacher", "source_width": 32, "block": 2}
    model = build(target=CodeTarget.Config(**options))
    x = torch.randn(16, 3, 12, 16)
    with pytest.raises(ValueError, match="runs/teacher was not loaded, .*; call target.begin first"):
        model(x)
    model.target.begin(model, lambda path: teacher, reader(x))
    features = teacher.encode(x, blocks=(2,)).blocks[2][:, 1:]
    codes = model.target.teach(x, model.tokenizer.split(x), GRID).tokens
    assert torch.equal(codes, (F.normalize(features, dim=2) @ model.target.vocabulary.centres.T).argmax(2))
    assert len(model.target.unsaved()) == len(teacher.encoder.state_dict())
    assert [name for name in model.state_dict() if name.startswith("target.")] == ["target.vocabulary.centres"]
    centres = model.target.vocabulary.centres.clone()
    model.target.begin(model, lambda path: teacher, None)  # the vocabulary was copied from another run and is kept
    assert torch.equal(model.target.vocabulary.centres, centres)
    for options, words in (({"source_width": 8}, "target.source_width"), ({"block": 4}, "target.block 4"), ({"codes": 500}, "500")):
        wrong = build(target=CodeTarget.Config(**{"codes": 5, "source": "runs/teacher", "source_width": 32} | options))
        with pytest.raises(ValueError, match=words):
            wrong.target.begin(wrong, lambda path: teacher, reader(x))


# --- published tokenizers -------------------------------------------------------------------------------------------------------


def test_dalles_codes_are_those_of_transformers(build: Build, tmp_path: Path) -> None:
    """A code covers 8 x 8 pixels in [0.1, 0.9]; a clip's codes are those of the first frame of each tube."""
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    config = FlavaImageCodebookConfig(hidden_size=4, num_blocks_per_group=1)
    FlavaImageCodebook(config).save_pretrained(tmp_path)
    target = CodeTarget.Config(vocabulary="dalle", source=str(tmp_path))
    model = build(target=target)
    model.target.begin(model, unread, None)
    unit = torch.rand(2, 3, 12, 16)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (model.data.mean, model.data.std))
    x = (unit - mean) / std
    resized = F.interpolate(0.8 * unit + 0.1, size=(24, 32), mode="bicubic", antialias=True)
    expected = FlavaImageCodebook.from_pretrained(tmp_path).get_codebook_indices(resized).flatten(1)
    codes = model.target.teach(x, model.tokenizer.split(x), GRID).tokens
    assert (codes == expected).float().mean() > 0.9  # with random weights some codes are almost equal, and rounding decides
    assert codes.unique().numel() > 1
    clips = build((4, 12, 16), target=target)
    clips.target.begin(clips, unread, None)
    clip = torch.stack([x, x.flip(0), x.flip(3), x], dim=2)
    found = clips.target.teach(clip, clips.tokenizer.split(clip), (2, 3, 4)).tokens
    assert torch.equal(found, torch.cat([codes, model.target.teach(x.flip(3), clip, GRID).tokens], dim=1))
    with torch.no_grad():
        model.target.vocabulary.network.blocks.output.conv.bias.fill_(100)  # in bf16, numbers near 100 differ by 0.5
    codes = model.target.teach(x, model.tokenizer.split(x), GRID).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.target.teach(x, model.tokenizer.split(x), GRID).tokens, codes)


def test_beit_v2s_codes_are_the_nearest_to_projected_features(build: Build, tmp_path: Path) -> None:
    """Pixels in [-1, 1] go through a vision transformer with a norm after the last block, Linear, tanh, Linear and a scaling to
    norm 1."""
    encoder = build(
        (16, 16), encoder=VisionTransformer.Config(width=64, depth=2, heads=1, positions="learned", qkv_bias="qv")
    ).encoder
    first, second, codes = nn.Linear(64, 64), nn.Linear(64, 8), F.normalize(torch.randn(8192, 8), dim=1)
    stored = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    for here, there in (("attn.qkv.q_", "attn.q_"), ("attn.qkv.v_", "attn.v_"), ("encoder.norm.", "encoder.fc_norm.")):
        stored = {name.replace(here, there): value for name, value in stored.items()}
    stored |= {f"encode_task_layer.0.{name}": value for name, value in first.state_dict().items()}
    stored |= {f"encode_task_layer.2.{name}": value for name, value in second.state_dict().items()}
    options = argparse.Namespace(lr=1.0)  # published files hold the training script's options, too
    stored |= {"quantize.embedding.weight": codes, "decoder.cls_token": torch.zeros(1)}
    torch.save({"args": options, "model": stored}, tmp_path / "vqkd.pth")
    model = build((16, 16), target=CodeTarget.Config(vocabulary="vqkd", source=str(tmp_path / "vqkd.pth")))
    model.target.begin(model, unread, None)
    unit = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (model.data.mean, model.data.std))
    x = (unit - mean) / std
    with torch.no_grad():
        tokens = encoder.eval()(model.tokenizer.split(2 * unit - 1), (4, 4), None).tokens
        expected = (F.normalize(second(first(tokens).tanh()), dim=2) @ codes.T).argmax(2)
    assert torch.equal(model.target.teach(x, model.tokenizer.split(x), (4, 4)).tokens, expected)
    assert not [name for name in model.state_dict() if name.startswith("target.")]


@pytest.mark.parametrize("vocabulary", ["dalle", "vqkd"])
def test_a_tokenizer_that_is_not_there_is_refused(vocabulary: str, build: Build, tmp_path: Path) -> None:
    model = build(target=CodeTarget.Config(vocabulary=vocabulary, source=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"target\.source .*nothing holds no .*tokenizer.*target\.vocabulary kmeans needs no file"):
        model.target.begin(model, unread, None)
    with pytest.raises(ValueError, match="needs target.source"):
        CodeTarget.Config(vocabulary=vocabulary)
    with pytest.raises(ValueError, match=r"data\.channels 1"):
        build(channels=1, target=model.target.config)
