"""The implementations of a step that `crossmae_cost.py` measures: those of MAE and CrossMAE, ours and the published ones.

Shapes: B samples.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved
from benchmarks.train.published import PublishedMAE, StackedFusion
from mmm import Input, Mask, MaskedModel, ModelConfig
from mmm.core.rng import sample_keys
from mmm.core.types import Features
from mmm.decoders import CrossAttentionDecoder, DecoderConfig, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    """An implementation of a step.

    Attributes:
        name: name in the table.
        loss: computes the loss of the batch, with the graph for its gradient.
        model: the model whose weights are updated.
    """

    name: str
    loss: Callable[[Tensor], Tensor]
    model: MaskedModel


def variants(options: argparse.Namespace, x: Tensor) -> list[Variant]:
    """Returns all variants, with three sets of weights: one with MAE's decoder and two with CrossMAE's."""
    inner = {"width": 256, "heads": 8} if options.size in ("tiny", "small") else {"width": 512, "heads": 16}
    cross = CrossAttentionDecoder.Config(depth=12, **inner)
    mae = build(options, SelfAttentionDecoder.Config(depth=8, **inner))
    fused, plain = build(options, replace(cross, fusion="linear")), build(options, cross)
    whole = masks(mae, x, None)
    published = PublishedMAE(mae, whole.visible.shape[1])
    found = [Variant("MAE, published step", compiled(published, options), mae), with_mask("MAE", mae, whole, options)]
    for share in (0.75, 0.25):
        mask, name = masks(mae, x, share), f"CrossMAE {share:.0%}".replace("%", " %")
        found.append(with_mask(name, fused, mask, options))
        found.append(with_mask(f"{name}, no fusion", plain, mask, options))
        found.append(with_mask(f"{name}, published fusion", stacked(fused), mask, options, fused))
    return found


def build(options: argparse.Namespace, decoder: DecoderConfig) -> MaskedModel:
    """Builds a model with its published settings except for the decoder, and with the same weights in every call."""
    config = ModelConfig(
        tokenizer=Patches.Config(size=16),
        masker=RandomMasker.Config(ratio=0.75),
        encoder=VisionTransformer.Config(size=options.size),
        decoder=decoder,
        target=PixelTarget.Config(),
    )
    return MaskedModel.build(config, Input(size=(options.image, options.image)), seed=0).to(options.device)


def masks(model: MaskedModel, x: Tensor, predict: float | None) -> Mask:
    """Draws the masks once, outside the graph (drawing takes 0.2 ms)."""
    masker = RandomMasker(RandomMasker.Config(ratio=0.75, predict=predict))
    return masker(sample_keys(0, 0, torch.arange(len(x), device=x.device)), model.tokenizer.grid(x))


def stacked(model: MaskedModel) -> MaskedModel:
    """Returns a model with the same weights that uses the published fusion."""
    other = copy.copy(model.decoder)
    other._modules = dict(model.decoder._modules)  # copied separately because copy.copy shares this dictionary
    other.fusion = StackedFusion(model.decoder.fusion)
    return MaskedModel(model.tokenizer, model.masker, model.encoder, other, model.target)


def with_mask(name: str, model: MaskedModel, mask: Mask, options: argparse.Namespace, owner: MaskedModel | None = None) -> Variant:
    """Returns a variant with our implementation; its graph is compiled separately if requested."""
    run = compiled(model, options)
    return Variant(name, lambda x: run(x, mask=mask).loss, owner or model)


def compiled(module: nn.Module, options: argparse.Namespace) -> Callable[..., Any]:
    """Returns the module, or a version compiled for fixed shapes, since variants differ in the number of predicted tokens."""
    return torch.compile(module, fullgraph=True, dynamic=False) if options.compile else module


def fusion_alone(options: argparse.Namespace, precision: str) -> dict[str, float]:
    """Returns the seconds of fusion, forward and backward, for ours, the published one, and the single norm without fusion."""
    device = torch.device(options.device)
    model = build(options, CrossAttentionDecoder.Config(depth=12, fusion="linear"))
    fusion, shape = model.decoder.fusion, (options.batch, 1 + (options.image // 16) ** 2 // 4, model.encoder.shape.width)
    maps = {block: torch.randn(shape, device=device, requires_grad=True) for block in fusion.blocks}
    features = Features(maps[0], 1, torch.empty(0, device=device), maps)
    expected = torch.randn(shape, device=device)
    ways = {"ours": fusion, "published": StackedFusion(fusion), "norm": lambda given: [fusion.norms[0](given.last)]}

    def run(way: Callable[[Features], list[Tensor]]) -> None:
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            mixed = way(features)
        torch.autograd.backward(mixed, [expected] * len(mixed))
        for one in (*maps.values(), *fusion.parameters()):
            one.grad = None

    steps = {name: partial(run, way) for name, way in ways.items()}
    seconds = interleaved(steps, repeats=3 * options.repeats, warmup=options.warmup, device=device)
    return {name: median(found) for name, found in seconds.items()}
