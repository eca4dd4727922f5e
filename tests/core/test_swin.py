"""Compares Swin with timm and transformers, with mask tokens and on the grid that uniform masks leave, in fp64."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from transformers import SwinConfig, SwinForMaskedImageModeling

from mmm import Mask, MaskedModel
from mmm.classifier import Classifier
from mmm.core.rng import sample_keys
from mmm.core.types import Input, RequiredFeatures
from mmm.decoders import LinearDecoder, SelfAttentionDecoder
from mmm.encoders import Swin
from mmm.evaluate.loaded_model import model_config
from mmm.maskers import RandomMasker, UniformMasker, maskers
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.weights.load import without_head

Build = Callable[..., MaskedModel]
SMALL = {"width": 8, "heads": 1, "stages": (1, 2, 2), "patch": 2, "window": 4}  # tokens of 8 pixels


def disturbed(model: nn.Module) -> Any:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model.double().eval()


def timms(size: tuple[int, int]) -> Any:
    return SwinTransformer(
        img_size=size,
        patch_size=2,
        embed_dim=8,
        depths=(1, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        num_classes=0,
        strict_img_size=False,
        drop_path_rate=0.0,
    )


def ours(grid: tuple[int, int], state: dict[str, Tensor], **options: Any) -> Swin:
    encoder = Swin(Swin.Config(**SMALL, **options), token=(8, 8), channels=3, grid=grid, required=RequiredFeatures())
    encoder.load_state_dict({name: value for name, value in state.items() if name != "mask_token"}, strict=True)
    return encoder.double().eval()


def split(x: Tensor) -> Tensor:
    return Patches(Patches.Config(size=8), channels=3).split(x)


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (40, 72)])  # the last stage has one window, two windows, or padding
def test_features_of_every_stage_equal_timms(size: tuple[int, int]) -> None:
    """Images of another size than the home size may have more windows to shift."""
    theirs = disturbed(timms(size))
    grid = (size[0] // 8, size[1] // 8)
    encoder = ours(grid, theirs.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    ends = [stage.block for stage in encoder.shape.stages]
    found = encoder(split(x), grid, None, blocks=tuple(ends))
    last, stages = theirs.forward_intermediates(x)
    for stage, one in zip(encoder.shape.stages, stages, strict=True):
        high, wide = stage.inner
        wanted = one.unflatten(3, (-1, wide)).unflatten(2, (-1, high)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        assert (found.blocks[stage.block] - wanted).abs().max() < 1e-9
    assert (found.last - last.flatten(1, 2)).abs().max() < 1e-9
    home = ours((4, 4), theirs.state_dict())  # windows have the same size, but are never shifted in the last stage
    assert (home(split(x), grid, None).last - found.last).abs().max() < 1e-9


@pytest.mark.filterwarnings("ignore")  # timm's interpolation
def test_a_smaller_home_has_smaller_windows_and_interpolates_their_biases() -> None:
    encoder = ours((4, 4), disturbed(timms((32, 32))).state_dict())
    other = Swin(encoder.config, token=(8, 8), channels=3, grid=(2, 2), required=RequiredFeatures())
    state = encoder.state_at((2, 2))
    other.load_state_dict(state)
    table = "layers.2.blocks.0.attn.relative_position_bias_table"
    assert state[table].shape == (9, 4)
    assert encoder.state_dict()[table].shape == (49, 4)
    assert torch.allclose(state[table][4], encoder.state_dict()[table][24], atol=1e-6)  # the bias of a token to itself


RULES = (  # transformers' names and timm's
    (r"swin\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"swin\.embeddings\.norm", "patch_embed.norm"),
    (r"swin\.embeddings\.mask_token", "mask_token"),
    (r"swin\.encoder\.layers", "layers"),
    (r"swin\.layernorm", "norm"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.o_proj", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
)


def encoder_state(theirs: nn.Module) -> dict[str, Tensor]:
    """Returns transformers' weights under our names: queries, keys and values as one, and a stage's merging in the next stage."""
    found: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        for old, new in RULES:
            name = re.sub(old, new, name)
        name = re.sub(r"layers\.(\d+)\.downsample", lambda at: f"layers.{int(at[1]) + 1}.downsample", name)
        if not name.startswith("decoder") and "relative_position_index" not in name:
            found[name] = value
    for name in [name for name in found if ".attention.q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        found[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return found


def test_simmim_equals_transformers(build: Build) -> None:
    """Compares Swin with mask tokens and one linear layer: the predictions of all tokens, and the loss."""
    config = SwinConfig(
        image_size=64,
        patch_size=2,
        embed_dim=8,
        depths=[1, 2, 2],
        num_heads=[1, 2, 4],
        window_size=4,
        encoder_stride=8,
        drop_path_rate=0.0,
    )
    theirs = disturbed(SwinForMaskedImageModeling(config))
    model = build(
        (64, 64),
        tokenizer=Patches.Config(size=8),
        encoder=Swin.Config(**SMALL),
        decoder=LinearDecoder.Config(),
        masker=RandomMasker.Config(ratio=0.6, blank=True),
        target=PixelTarget.Config(standardise="none", loss="l1"),
    ).double()
    model.encoder.load_state_dict(encoder_state(theirs), strict=True)
    head = theirs.decoder[0]  # a convolution whose outputs are shuffled to (c, i, j)
    order = torch.arange(192).view(3, 8, 8).permute(1, 2, 0).flatten()
    model.decoder.head.load_state_dict({"weight": head.weight.flatten(1)[order], "bias": head.bias[order]})
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (8, 8))
    hidden = torch.zeros(2, 64, dtype=torch.bool).scatter(1, mask.predict, True)
    fine = hidden.view(2, 8, 8).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)  # units of 2 pixels
    wanted = theirs(x, bool_masked_pos=fine)
    output = model(x, mask=mask)
    expected = split(wanted.reconstruction).gather(1, mask.predict[..., None].expand(-1, -1, 192))
    assert (output.prediction - expected).abs().max() < 1e-9
    assert output.loss.item() == pytest.approx(wanted.loss.item() * (1 + 1e-5 / (2 * 38 * 64)), rel=1e-8)


def uniform(samples: int, *, stay: int) -> tuple[Mask, Tensor]:
    """Returns a mask that shows one token of each 2 x 2 of 8 x 8, all but `stay` as blanks, and the shown tokens cell by cell."""
    place = torch.randint(4, (samples, 16))
    cell = torch.arange(16)
    shown = (2 * (cell // 4) + place // 2) * 8 + 2 * (cell % 4) + place % 2  # (B, 16)
    order = torch.rand(samples, 16).argsort(1)
    mixed = shown.gather(1, order)
    hidden = torch.stack([torch.tensor([token for token in range(64) if token not in row]) for row in shown.tolist()])
    return Mask(mixed[:, :stay], hidden, blank=mixed[:, stay:]), shown


def test_uniform_masks_leave_a_grid_for_it() -> None:
    """The shown tokens, side by side, form a smaller image; timm computes its features, which a linear layer expands to 2 x 2."""
    encoder = Swin(
        Swin.Config(**{**SMALL, "stages": (1, 2, 2, 1)}, expand=True),
        token=(8, 8),
        channels=3,
        grid=(8, 8),
        required=RequiredFeatures(),
    )
    deep = SwinTransformer(
        img_size=(32, 32),
        patch_size=2,
        embed_dim=8,
        depths=(1, 2, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_classes=0,
        drop_path_rate=0.0,
        strict_img_size=False,
        always_partition=True,
    )
    disturbed(deep)
    state = deep.state_dict()
    encoder.load_state_dict(state | {name: value for name, value in encoder.state_dict().items() if name.startswith("expand")})
    encoder = encoder.double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mask, shown = uniform(2, stay=16)
    found = encoder(split(x), (8, 8), Mask(mask.visible, mask.predict))
    patches = split(x).gather(1, shown[..., None].expand(-1, -1, 192))  # (B, 16, 192)
    small = Patches(Patches.Config(size=8), channels=3).join(patches, (4, 4))
    for stage, size in zip(deep.layers, (16, 8, 4, 2), strict=True):
        for block in stage.blocks:
            block.shift_size = tuple(step if size > 4 else 0 for step in block.target_shift_size)
    features = encoder.expand(deep.forward_features(small))  # (B, 2, 2, 4 D)
    wanted = features.unflatten(3, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5).reshape(2, 16, -1)
    for row in range(2):
        for number, token in enumerate(mask.visible[row].tolist()):
            assert (found.last[row, number] - wanted[row, shown[row].tolist().index(token)]).abs().max() < 1e-9


def test_umae_learns_from_a_part_of_them_as_blanks(build: Build) -> None:
    """The pixels of hidden tokens and of blanks have no effect."""
    model = build(
        (64, 64),
        tokenizer=Patches.Config(size=8),
        encoder=Swin.Config(**{**SMALL, "stages": (1, 1, 1, 1)}, expand=True),
        decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
        masker=UniformMasker.Config(),
    )
    x = torch.randn(2, 3, 64, 64)
    assert model(x).prediction.shape == (2, 48, 192)
    mask, _ = uniform(2, stay=12)
    output = model(x, mask=mask)
    assert output.prediction.shape == (2, 48, 192)
    output.loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.encoder.parameters())
    noise = split(x).scatter(1, mask.predict[..., None].expand(-1, -1, 192), 9.0)
    noise = noise.scatter(1, mask.blank[..., None].expand(-1, -1, 192), 9.0)
    assert torch.equal(model.encoder(noise, (8, 8), mask).last, model.encoder(split(x), (8, 8), mask).last)


def test_masks_that_leave_no_grid_are_refused(build: Build) -> None:
    """Without the check, a random quarter of the tokens would be encoded in a wrong order on a GPU."""
    small: dict[str, Any] = {"tokenizer": Patches.Config(size=8), "encoder": Swin.Config(**SMALL)}
    for masker in (RandomMasker.Config(), UniformMasker.Config(unit=2)):
        with pytest.raises(ValueError, match=rf"{masker.name} masks leave no whole grid.* set masker\.blank, or .*uniform"):
            build((64, 64), masker=masker, **small)
    build((64, 64), masker=UniformMasker.Config(unit=2, blank=True), **small)
    model, x = build((64, 64), masker=UniformMasker.Config(), **small), torch.randn(2, 3, 64, 64)
    painted = torch.ones(64, 64)
    painted[:32, :32] = 0  # a quarter of the tokens is visible
    for name, draw in {
        "random": lambda: model.draw_masks(x, masker=maskers.build(RandomMasker.Config())),
        "random ": lambda: model.reconstruct(x, ratio=0.75),
        "painted": lambda: model.reconstruct(x, hidden=painted),
    }.items():
        with pytest.raises(ValueError, match=f"{name.strip()} masks leave no whole grid"):
            draw()


def test_the_encoder_of_a_classifier_has_an_untrained_copy(build: Build) -> None:
    """The masker of a model without a head leaves a grid."""
    encoder, tokenizer = ours((8, 8), timms((64, 64)).state_dict()).float(), Patches(Patches.Config(size=8), channels=3)
    data = Input(size=(64, 64))
    found = without_head(Classifier.build(tokenizer, encoder, classes=2, data=data), "it")
    untrained = MaskedModel.build(model_config(found), data)
    assert untrained.encoder.state_dict().keys() == found.encoder.state_dict().keys()


def test_what_does_not_fit_is_refused(build: Build) -> None:
    small: dict[str, Any] = {"encoder": Swin.Config(**SMALL), "masker": UniformMasker.Config()}
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"tokenizer\.size 4"):
        build((64, 64), **small)
    with pytest.raises(ValueError, match="for images"):
        build((4, 64, 64), **small)
    small["tokenizer"] = Patches.Config(size=8)
    tokens = torch.arange(64).expand(2, -1)
    for seen, words in ((32, r"shows 32 of 64 tokens; .*masker\.blank"), (16, "one of each 2 x 2")):
        with pytest.raises(ValueError, match=words):
            build((64, 64), **small)(x, mask=Mask(tokens[:, :seen], tokens[:, seen:]))
    with pytest.raises(ValueError, match="one of each 2 x 2"):
        build((64, 64), **small)(x, mask=Mask(tokens[:, :16], tokens[:, 16:]))
