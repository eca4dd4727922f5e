"""timm's backbones as encoders: whole images equal timm's own forward, and mask tokens replace hidden ones after the first
layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.decoders import LinearDecoder, SelfAttentionDecoder
from mmm.encoders import TimmEncoder
from mmm.encoders.timm_model import describe
from mmm.maskers import RandomMasker, UniformMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches

Build = Callable[..., MaskedModel]
# name, side of a token; the maps after the first layer and at the end are rows of tokens, channels last, and channels first
MODELS = [("test_vit", 16), ("test_convnext", 32), ("swin_tiny_patch4_window7_224", 32)]


def model_of(build: Build, name: str, side: int, **options: Any) -> MaskedModel:
    return build(
        (4 * side, 4 * side),
        tokenizer=Patches.Config(size=side),
        encoder=TimmEncoder.Config(model=name),
        decoder=LinearDecoder.Config(),
        masker=RandomMasker.Config(ratio=0.5, blank=True),
        target=PixelTarget.Config(standardise="none"),
        **options,
    ).eval()


@pytest.mark.parametrize(("name", "side"), MODELS[:2])
def test_whole_images_give_timms_features(name: str, side: int, build: Build) -> None:
    model = model_of(build, name, side).double()
    x = torch.randn(2, 3, 4 * side, 4 * side, dtype=torch.float64)
    wanted = model.encoder.backbone.forward_features(x)
    if wanted.dim() == 4:
        wanted = wanted.flatten(1, 2) if wanted.shape[3] == model.encoder.shape.width else wanted.flatten(2).transpose(1, 2)
    assert torch.equal(model.encode(x).last, wanted)


@pytest.mark.parametrize(("name", "side"), MODELS)
def test_hidden_tokens_are_mask_tokens_behind_the_first_layer(name: str, side: int, build: Build) -> None:
    """Restates the replacement with a hook; hidden pixels are black for the first layer."""
    model = model_of(build, name, side).double()
    encoder: Any = model.encoder
    x = torch.randn(2, 3, 4 * side, 4 * side, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (4, 4))
    hidden = torch.zeros(2, 16, dtype=torch.bool).scatter(1, mask.predict, True).view(2, 4, 4)
    black = x.masked_fill(hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None], 0)
    token = encoder.mask_token[0, 0]

    def replace(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        rows = out.movedim(1, -1) if out.shape[1] == len(token) and out.dim() == 4 else out  # channels last
        fine = (
            hidden if rows.dim() == 3 else hidden.repeat_interleave(rows.shape[1] // 4, 1).repeat_interleave(rows.shape[1] // 4, 2)
        )
        rows = torch.where((fine.flatten(1) if rows.dim() == 3 else fine)[..., None], token, rows)
        return rows.movedim(-1, 1) if out.shape != rows.shape else rows

    handle = getattr(encoder.backbone, encoder.first).register_forward_hook(replace)
    wanted = encoder.backbone.forward_features(black)
    handle.remove()
    if wanted.dim() == 4:
        wanted = wanted.flatten(1, 2) if wanted.shape[3] == encoder.shape.width else wanted.flatten(2).transpose(1, 2)
    found = encoder(model.tokenizer.split(x), (4, 4), mask)
    prefix = encoder.shape.prefix
    index = found.where[..., None].expand(-1, -1, wanted.shape[2])
    assert (found.tokens - wanted[:, prefix:].gather(1, index)).abs().max() < 1e-9
    model(x, mask=mask).loss.backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)


def test_blocks_of_a_plain_transformer_can_be_read(build: Build) -> None:
    model = model_of(build, "test_vit", 16)
    x = torch.randn(1, 3, 64, 64)
    found = model.encode(x, blocks=(2, model.encoder.shape.depth))
    assert found.blocks[2].shape == found.last.shape
    kept = found.blocks[model.encoder.shape.depth]
    assert torch.allclose(model.encoder.backbone.norm(kept), found.last, atol=1e-6)
    with pytest.raises(ValueError, match="does not return the outputs"):
        model_of(build, "test_convnext", 32).encode(torch.randn(1, 3, 128, 128), blocks=(1,))


def test_another_size_where_timms_model_takes_one(build: Build) -> None:
    model = model_of(build, "test_vit", 16)
    x = torch.randn(1, 3, 48, 80)
    assert torch.equal(model.encode(x).last, model.encoder.backbone.forward_features(x))
    fixed = model_of(build, "test_mixer" if timm.is_model("test_mixer") else "mixer_s32_224", 32)
    with pytest.raises(ValueError, match=r"was built for a grid of \(4, 4\)"):
        fixed.encode(torch.randn(1, 3, 64, 96))


def test_what_cannot_be_replaced_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="did you mean 'vit_tiny_patch16_224'"):
        describe("vit_tiny_patch16_223")
    with pytest.raises(ValueError, match="no patch_embed and no stem"):
        model_of(build, "resnet18", 32)
    with pytest.raises(ValueError, match="batch norms"):
        model_of(build, "levit_128s", 56)
    with pytest.raises(ValueError, match="not a square map"):
        describe("volo_d1_224")
    with pytest.raises(ValueError, match=r"tokenizer\.size 32"):
        model_of(build, "test_vit", 32)
    drops = {"masker": RandomMasker.Config(), "decoder": SelfAttentionDecoder.Config(width=16, depth=1, heads=2)}
    with pytest.raises(ValueError, match=r"random masks leave no whole grid.* masker\.blank"):
        build((64, 64), tokenizer=Patches.Config(size=16), encoder=TimmEncoder.Config(model="test_vit"), **drops)
    drops["masker"] = UniformMasker.Config(secondary=0.0)
    dropping = build((64, 64), tokenizer=Patches.Config(size=16), encoder=TimmEncoder.Config(model="test_vit"), **drops)
    with pytest.raises(ValueError, match=r"encodes all 16 tokens.* set masker\.blank"):
        dropping(torch.randn(1, 3, 64, 64))
    evaluated = build((64, 64), tokenizer=Patches.Config(size=32), encoder=TimmEncoder.Config(model="resnet18"), **drops)
    assert evaluated.encode(torch.randn(1, 3, 64, 64)).tokens.shape == (1, 4, 512)
