"""Pools and classifiers on encoders of images and clips: the rules of every registered pool, and a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mmm import MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.core.types import Shape
from mmm.data import ImagesConfig
from mmm.decoders import CrossAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.layers.batch_norm import BatchNorm
from mmm.objectives.finetune import FineTuneConfig, build_classifier
from mmm.pools import AttentivePool, ClassPool, MeanPool, pools

Build = Callable[..., MaskedModel]
SIZES = {"image": (12, 16), "clip": (4, 12, 16)}
CASES = [pytest.param(name, size, id=f"{name}-{kind}") for name in pools.parts for kind, size in SIZES.items()]
SHAPE = Shape(width=24, depth=2, prefix=1)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_pool_makes_a_classifier_of_images_and_clips(name: str, size: tuple[int, ...], build: Build) -> None:
    model, x = build(size), torch.randn(3, 3, *size)
    classifier = Classifier.of(model, classes=7, pool=pools[name].Config(), head=HeadConfig(norm="layer")).eval()
    logits = classifier(x)
    assert logits.shape == (3, 7)
    kept = classifier.encode(x)
    assert torch.allclose(classifier.classify(kept), logits, atol=1e-6)
    assert classifier.pool(kept).shape == (3, classifier.pool.width)
    alone = classifier(x[1:2])
    assert torch.allclose(alone, logits[1:2], atol=1e-5)  # a sample's scores do not depend on the other samples
    logits.square().sum().backward()
    own = {name: weight for name, weight in classifier.named_parameters() if weight.requires_grad}
    assert not [name for name, weight in own.items() if weight.grad is None]
    assert {name.removeprefix("encoder.") for name in own if name.startswith("encoder.")} == {
        name for name, weight in model.encoder.named_parameters() if weight.requires_grad
    }


@pytest.mark.parametrize("name", list(pools.parts))
def test_the_grid_s_tokens_have_no_order_to_a_pool(name: str) -> None:
    pool, tokens = pools.build(pools[name].Config(), encoder=SHAPE), torch.randn(2, 13, 24)
    mixed = torch.cat([tokens[:, :1], tokens[:, 1:][:, torch.randperm(12)]], dim=1)
    assert torch.allclose(pool(mixed), pool(tokens), atol=1e-6)
    other = torch.randn_like(tokens)
    assert not torch.allclose(pool(other), pool(tokens), atol=1e-3)


def test_plain_pools_are_what_they_say() -> None:
    tokens = torch.randn(2, 13, 24)
    assert torch.equal(pools.build(MeanPool.Config(), encoder=SHAPE)(tokens), tokens[:, 1:].mean(1))
    assert torch.equal(pools.build(ClassPool.Config(), encoder=SHAPE)(tokens), tokens[:, 0])
    bare = Shape(width=24, depth=2, prefix=0)
    assert torch.equal(pools.build(MeanPool.Config(), encoder=bare)(tokens), tokens.mean(1))
    with pytest.raises(ValueError, match="pool.name class needs a class token"):
        pools.build(ClassPool.Config(), encoder=bare)


@pytest.mark.parametrize("mlp_ratio", [4.0, None])
def test_attentive_pooling_against_a_plain_statement(mlp_ratio: float | None) -> None:
    config = AttentivePool.Config(queries=2, heads=3, mlp_ratio=mlp_ratio)
    pool, tokens = AttentivePool(config, encoder=SHAPE), torch.randn(2, 5, 24)
    for weight in pool.parameters():
        nn.init.normal_(weight, std=0.3)
    normed = nn.functional.layer_norm(tokens, (24,), pool.norm1.weight, pool.norm1.bias, 1e-6)
    keys, values = (normed @ pool.kv.weight.T + pool.kv.bias).split(24, dim=2)
    queries = pool.query[0] @ pool.q.weight.T + pool.q.bias
    expected = torch.empty(2, 2, 24)
    for sample in range(2):
        for query in range(2):
            for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
                shares = (keys[sample, :, part] @ queries[query, part] / math.sqrt(8)).softmax(0)
                expected[sample, query, part] = pool.query[0, query, part] + shares @ values[sample, :, part]
    if mlp_ratio is not None:
        expected = expected + pool.mlp(nn.functional.layer_norm(expected, (24,), pool.norm2.weight, pool.norm2.bias, 1e-6))
    assert torch.allclose(pool(tokens), expected.flatten(1), atol=1e-5)


def test_heads_of_an_attentive_pool() -> None:
    for width, heads in ((768, 12), (1280, 20), (24, 1)):
        assert AttentivePool(AttentivePool.Config(), encoder=Shape(width, 1, 0)).num_heads == heads
    with pytest.raises(ValueError, match="pool.heads 5 do not divide"):
        AttentivePool(AttentivePool.Config(heads=5), encoder=SHAPE)
    with pytest.raises(ValueError, match="pool.queries 0 is not a whole number of at least 1"):
        AttentivePool.Config(queries=0)
    with pytest.raises(ValueError, match="pool.mlp_ratio"):
        AttentivePool.Config(mlp_ratio=0.0)


def test_a_frozen_encoder_does_not_train(build: Build) -> None:
    model = build(encoder=VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.5))
    classifier = Classifier.of(model, classes=3, pool=AttentivePool.Config(), head=HeadConfig(dropout=0.5), frozen=True).train()
    x = torch.randn(8, 3, 12, 16)
    assert torch.equal(classifier.encode(x), classifier.encode(x))  # no stochastic depth
    assert not classifier.encode(x).requires_grad
    assert not torch.equal(classifier(x), classifier(x))  # the head's dropout is on
    classifier(x).sum().backward()
    assert all(weight.grad is None for weight in classifier.encoder.parameters())
    assert classifier.pool.query.grad is not None
    free = Classifier.of(build(encoder=model.encoder.config), classes=3).train()
    assert free.encode(x).requires_grad
    assert free.encoder.training


def test_an_encoder_without_a_final_norm(build: Build) -> None:
    """CrossMAE's encoder has no final norm: the head's norm is the only one."""
    model = build(decoder=CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear"))
    assert isinstance(model.encoder.norm, nn.Identity)
    classifier = Classifier.of(model, classes=3, head=HeadConfig(norm="layer"))
    x = torch.randn(2, 3, 12, 16)
    mean = model.encode(x).tokens.mean(1)
    expected = nn.functional.layer_norm(mean, (24,), eps=1e-6) @ classifier.head.linear.weight.T
    assert torch.allclose(classifier(x), expected, atol=1e-6)


def test_a_class_token_is_fine_tuned_with_the_pretrained_norm(build: Build) -> None:
    """In MAE (models_vit.py) fc_norm replaces the encoder's norm if tokens are averaged; a class token keeps the encoder's norm."""
    model, x = build((16, 16)).eval(), torch.randn(2, 3, 16, 16)
    for pool in (ClassPool.Config(), MeanPool.Config()):
        data = ImagesConfig(source="", image_size=16)
        config = FineTuneConfig(data=data, pool=pool, head=HeadConfig(norm="layer"), encoder=model.encoder.config)
        classifier = build_classifier(config, model, classes=3).eval()
        logits, tokens = classifier(x), model.encode(x).last
        if pool.name == "class":
            expected = tokens[:, 0] @ classifier.head.linear.weight.T
            assert torch.equal(classifier.encoder.norm.weight, model.encoder.norm.weight)
            assert torch.allclose(logits, expected, atol=1e-6)
        else:
            assert isinstance(classifier.encoder.norm, nn.Identity)
            assert isinstance(classifier.head.fc_norm, nn.LayerNorm)


def test_first_weights_come_from_the_seed_alone(build: Build) -> None:
    model, before = build(), torch.random.get_rng_state()
    one, two, other = (
        Classifier.of(model, classes=2000, head=HeadConfig(std=std), seed=s) for s, std in ((3, 2e-5), (3, 0.01), (4, 0.01))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.head.linear.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert torch.allclose(one.head.linear.weight * 500, two.head.linear.weight, rtol=1e-4)
    assert not torch.equal(two.head.linear.weight, other.head.linear.weight)
    assert not two.head.linear.bias.any()
    with pytest.raises(ValueError, match="head.dropout 1 is not"):
        HeadConfig(dropout=1.0)
    with pytest.raises(ValueError, match="head.std 0"):
        HeadConfig(std=0.0)


def test_batch_norm_is_torch_s_without_weights() -> None:
    """The first ten batches count equally in the running statistics; later ones have a momentum of 0.1."""
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5, affine=False, eps=1e-6, momentum=None)
    for number in range(14):
        theirs.momentum = None if number < 10 else 0.1
        x = torch.randn(6, 5) * 3 + 1
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.var, theirs.running_var, atol=1e-5)
    ours, theirs, x = ours.eval(), theirs.eval(), torch.randn(2, 5)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert ours(x.bfloat16()).dtype == torch.float32
