"""Samples of different sizes in one sequence: each is computed as it is alone.

Shapes: B samples, N tokens, P values per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmm import Mask, MaskedModel
from mmm.core.types import RequiredFeatures
from mmm.decoders import CrossAttentionDecoder, LinearDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer, encoders
from mmm.layers.packing import Packing
from mmm.layers.transformer import drop_samples
from mmm.maskers import BernoulliMasker, MultiBlockMasker, RandomMasker
from mmm.targets import LatentTarget

SMALL = VisionTransformer.Config(width=24, depth=2, heads=2)
SELF, CROSS = SelfAttentionDecoder.Config(width=16, depth=2, heads=2), CrossAttentionDecoder.Config(width=16, depth=2, heads=2)
METHODS: dict[str, dict[str, Any]] = {
    "mae": {},
    "rotary": {
        "encoder": replace(SMALL, rotary="axial", positions="none", registers=4, register_places="around"),
        "decoder": replace(SELF, rotary="dinov3", positions="none"),
    },
    "crossmae": {"decoder": replace(CROSS, fusion="linear")},
    "crossmae_rotary": {"decoder": replace(CROSS, rotary="axial", self_attention=True)},
    "simmim": {"masker": RandomMasker.Config(ratio=0.5, blank=True), "decoder": LinearDecoder.Config()},
    "ijepa": {"masker": MultiBlockMasker.Config(), "encoder": replace(SMALL, class_token=False), "target": LatentTarget.Config()},
    "padded": {"masker": BernoulliMasker.Config(ratio=0.5), "encoder": replace(SMALL, rotary="axial")},
    "padded_cross": {"masker": BernoulliMasker.Config(ratio=0.5), "decoder": replace(CROSS, self_attention=True)},
    "clips": {"size": (4, 12, 16), "encoder": replace(SMALL, rotary="axial")},
}
SIZES = ((8, 24), (12, 16), (16, 20))
Build = Callable[..., MaskedModel]


@pytest.fixture(params=METHODS)
def case(request: pytest.FixtureRequest, build: Build) -> tuple[MaskedModel, list[Tensor], list[Mask]]:
    """Returns a small model in fp64, and 2, 1 and 3 samples of three sizes with their masks."""
    options = METHODS[request.param]
    model = build(**options).double()
    lead = options.get("size", ())[:-2]
    inputs = [torch.randn(count, 3, *lead, *size).double() for count, size in zip((2, 1, 3), SIZES, strict=True)]
    return model, inputs, [model.draw_masks(x) for x in inputs]


def predictions(model: MaskedModel, inputs: list[Tensor], masks: list[Mask]) -> list[Tensor]:
    """Returns the predictions of all samples from one pass."""
    patches, grids = [model.tokenizer.split(x) for x in inputs], [model.tokenizer.grid(x) for x in inputs]
    assert model.decoder is not None
    return model.decoder.packed(model.encoder.packed(patches, grids, masks), masks, grids)


def test_a_packed_sample_is_computed_as_it_is_alone(case: Any) -> None:
    model, inputs, masks = case
    rows = [(x[i : i + 1], pick(mask, i, len(x))) for x, mask in zip(inputs, masks, strict=True) for i in range(len(x))]
    alone = [model(x, mask) for x, mask in rows]
    model.zero_grad()
    torch.stack([one.loss for one in alone]).mean().backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    together = model(inputs, masks)
    together.loss.backward()
    assert torch.isclose(together.loss, torch.stack([one.loss for one in alone]).mean(), rtol=1e-9, atol=0)  # a mean over samples
    for name, gradient in expected.items():
        assert torch.allclose(dict(model.named_parameters())[name].grad, gradient, rtol=1e-9, atol=1e-11), name
    packed = torch.cat([one.flatten() for one in predictions(model, inputs, masks)])
    assert torch.allclose(packed, torch.cat([one.prediction.flatten() for one in alone]), rtol=1e-9, atol=1e-9)


def pick(mask: Mask, i: int, samples: int) -> Mask:
    """Returns the mask of one sample."""
    names = ("visible", "predict", "blank", "weight", "valid", "valid_predict")
    values = {name: getattr(mask, name).unflatten(0, (samples, -1))[i] for name in names if getattr(mask, name) is not None}
    return replace(mask, **values)


def test_neither_hidden_pixels_nor_other_samples_change_a_prediction(case: Any) -> None:
    model, inputs, masks = case
    before = predictions(model, inputs, masks)
    patches = model.tokenizer.split(inputs[1]).clone()
    seen = torch.zeros(patches.shape[1], dtype=torch.bool)
    seen[masks[1].visible.flatten()] = True
    patches[:, ~seen] = torch.nan
    hidden = model.tokenizer.join(patches, model.tokenizer.grid(inputs[1]))
    changed = predictions(model, [torch.randn_like(inputs[0]), hidden, inputs[2]], masks)
    assert not torch.equal(before[0], changed[0])  # the input did change
    assert all(torch.equal(a, b) for a, b in zip(before[1:], changed[1:], strict=True))


def test_paths_are_dropped_sample_by_sample() -> None:
    from timm.layers import DropPath

    packing = Packing(((30, 2), (20, 5)))
    drop = DropPath(0.5).train()
    groups = packing.unpack(drop_samples(drop, torch.ones(1, 160, 3), packing))
    for group in groups:
        first = group[:, 0, 0]
        assert torch.equal(group, first[:, None, None].expand_as(group))  # a whole sample is dropped or kept
        assert {0.0, 2.0} == set(first.tolist())  # some samples are dropped, not all


def test_a_packed_pass_equals_timms_naflex_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm pads the samples to one length and masks the padding; the positions are learned and interpolated for each grid."""
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    options = NaFlexVitCfg(
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        class_token=True,
        reg_tokens=2,
        pos_embed_grid_size=(3, 4),
        global_pool="token",
        init_values=0.1,
    )
    theirs = NaFlexVit(options, num_classes=0).double().eval()
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.2)
    config = replace(SMALL, positions="learned", resize_positions="antialias", registers=2, layer_scale=0.1)
    context: Any = {"token": (4, 4), "channels": 3, "grid": (3, 4), "required": RequiredFeatures()}
    ours = encoders.build(config, **context).double().eval()
    state = {name.removeprefix("embeds."): value for name, value in theirs.state_dict().items()}
    state["patch_embed.proj.bias"] = state.pop("proj.bias")
    state["patch_embed.proj.weight"] = state.pop("proj.weight").unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2)
    body = state["pos_embed"].flatten(1, 2)
    state["pos_embed"] = torch.cat([torch.zeros_like(body[:, :1]), body], dim=1)  # timm's class token has no position
    ours.load_state_dict(state)

    grids, patches = [(2, 6), (3, 4), (4, 5)], [torch.randn(2, n, 48).double() for n in (12, 12, 20)]
    masks = [Mask(torch.arange(n).expand(2, -1), torch.zeros(2, 1, dtype=torch.int64)) for n in (12, 12, 20)]
    found = ours.packed(patches, grids, masks)
    longest = 20
    padded = torch.cat([nn.functional.pad(one, (0, 0, 0, longest - one.shape[1])) for one in patches])
    places = torch.zeros(6, longest, 2, dtype=torch.int64)
    valid = torch.zeros(6, longest, dtype=torch.bool)
    for row, (height, width) in enumerate(grid for grid in grids for _ in range(2)):
        places[row, : height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        valid[row, : height * width] = True
    monkeypatch.setattr(Tensor, "float", lambda value: value)  # timm interpolates positions in fp32
    expected = theirs.forward_features(padded, patch_coord=places, patch_valid=valid)
    tokens = expected["patches"] if isinstance(expected, dict) else expected
    for group, features in enumerate(found):
        wanted = tokens[2 * group : 2 * group + 2, : features.last.shape[1]]
        assert torch.allclose(features.last, wanted, rtol=1e-9, atol=1e-9)
