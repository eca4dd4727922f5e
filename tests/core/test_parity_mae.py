"""Compares MAE with transformers and with a restatement: the loss and the gradient of every weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import restated_mae
import timm
import torch
from torch import Tensor, nn

from mmm import Input, Mask, MaskedModel, ModelConfig
from mmm.core.types import RequiredFeatures
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches


@dataclass(frozen=True)
class Sizes:
    image: tuple[int, int]
    patch: int
    encoder: tuple[int, int, int]  # width, depth, heads
    decoder: tuple[int, int, int]
    batch: int


TINY = Sizes((32, 32), 8, (48, 3, 4), (32, 2, 2), batch=3)
BASE = Sizes((224, 224), 16, (768, 12, 12), (512, 8, 16), batch=1)


def mae(sizes: Sizes, norm_pix: bool = True, epsilon: float = 1e-6) -> MaskedModel:
    width, depth, heads = sizes.encoder
    decoder_width, decoder_depth, decoder_heads = sizes.decoder
    config = ModelConfig(
        tokenizer=Patches.Config(size=sizes.patch),
        masker=RandomMasker.Config(ratio=0.75),
        encoder=VisionTransformer.Config(width=width, depth=depth, heads=heads, norm_epsilon=epsilon),
        decoder=SelfAttentionDecoder.Config(width=decoder_width, depth=decoder_depth, heads=decoder_heads, norm_epsilon=epsilon),
        target=PixelTarget.Config(standardise="patch" if norm_pix else "none"),
    )
    return MaskedModel.build(config, Input(size=sizes.image))


def draw(sizes: Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor, Mask]:
    """Returns images, transformers' noise, and the mask that transformers derives from that noise."""
    tokens = sizes.image[0] * sizes.image[1] // sizes.patch**2
    noise = torch.rand(sizes.batch, tokens)
    order = noise.argsort(dim=1)
    images = torch.randn(sizes.batch, 3, *sizes.image, dtype=dtype)
    return images, noise, Mask(order[:, : tokens // 4], order[:, tokens // 4 :])


# --- transformers -----------------------------------------------------------------------------------------------------------

BLOCK = {
    "norm1": ["layernorm_before"],
    "norm2": ["layernorm_after"],
    "attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "attn.proj": ["attention.o_proj"],
    "mlp.fc1": ["mlp.fc1"],
    "mlp.fc2": ["mlp.fc2"],
}
OUTSIDE = {
    "encoder.cls_token": "vit.embeddings.cls_token",
    "encoder.pos_embed": "vit.embeddings.position_embeddings",
    "encoder.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "encoder.norm": "vit.layernorm",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.pos_embed": "decoder.decoder_pos_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder.head": "decoder.decoder_pred",
}


def their_names(ours: str) -> list[str]:
    """Returns the names in transformers 5's ViTMAE whose tensors, concatenated, make one of ours."""
    side, *rest = ours.split(".")
    if rest[0] == "blocks":
        stack = {"encoder": "vit.layers", "decoder": "decoder.decoder_layers"}[side]
        inner, kind = ".".join(rest[2:-1]), rest[-1]
        return [f"{stack}.{rest[1]}.{name}.{kind}" for name in BLOCK[inner]]
    if ours in OUTSIDE:
        return [OUTSIDE[ours]]
    stem, kind = ours.rsplit(".", 1)
    return [f"{OUTSIDE[stem]}.{kind}"]


def as_ours(theirs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Returns transformers' tensors under our names, and asserts that each is used."""
    found = {name: torch.cat([theirs[part] for part in their_names(name)]) for name in names}
    used = {part for name in names for part in their_names(name)}
    assert used == set(theirs), f"left over: {sorted(set(theirs) - used)}"
    return found


def transformers_mae(sizes: Sizes, dtype: torch.dtype) -> nn.Module:
    """Returns transformers' model with random weights and position tables, which 5.23 leaves at zero in a model that is not
    loaded."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=sizes.image[0],
        patch_size=sizes.patch,
        hidden_size=sizes.encoder[0],
        num_hidden_layers=sizes.encoder[1],
        num_attention_heads=sizes.encoder[2],
        intermediate_size=4 * sizes.encoder[0],
        decoder_hidden_size=sizes.decoder[0],
        decoder_num_hidden_layers=sizes.decoder[1],
        decoder_num_attention_heads=sizes.decoder[2],
        decoder_intermediate_size=4 * sizes.decoder[0],
        layer_norm_eps=1e-12,
        attn_implementation="sdpa",  # transformers' eager softmax is not in fp64
    )
    with torch.device("meta"):
        model = ViTMAEForPreTraining(config)
    noisy(model.to_empty(device="cpu").to(dtype))
    return model.train()


def noisy(model: nn.Module) -> None:
    """Draws weights as large as a trained model's; none is 0 or 1, so that every bias, norm and position affects the comparison."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=1 / math.sqrt(weight.shape[-1]) if weight.dim() == 2 else 0.1)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)


def pair(sizes: Sizes, dtype: torch.dtype) -> tuple[nn.Module, MaskedModel]:
    theirs, ours = transformers_mae(sizes, dtype), mae(sizes, epsilon=1e-12).to(dtype)
    ours.load_state_dict(as_ours(theirs.state_dict(), list(ours.state_dict())))
    return theirs, ours


def gradient_error(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Returns the largest ||a - b|| / max(||b||, 1e-6 of the whole gradient's norm), and its name. Key biases have no gradient,
    hence the minimum."""
    assert set(ours) == set(expected)
    whole = math.sqrt(sum(float(b.norm()) ** 2 for b in expected.values()))
    assert whole > 0
    return max((float((ours[name] - b).norm()) / max(float(b.norm()), 1e-6 * whole), name) for name, b in expected.items())


def compare(theirs: nn.Module, ours: MaskedModel, sizes: Sizes, dtype: torch.dtype, norm_pix: bool) -> tuple[float, float, str]:
    """Returns the relative error of the loss, the largest error of a gradient, and its name."""
    theirs.config.norm_pix_loss = norm_pix
    ours.target.config = replace(ours.target.config, standardise="patch" if norm_pix else "none")
    images, noise, mask = draw(sizes, dtype)
    expected = theirs(images, noise=noise).loss
    theirs.zero_grad(), expected.backward()
    ours.zero_grad()
    output = ours(images, mask=mask)
    output.loss.backward()
    assert output.loss.dtype == dtype
    trained = [name for name, weight in ours.named_parameters() if weight.requires_grad]
    named = {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}
    gradients = as_ours({name: weight.grad for name, weight in named.items()}, trained)
    worst, where = gradient_error({name: ours.get_parameter(name).grad for name in trained}, gradients)
    return abs(output.loss.item() / expected.item() - 1), worst, where


LIMITS = {torch.float32: (1e-6, 5e-5), torch.float64: (1e-9, 1e-9)}


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param(TINY, torch.float32, id="tiny-fp32"),
        pytest.param(TINY, torch.float64, id="tiny-fp64"),
        pytest.param(BASE, torch.float32, id="base-fp32", marks=pytest.mark.slow),
        pytest.param(BASE, torch.float64, id="base-fp64", marks=pytest.mark.slow),
    ],
)
def test_transformers_gives_the_same_loss_and_gradients(sizes: Sizes, dtype: torch.dtype) -> None:
    theirs, ours = pair(sizes, dtype)
    for norm_pix in (True, False):
        off, worst, where = compare(theirs, ours, sizes, dtype, norm_pix)
        assert off <= LIMITS[dtype][0], f"norm_pix {norm_pix}: the loss is off by {off:.1e}"
        assert worst <= LIMITS[dtype][1], f"norm_pix {norm_pix}: the gradient of {where} is off by {worst:.1e}"


@pytest.mark.parametrize("image", [(48, 64), (16, 40)], ids=["larger", "smaller"])
def test_at_another_size_features_equal_transformers_own_interpolation(image: tuple[int, int]) -> None:
    """Compares the encoder only. transformers' decoder interpolates its flattened table along one axis, so its positions differ."""
    theirs, ours = pair(TINY, torch.float64)
    images, noise, _ = draw(replace(TINY, image=image), torch.float64)
    theirs.config.mask_ratio = 0.0
    in_order = torch.arange(noise.shape[1]).repeat(len(images), 1)
    features = theirs.vit(images, noise=in_order, interpolate_pos_encoding=True).last_hidden_state
    assert (ours.encode(images).last - features).abs().max() <= 1e-12


@pytest.mark.parametrize("image", [(48, 64), (16, 40)], ids=["larger", "smaller"])
def test_at_another_size_features_equal_timms_own_interpolation(image: tuple[int, int]) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=0, dynamic_img_size=True)
    noisy(theirs.double())
    config = VisionTransformer.Config(size="tiny", depth=2, positions="learned", resize_positions="antialias")
    ours = VisionTransformer(config, token=(8, 8), channels=3, grid=(4, 4), required=RequiredFeatures()).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, *image, dtype=torch.float64)
    patches = Patches(Patches.Config(size=8), channels=3)
    found = ours(patches.split(images), patches.grid(images), None).last
    # timm interpolates in fp32 for any precision of the model
    assert (found - theirs.eval().forward_features(images)).abs().max() <= 1e-5


def test_the_comparison_itself_sees_a_wrong_epsilon() -> None:
    """The limits are tight enough to tell layer-norm epsilons 1e-12 and 1e-6 apart in fp64."""
    theirs, ours = pair(TINY, torch.float64)
    for part in ours.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-6
    off, worst, _ = compare(theirs, ours, TINY, torch.float64, True)
    assert off > 1e-9
    assert worst > 1e-9


# --- a restatement ----------------------------------------------------------------------------------------------------------


def official_name(ours: str) -> str:
    """Returns the weight's name in MAE's released files."""
    side, rest = ours.split(".", 1)
    if side == "encoder":
        return rest
    if rest == "mask_token":
        return rest
    return "decoder_" + {"head": "pred"}.get(rest.split(".")[0], rest.split(".")[0]) + rest[len(rest.split(".")[0]) :]


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("image", [(32, 32), (16, 40)], ids=["square", "oblong"])
def test_a_second_statement_gives_the_same_loss_and_gradients(image: tuple[int, int], norm_pix: bool, disturb) -> None:
    sizes = replace(TINY, image=image, batch=2)
    ours = disturb(mae(sizes, norm_pix)).double()
    images, _, mask = draw(sizes, torch.float64)
    weights = {
        official_name(name): weight.detach().clone().requires_grad_()
        for name, weight in ours.named_parameters()
        if weight.requires_grad
    }
    expected = restated_mae.loss(images, weights, mask.visible.tolist(), sizes.patch, sizes.encoder[2], sizes.decoder[2], norm_pix)
    expected.backward()
    output = ours(images, mask=mask)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    mine = {official_name(name): weight.grad for name, weight in ours.named_parameters() if weight.requires_grad}
    worst, where = gradient_error(mine, {name: weight.grad for name, weight in weights.items()})
    assert worst <= 1e-9, where


def test_position_tables_equal_the_second_statement() -> None:
    model = mae(replace(TINY, image=(16, 40)))
    for part, width in ((model.encoder, 48), (model.decoder, 32)):
        assert (part.pos_embed[0] - restated_mae.table(2, 5, width)).abs().max() <= 6e-8  # fp32 rounding of values up to 1
        assert not part.pos_embed.requires_grad


# --- sizes, initialisation, timm --------------------------------------------------------------------------------------------

MAE, CROSSMAE = SelfAttentionDecoder.Config(), CrossAttentionDecoder.Config(fusion="linear")
PUBLISHED = [  # the released models: total, trainable, keys of the state dict
    pytest.param("base", 16, MAE, (111_907_840, 111_655_680, 254), id="mae-b"),
    pytest.param("large", 16, MAE, (329_541_888, 329_239_296, 398), id="mae-l"),
    pytest.param("huge", 14, MAE, (657_074_508, 656_613_964, 494), id="mae-h"),
    pytest.param("small", 16, replace(CROSSMAE, width=256, heads=8), (32_186_396, 32_060_316, 347), id="crossmae-s"),
    pytest.param("base", 16, CROSSMAE, (127_286_428, 127_034_268, 347), id="crossmae-b"),
    pytest.param("large", 16, CROSSMAE, (347_940_908, 347_638_316, 491), id="crossmae-l"),
]


@pytest.mark.parametrize(("size", "patch", "decoder", "published"), PUBLISHED)
def test_parameter_totals_equal_the_published_models(size, patch, decoder, published) -> None:
    config = ModelConfig(
        tokenizer=Patches.Config(size=patch),
        masker=RandomMasker.Config(),
        encoder=VisionTransformer.Config(size=size),
        decoder=decoder,
        target=PixelTarget.Config(),
    )
    with torch.device("meta"):
        model = MaskedModel.build(config, Input(size=(224, 224)))
    weights = list(model.parameters())
    counted = sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad), len(model.state_dict())
    assert counted == published


def test_initialisation_is_maes() -> None:
    model = mae(replace(TINY, encoder=(192, 1, 3), decoder=(128, 1, 4)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):  # qkv is one matrix
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.99 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    proj = model.encoder.patch_embed.proj
    assert 0.99 * math.sqrt(6 / (192 + 192)) < proj.weight.abs().max() <= math.sqrt(6 / (192 + 192))  # P = 8 * 8 * 3 = 192
    assert 0.9 / math.sqrt(192) < proj.bias.abs().max() <= 1 / math.sqrt(192)  # the convolution's default, not zero
    assert model.encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.2)


def photographs(folder: Path, many: int) -> Tensor:
    """Returns real photographs, 224 x 224, normalised, (B, 3, 224, 224)."""
    import numpy
    from PIL import Image

    files = sorted(folder.glob("images/train/*/*.JPEG"))[:many]
    assert len(files) == many
    pixels = [numpy.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(numpy.stack(pixels)).float() / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("size", "name"), [("tiny", "vit_tiny"), ("small", "vit_small"), ("base", "vit_base")])
def test_timm_takes_the_encoder_and_gives_the_same_features(size: str, name: str, real_data: Path) -> None:
    config = VisionTransformer.Config(size=size)
    with torch.device("meta"):
        encoder = VisionTransformer(config, token=(16, 16), channels=3, grid=(14, 14), required=RequiredFeatures())
        other = timm.create_model(f"{name}_patch16_224", num_classes=0)
    noisy(encoder.to_empty(device="cpu"))
    other.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    x = photographs(real_data, 2)
    encoder.eval(), other.eval()
    with torch.no_grad():
        ours, theirs = encoder(Patches(Patches.Config(), channels=3).split(x), (14, 14), None).last, other.forward_features(x)
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() <= 1e-5
