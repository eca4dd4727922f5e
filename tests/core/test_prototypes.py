"""Compares iBOT's shares, centre, temperatures and averages with plain restatements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import compile_regions
from conftest import load_recipe
from torch import Tensor
from torch.nn import functional as F

from mmm import Mask, MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.tokens import take
from mmm.data import ImagesConfig
from mmm.encoders import VisionTransformer
from mmm.objectives.masked import MaskedObjective, SecondSource
from mmm.targets import PairTarget, PrototypeTarget, TokenTargets
from mmm.train.distributed.processes import EveryProcess
from tasks import pretrain

Build = Callable[..., MaskedModel]
GRID, YES, NO = (3, 4), torch.tensor(True), torch.tensor(False)


def model_of(build: Build, **options: Any) -> tuple[MaskedModel, Tensor]:
    target = PrototypeTarget.Config(**{"prototypes": 7, "hidden": 10, "bottleneck": 5, **options})
    return build(target=target).double(), torch.randn(4, 3, 12, 16, dtype=torch.float64)


def similarities(head: Any, tokens: Tensor) -> Tensor:
    for layer in head.layers[:2]:
        tokens = F.gelu(F.linear(tokens, layer.weight, layer.bias))
    tokens = F.linear(tokens, head.layers[2].weight, head.layers[2].bias)
    return (tokens / tokens.norm(dim=-1, keepdim=True)) @ (head.prototypes / head.prototypes.norm(dim=1, keepdim=True)).T


def test_the_loss_is_ibots_patch_term(build: Build) -> None:
    """The loss is the cross-entropy of the student's softmax(s / 0.1) with the teacher's softmax((t - c) / 0.04), averaged over the
    predicted tokens."""
    model, x = model_of(build)
    with torch.no_grad():
        model.target.centre.normal_()
        model.target.teacher_head.prototypes.normal_()
    mask = model.masker(sample_keys(0, 0, torch.arange(4)), GRID)
    output = model(x, mask=mask)
    every = similarities(model.target.teacher_head, model.target.teacher.encoder(model.tokenizer.split(x), GRID, None).tokens)
    shares = ((take(every, mask.predict) - model.target.centre) / 0.04).softmax(-1)
    plain = -(shares * (similarities(model.target.head, output.prediction) / 0.1).log_softmax(-1)).sum(-1).mean()
    assert output.loss.item() == pytest.approx(plain.item(), rel=1e-10)


def test_class_tokens_are_compared_between_the_views_of_an_input(build: Build) -> None:
    """iBOT compares the student's class token of one view with the teacher's of the other; class tokens have their own centre and
    temperature."""
    model, x = model_of(build, class_weight=0.5, class_temperature=0.05, centre_decay=0.8, decay=1.0)
    target = model.target
    assert ImagesConfig(repeats=2).input().repeats == 2
    target.views = 2
    with torch.no_grad():
        target.class_centre.normal_()
    mask = model.masker(sample_keys(0, 0, torch.arange(4)), GRID)
    patches = model.tokenizer.split(x)
    seen = target.teacher.encoder(patches, GRID, None).last[:, 0]
    own = similarities(target.teacher_head, seen)
    student = (similarities(target.head, model.encoder(patches, GRID, mask).last[:, 0]) / 0.1).log_softmax(-1)
    plain = [-(((own[row ^ 1] - target.class_centre) / 0.05).softmax(-1) * student[row]).sum() for row in range(4)]
    output = model.train()(x, mask=mask)
    shares = -(output.target[0] * (similarities(target.head, output.prediction) / 0.1).log_softmax(-1)).sum(-1).mean()
    assert output.loss.item() == pytest.approx((shares + 0.5 * torch.stack(plain).mean()).item(), rel=1e-10)
    centre = 0.8 * target.class_centre + 0.2 * own.mean(0)
    target.update(model, 1, 10, YES)
    assert (target.class_centre - centre).abs().max() < 1e-12
    alone = model.eval()(x, mask=mask).target[1]
    assert (alone - ((own - target.class_centre) / 0.05).softmax(-1)).abs().max() < 1e-12
    three = own[:3].softmax(-1)
    target.views = 3
    target.class_centre.zero_()
    found = model.train().target.pick(TokenTargets((own[:3, None], own[:3] * 0.05)), Mask(*torch.zeros(2, 3, 1).long()))[1]
    assert (found[0] - (three[1] + three[2]) / 2).abs().max() < 1e-12
    bare = VisionTransformer.Config(width=24, depth=1, heads=2, class_token=False)
    with pytest.raises(ValueError, match=r"target\.class_weight needs a class token"):
        build(encoder=bare, target=target.config)


def test_both_sources_of_a_training_have_the_same_number_of_views() -> None:
    """With another number, class tokens of the second source would be compared between different images."""
    one, demo = (
        PrototypeTarget.Config(prototypes=7, hidden=10, bottleneck=5, class_weight=1.0),
        load_recipe("image_mae").PRESETS["demo"],
    )
    config = replace(demo, data=replace(demo.data, repeats=2), second=SecondSource(data=demo.data), target=one, dry_run=True)
    for target in (one, PairTarget.Config(second=one)):
        with pytest.raises(ValueError, match=r"second\.data\.repeats 1 is not data\.repeats 2.*set second\.data\.repeats 2"):
            pretrain.run(replace(config, target=target))
    for fits in (replace(config, second=SecondSource(data=config.data)), replace(config, target=replace(one, class_weight=0.0))):
        pretrain.check_repeats(fits, pretrain.build_model(fits))


def test_centre_temperature_and_averages_move(build: Build) -> None:
    """c <- 0.8 c + 0.2 of the mean over all tokens of an update, for any micro-batches; skipped updates and evaluations leave it
    unchanged. The temperature rises over half of the run."""
    model, x = model_of(build, centre_decay=0.8, decay=0.9, decay_end=0.9, temperature_until=0.5)
    target, patches = model.target, model.tokenizer.split(x)
    assert target.temperature.item() == pytest.approx(0.04)
    every = similarities(target.teacher_head, target.teacher.encoder(patches, GRID, None).tokens)
    model.eval().target.teach(x, patches, GRID)
    assert not target.sums
    model.train()
    slow, fast = target.teacher_head.prototypes, target.head.prototypes
    with torch.no_grad():
        fast.add_(1)
    before = slow.clone()
    for made, centre, prototypes in ((NO, 0 * target.centre, before), (YES, 0.2 * every.mean((0, 1)), 0.9 * before + 0.1 * fast)):
        for part in (slice(0, 3), slice(3, 4)):
            target.teach(x[part], patches[part], GRID)
        target.update(model, 2, 10, made)
        assert (target.centre - centre).abs().max() < 1e-12
        assert (slow - prototypes).abs().max() < 1e-12
    assert target.temperature.item() == pytest.approx(0.04 + 0.03 * 2 / 5)
    target.update(model, 7, 10, YES)
    assert target.temperature.item() == pytest.approx(0.07)
    assert target.across_batch
    assert target.may_collapse


def test_the_centre_moves_in_a_compiled_training(build: Build) -> None:
    """Accelerate compiles blocks and copies the modules that contain them, the target among them."""
    model, x = model_of(build)
    mask = model.masker(sample_keys(0, 0, torch.arange(4)), GRID)
    compiled = compile_regions(model, backend="eager")
    assert compiled.target is not model.target
    compiled.train()(x, mask=mask)
    model.target.update(model, 1, 10, YES)
    assert model.target.centre.abs().max() > 0
    assert not compiled.target.sums
    training: Any = SimpleNamespace(unwrapped=model, model=compiled, accelerator=SimpleNamespace(num_processes=2))
    MaskedObjective.connect(training)
    assert isinstance(model.target.collective, EveryProcess)
    assert isinstance(compiled.target.collective, EveryProcess)


def test_a_training_begins_with_a_teacher_equal_to_encoder_and_head(build: Build) -> None:
    model, _ = model_of(build)
    model.target.begin(model, None, None)  # weights that were copied from another run are kept
    assert not torch.equal(model.target.teacher_head.prototypes, model.target.head.prototypes)
    model.target.begin(model, None, lambda count: iter(()))
    assert torch.equal(model.target.teacher_head.prototypes, model.target.head.prototypes)
    assert torch.equal(model.target.teacher.encoder.norm.weight, model.encoder.norm.weight)
