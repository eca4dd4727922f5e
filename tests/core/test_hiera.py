"""Compares Hiera with timm's, masked and whole, on images and clips, and its masked autoencoder with a restatement, in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.hiera import Hiera as TimmHiera
from torch import Tensor
from torch.nn import functional as F

from mmm import Mask, MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.types import RequiredFeatures
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import Hiera
from mmm.maskers import RandomMasker
from mmm.tokenizers import Patches, Tubes

Build = Callable[..., MaskedModel]
STAGES = (1, 2, 1, 1)
SMALL = {"width": 8, "heads": 1, "stages": STAGES, "mask_unit": 8}
CASES = {"images": (32, 64), "clips": (4, 32, 64)}


def models(size: tuple[int, ...], pools: int) -> tuple[Hiera, TimmHiera, Any]:
    """Returns our Hiera, timm's with the same weights, and the tokenizer."""
    clips, side = len(size) == 3, 4 * 2**pools
    own = {"patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3), "q_stride": (1, 2, 2)}
    own |= {"mask_unit_size": (1, 8, 8), "sep_pos_embed": True}
    theirs = TimmHiera(
        img_size=size, embed_dim=8, num_heads=1, stages=STAGES, q_pool=pools, num_classes=0, **(own if clips else {})
    )
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    tokenizer: Any = (
        Tubes(Tubes.Config(size=side, frames=2), channels=3) if clips else Patches(Patches.Config(size=side), channels=3)
    )
    grid = tokenizer.grid_of(size)
    config = Hiera.Config(pools=pools, **SMALL)
    ours = Hiera(config, token=tokenizer.size, channels=3, grid=grid, required=RequiredFeatures())
    state = {name.replace("head.norm.", "norm."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    return ours.double().eval(), theirs.double().eval(), tokenizer


def flat(found: Tensor, inner: tuple[int, int]) -> Tensor:
    """Orders a stage's tokens (B, [T,] H, W, C) as ours: the tokens under one token of the output lie together, (B, N, a b C)."""
    high, wide = inner
    found = found[:, None] if found.dim() == 4 else found
    found = found.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # (B, T, H, a, W, b, C)
    return found.transpose(3, 4).flatten(4).flatten(1, 3)


@pytest.mark.parametrize("pools", [2, 3])
@pytest.mark.parametrize("medium", CASES)
def test_features_of_every_stage_equal_timms(medium: str, pools: int) -> None:
    size = CASES[medium]
    ours, theirs, tokenizer = models(size, pools)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    stages = ours.shape.stages
    grid = tokenizer.grid(x)
    found = ours(tokenizer.split(x), grid, None, blocks=tuple(stage.block for stage in stages))
    _, wanted = theirs.forward_features(x, return_intermediates=True)
    for stage, one in zip(stages, wanted, strict=True):
        assert (found.blocks[stage.block] - flat(one, stage.inner)).abs().max() < 1e-9
    assert (found.last - theirs.head.norm(flat(wanted[-1], (1, 1)))).abs().max() < 1e-9
    assert found.blocks[stages[0].block].shape[2] == 8 * 4**pools


@pytest.mark.parametrize("medium", CASES)
def test_masked_features_equal_timms(medium: str) -> None:
    """timm's Hiera takes a map of the kept units, and returns them in raster order."""
    size = CASES[medium]
    ours, theirs, tokenizer = models(size, 2)
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    grid = tokenizer.grid(x)
    mask = RandomMasker(RandomMasker.Config(ratio=0.5, unit=2))(sample_keys(0, 0, torch.arange(3)), grid)
    hidden = tokenizer.split(x).scatter(1, mask.predict[..., None].expand(-1, -1, tokenizer.width), 1e3)  # no effect
    found = ours(hidden, grid, mask)
    units = (grid[-2] // 2, grid[-1] // 2)
    index = torch.arange(math.prod(grid)).view(-1, units[0], 2, units[1], 2).transpose(2, 3).reshape(-1, 4)  # (U, 4)
    keep = torch.stack([torch.isin(index[:, 0], row) for row in mask.visible])
    _, wanted = theirs.forward_features(x, mask=keep, return_intermediates=True)
    last = theirs.head.norm(wanted[-1]).flatten(1, -2)  # (B, u 4, D), in the order of the kept units
    for row in range(3):
        places = index[keep[row]].flatten()
        mine = {int(place): found.last[row, number] for number, place in enumerate(mask.visible[row])}
        assert max((mine[int(place)] - last[row, number]).abs().max() for number, place in enumerate(places)) < 1e-9


def test_another_size_interpolates_the_positions() -> None:
    ours, theirs, tokenizer = models((64, 64), 2)
    x = torch.randn(1, 3, 32, 96, dtype=torch.float64)
    found = ours(tokenizer.split(x), (2, 6), None).last
    table = theirs.pos_embed.unflatten(1, (16, 16)).permute(0, 3, 1, 2)
    table = F.interpolate(table, (8, 24), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    other = TimmHiera(img_size=(32, 96), embed_dim=8, num_heads=1, stages=STAGES, q_pool=2, num_classes=0).double().eval()
    other.load_state_dict(theirs.state_dict() | {"pos_embed": table})
    wanted = other.head.norm(other.forward_features(x, return_intermediates=True)[1][-1]).flatten(1, 2)
    assert (found - wanted).abs().max() < 1e-9
    resized = Hiera(ours.config, token=(16, 16), channels=3, grid=(2, 6), required=RequiredFeatures()).double()
    resized.load_state_dict(ours.state_at((2, 6)))
    assert torch.equal(resized(tokenizer.split(x), (2, 6), None).last, found)


def masked_autoencoder(build: Build) -> MaskedModel:
    return build(
        (64, 64),
        tokenizer=Patches.Config(size=16),
        encoder=Hiera.Config(**SMALL),
        decoder=SelfAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="stages", positions="learned"),
        masker=RandomMasker.Config(ratio=0.6, unit=2),
    ).double()


def test_the_masked_autoencoder_equals_its_restatement(build: Build) -> None:
    """Restates Hiera's hiera_mae.py: convolutions whose stride is their kernel bring finer stages to the last one's size; the
    stages are summed and normed; positions are added to visible and mask tokens, all are decoded, and the loss takes the hidden
    tokens' pixels."""
    model = masked_autoencoder(build)
    encoder, decoder = model.encoder, model.decoder
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(3)), (4, 4))
    theirs = TimmHiera(img_size=(64, 64), embed_dim=8, num_heads=1, stages=STAGES, q_pool=2, num_classes=0).double()
    theirs.load_state_dict({**theirs.state_dict(), **encoder.state_dict()})  # timm's head.norm is not used
    index = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    keep = torch.stack([torch.isin(index[:, 0], row) for row in mask.visible])
    _, stages = theirs.forward_features(x, mask=keep, return_intermediates=True)
    fused = stages[-1]  # (B, u, 2, 2, D)
    for stage, embed, side in zip(stages, decoder.fusion.embeds, (4, 2), strict=False):
        flatter = F.conv2d(stage.flatten(0, 1).permute(0, 3, 1, 2), embed.proj.weight, embed.proj.bias, stride=side)
        fused = fused + flatter.permute(0, 2, 3, 1).unflatten(0, stage.shape[:2])
    tokens = decoder.embed(decoder.fusion.norm(fused)).flatten(1, 3)  # (B, u 4, d)
    every = decoder.mask_token.expand(3, 16, -1).clone()
    for row in range(3):
        every[row, index[keep[row]].flatten()] = tokens[row]
    every = every + decoder.pos_embed
    for block in decoder.blocks:
        every = block(every)
    values = decoder.head(decoder.norm(every))  # (B, 16, 768)
    patches = model.tokenizer.split(x)
    wanted = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter(1, mask.predict, True)
    loss = (values - wanted)[hidden].square().mean()
    assert hidden.sum() == 3 * 8  # 2 of 4 units are hidden, each of 4 tokens
    assert model(x, mask=mask).loss.item() == pytest.approx(loss.item(), rel=1e-9)


def test_what_does_not_fit_is_refused(build: Build) -> None:
    model = masked_autoencoder(build)
    x, tokens = torch.randn(1, 3, 64, 64, dtype=torch.float64), torch.arange(16)[None]
    with pytest.raises(ValueError, match=r"masker\.unit 2"):
        model(x, mask=Mask(tokens[:, :4], tokens[:, 4:]))
    with pytest.raises(ValueError, match="do not fill the input"):
        model.encode(torch.randn(1, 3, 48, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"tokenizer\.size 4"):
        build((64, 64), encoder=Hiera.Config(**SMALL), masker=RandomMasker.Config(unit=2))
    with pytest.raises(ValueError, match=r"units of 2 x 2 tokens; set masker\.unit"):
        build((64, 64), tokenizer=Patches.Config(size=16), encoder=Hiera.Config(**SMALL))
    parts = {"tokenizer": Patches.Config(size=16), "encoder": Hiera.Config(**SMALL)}
    with pytest.raises(ValueError, match=r"masker\.blank false"):
        build((64, 64), **{**parts, "masker": RandomMasker.Config(blank=True, unit=2)})
    with pytest.raises(ValueError, match=r"decoder\.fusion linear"):
        build(
            (64, 64),
            tokenizer=Patches.Config(size=16),
            encoder=Hiera.Config(**SMALL),
            decoder=SelfAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear"),
            masker=RandomMasker.Config(unit=2),
        )
    with pytest.raises(ValueError, match=r"decoder\.fusion stages"):
        build(decoder=SelfAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="stages"))
