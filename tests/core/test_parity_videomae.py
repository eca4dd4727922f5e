"""Compares VideoMAE with transformers and with a restatement: the loss and the gradient of every weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import restated_videomae
import torch
from test_parity_mae import LIMITS, gradient_error, noisy
from torch import Tensor, nn

from mmm import Input, Mask, MaskedModel, ModelConfig
from mmm.core.positions import flat_sine_cosine
from mmm.core.rng import sample_keys
from mmm.core.types import RequiredFeatures
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.layers.transformer import QueryValueLinear
from mmm.maskers import TubeMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Tubes


@dataclass(frozen=True)
class Sizes:
    clip: tuple[int, int, int]
    patch: int
    encoder: tuple[int, int, int]  # width, depth, heads
    decoder: tuple[int, int, int]
    batch: int
    ratio: float = 0.75

    @property
    def grid(self) -> tuple[int, int, int]:
        frames, height, width = self.clip
        return frames // 2, height // self.patch, width // self.patch


TINY = Sizes((6, 16, 24), 8, (48, 3, 4), (32, 2, 2), batch=3, ratio=0.5)
BASE = Sizes((16, 224, 224), 16, (768, 12, 12), (384, 4, 6), batch=1, ratio=0.9)


def videomae(sizes: Sizes, standardised: bool = True, epsilon: float = 1e-6, head_epsilon: float | None = None) -> MaskedModel:
    """Builds VideoMAE from its parts."""
    (width, depth, heads), (inner, layers, decoder_heads) = sizes.encoder, sizes.decoder
    config = ModelConfig(
        tokenizer=Tubes.Config(size=sizes.patch, frames=2),
        masker=TubeMasker.Config(ratio=sizes.ratio),
        encoder=VisionTransformer.Config(
            width=width,
            depth=depth,
            heads=heads,
            class_token=False,
            positions="flat_sine_cosine",
            qkv_bias="qv",
            embed_init="torch",
            norm_epsilon=epsilon,
        ),
        decoder=SelfAttentionDecoder.Config(
            width=inner,
            depth=layers,
            heads=decoder_heads,
            positions="flat_sine_cosine",
            qkv_bias="qv",
            embed_bias=False,
            embed_init="torch",
            norm_epsilon=epsilon,
            head_epsilon=head_epsilon,
        ),
        target=PixelTarget.Config(standardise="channel" if standardised else "none", epsilon_inside=False, pixels="unit"),
    )
    return MaskedModel.build(config, Input(size=sizes.clip))


def draw(sizes: Sizes, model: MaskedModel, dtype: torch.dtype) -> tuple[Tensor, Mask]:
    """Returns clips, and the mask that the model's own masker draws."""
    clips = torch.randn(sizes.batch, 3, *sizes.clip, dtype=dtype)
    return clips, model.masker(sample_keys(3, 0, torch.arange(sizes.batch)), sizes.grid)


def hidden_map(mask: Mask, tokens: int) -> Tensor:
    """Returns a mask as other libraries take it: (B, N), true for hidden tokens."""
    return torch.ones(len(mask.visible), tokens).scatter(1, mask.visible, 0.0).bool()


def in_order(mask: Mask) -> Mask:
    """Returns the same tokens in raster order, as a 0/1 map lists them."""
    return Mask(mask.visible.sort(dim=1).values, mask.predict.sort(dim=1).values)


# --- transformers -----------------------------------------------------------------------------------------------------------

BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
OUTSIDE = {
    "encoder.patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "encoder.norm": "videomae.layernorm",
    "decoder.embed": "encoder_to_decoder",
    "decoder.mask": "mask",
    "decoder.norm": "decoder.norm",
    "decoder.head": "decoder.head",
}


def their_names(ours: str) -> list[str]:
    """Returns the names in transformers 5's VideoMAE whose tensors, concatenated, make one of ours."""
    if ours == "decoder.mask_token":
        return ["mask_token"]
    stem, kind = ours.rsplit(".", 1)
    side, *rest = stem.split(".")
    if rest[0] != "blocks":
        return [f"{OUTSIDE[stem]}.{kind}"]
    at = f"{'videomae.encoder.layer' if side == 'encoder' else 'decoder.decoder_layers'}.{rest[1]}."
    inner = ".".join(rest[2:])
    if inner != "attn.qkv":
        return [f"{at}{BLOCK[inner]}.{kind}"]
    parts = {"weight": ("query.weight", "key.weight", "value.weight"), "q_bias": ("query.bias",), "v_bias": ("value.bias",)}
    return [f"{at}attention.attention.{part}" for part in parts[kind]]


def as_ours(theirs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Returns transformers' tensors under our names, and asserts that each is used."""
    found = {name: torch.cat([theirs[part] for part in their_names(name)]) for name in names}
    used = {part for name in names for part in their_names(name)}
    assert used == set(theirs), f"left over: {sorted(set(theirs) - used)}"
    return found


def transformers_videomae(sizes: Sizes, dtype: torch.dtype) -> nn.Module:
    """Returns transformers' model with random weights; its position tables are not parameters and stay unchanged."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    config = VideoMAEConfig(
        image_size=list(sizes.clip[1:]),
        patch_size=sizes.patch,
        num_frames=sizes.clip[0],
        tubelet_size=2,
        hidden_size=sizes.encoder[0],
        num_hidden_layers=sizes.encoder[1],
        num_attention_heads=sizes.encoder[2],
        intermediate_size=4 * sizes.encoder[0],
        decoder_hidden_size=sizes.decoder[0],
        decoder_num_hidden_layers=sizes.decoder[1],
        decoder_num_attention_heads=sizes.decoder[2],
        decoder_intermediate_size=4 * sizes.decoder[0],
        use_mean_pooling=False,  # if true, transformers builds no final norm in the encoder
        attn_implementation="sdpa",  # transformers' eager softmax is not in fp64
    )
    model = VideoMAEForPreTraining(config).to(dtype)
    noisy(model)
    return model.train()


def pair(sizes: Sizes, dtype: torch.dtype) -> tuple[nn.Module, MaskedModel]:
    """Returns transformers' model and ours with the same weights; the norms have 1e-12, except the decoder's last, which has
    1e-5."""
    theirs, ours = transformers_videomae(sizes, dtype), videomae(sizes, epsilon=1e-12, head_epsilon=1e-5).to(dtype)
    own = [name for name in ours.state_dict() if not name.endswith("pos_embed")]
    left = ours.load_state_dict(as_ours(theirs.state_dict(), own), strict=False)
    assert left.missing_keys == ["encoder.pos_embed", "decoder.pos_embed"]
    return theirs, ours


def compare(theirs: nn.Module, ours: MaskedModel, sizes: Sizes, dtype: torch.dtype, standardised: bool) -> tuple[float, float, str]:
    """Returns the relative error of the loss, the largest error of a gradient, and its name."""
    theirs.config.norm_pix_loss = standardised
    ours.target.config = replace(ours.target.config, standardise="channel" if standardised else "none")
    clips, mask = draw(sizes, ours, dtype)
    expected = theirs(clips.transpose(1, 2), bool_masked_pos=hidden_map(mask, math.prod(sizes.grid))).loss
    theirs.zero_grad(), expected.backward()
    ours.zero_grad()
    output = ours(clips, mask=mask)
    output.loss.backward()
    assert output.loss.dtype == dtype
    trained = {name: weight.grad for name, weight in ours.named_parameters() if weight.requires_grad}
    gradients = as_ours({name: weight.grad for name, weight in theirs.named_parameters()}, list(trained))
    worst, where = gradient_error(trained, gradients)
    return abs(output.loss.item() / expected.item() - 1), worst, where


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
    for standardised in (True, False):
        off, worst, where = compare(theirs, ours, sizes, dtype, standardised)
        print(f"standardised {standardised}: loss off by {off:.1e}, gradient by {worst:.1e} ({where})")  # shown by pytest -s
        assert off <= LIMITS[dtype][0], f"standardised {standardised}: the loss is off by {off:.1e}"
        assert worst <= LIMITS[dtype][1], f"standardised {standardised}: the gradient of {where} is off by {worst:.1e}"


def test_the_comparison_itself_sees_a_wrong_epsilon() -> None:
    """The limits are tight enough to tell an epsilon of 1e-5 from one of 1e-12 in the last norm alone, in fp64."""
    theirs, ours = pair(TINY, torch.float64)
    ours.decoder.norm.eps = 1e-12
    off, worst, _ = compare(theirs, ours, TINY, torch.float64, True)
    assert off > 1e-9
    assert worst > 1e-9


@pytest.mark.parametrize(("tokens", "width"), [(1568, 768), (1568, 384), (30, 18)])
def test_position_tables_are_the_published_ones(tokens: int, width: int) -> None:
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    ours = flat_sine_cosine(tokens, width)
    assert torch.equal(ours.float(), get_sinusoid_encoding_table(tokens, width)[0])
    assert (ours[:30] - restated_videomae.table(30, width)).abs().max() <= 1e-12


# --- a restatement ----------------------------------------------------------------------------------------------------------


def official_name(ours: str) -> str:
    """Returns the weight's name in VideoMAE's released files."""
    special = {"decoder.embed.weight": "encoder_to_decoder.weight", "decoder.mask_token": "mask_token"}
    return special.get(ours, ours.replace(".qkv.q_bias", ".q_bias").replace(".qkv.v_bias", ".v_bias"))


@pytest.mark.parametrize("standardised", [True, False])
@pytest.mark.parametrize("clip", [(4, 16, 16), (6, 8, 24)], ids=["square", "oblong"])
def test_a_second_statement_gives_the_same_loss_and_gradients(clip: tuple[int, int, int], standardised: bool, disturb) -> None:
    sizes = replace(TINY, clip=clip, batch=2, encoder=(24, 2, 2), decoder=(16, 2, 4))
    ours = disturb(videomae(sizes, standardised)).double()
    clips, mask = draw(sizes, ours, torch.float64)
    trained = {name: weight for name, weight in ours.named_parameters() if weight.requires_grad}
    weights = {official_name(name): weight.detach().clone().requires_grad_() for name, weight in trained.items()}
    hidden = [restated_videomae.tube(bits[: math.prod(sizes.grid[1:])], sizes.grid[0]) for bits in tube_maps(mask, sizes)]
    expected = restated_videomae.loss(clips, weights, hidden, 2, sizes.patch, sizes.encoder[2], sizes.decoder[2], standardised)
    expected.backward()
    output = ours(clips, mask=mask)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    worst, where = gradient_error({official_name(n): w.grad for n, w in trained.items()}, {n: w.grad for n, w in weights.items()})
    assert worst <= 1e-9, where


def tube_maps(mask: Mask, sizes: Sizes) -> list[list[int]]:
    return [[int(bit) for bit in row] for row in hidden_map(mask, math.prod(sizes.grid))]


@pytest.mark.parametrize("standardised", [True, False])
def test_targets_are_the_second_statements(standardised: bool) -> None:
    sizes = replace(TINY, batch=2)
    model = videomae(sizes, standardised)
    clips, mask = draw(sizes, model, torch.float64)
    mask = in_order(mask)
    expected = model.double()(clips, mask=mask).target
    for row, clip, places in zip(expected, clips, mask.predict, strict=True):
        assert (row - restated_videomae.targets(clip, 2, sizes.patch, standardised)[places]).abs().max() <= 1e-12


@pytest.mark.parametrize(("ratio", "seen"), [(0.9, 160), (0.75, 392)])
def test_tubes_hide_as_many_places_as_published(ratio: float, seen: int) -> None:
    masker = TubeMasker(TubeMasker.Config(ratio=ratio))
    mask = masker(sample_keys(0, 0, torch.arange(4)), (8, 14, 14))
    assert mask.visible.shape == (4, seen)
    for row in hidden_map(mask, 1568):
        frame = [int(bit) for bit in row[:196]]
        assert sum(frame) == restated_videomae.hidden_places(196, ratio) == {0.9: 176, 0.75: 147}[ratio]
        assert [int(bit) for bit in row] == restated_videomae.tube(frame, 8)


# --- sizes, initialisation, other grids, precision --------------------------------------------------------------------------

PUBLISHED = [  # total, encoder, decoder, names in a file, as released
    pytest.param((384, 12, 6), (192, 4, 3), (24_029_376, 21_879_936, 2_075_520, 218), id="small"),
    pytest.param((768, 12, 12), (384, 4, 6), (94_210_944, 86_227_200, 7_688_448, 218), id="base"),
    pytest.param((1024, 24, 16), (512, 12, 8), (342_996_992, 303_860_736, 38_611_456, 478), id="large"),
    pytest.param((1280, 32, 16), (640, 12, 8), (692_487_296, 631_607_040, 60_060_416, 582), id="huge"),
]


@pytest.mark.parametrize(("encoder", "decoder", "published"), PUBLISHED)
def test_parameter_totals_equal_the_published_models(encoder, decoder, published) -> None:
    with torch.device("meta"):
        model = videomae(replace(BASE, encoder=encoder, decoder=decoder))
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(model.state_dict()) - set(trained) == {"encoder.pos_embed", "decoder.pos_embed"}  # in no released file
    own = sum(count for name, count in trained.items() if name.startswith("encoder."))
    between = ("decoder.embed.weight", "decoder.mask_token")  # part of neither count
    other = sum(count for name, count in trained.items() if name.startswith("decoder.") and name not in between)
    assert (sum(trained.values()), own, other, len(trained)) == published


def test_initialisation_is_videomaes() -> None:
    model = videomae(replace(TINY, encoder=(192, 1, 3), decoder=(128, 1, 4)))
    inputs = {"encoder.patch_embed.proj": 2 * 8 * 8 * 3, "decoder.embed": 192}  # torch's default: uniform within 1 / sqrt(inputs)
    for name, module in model.named_modules():
        if name in inputs:
            bound = 1 / math.sqrt(inputs[name])
        elif isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert module.bias is None or not module.bias.any(), name
        else:
            continue
        assert 0.99 * bound < module.weight.abs().max() <= bound, name
        assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    bias = model.encoder.patch_embed.proj.bias
    assert 0.9 / math.sqrt(384) < bias.abs().max() <= 1 / math.sqrt(384)
    attention = model.encoder.blocks[0].attn.qkv
    assert not attention.q_bias.any()
    assert not attention.v_bias.any()


@pytest.mark.parametrize("decoder", [SelfAttentionDecoder, CrossAttentionDecoder])
def test_flat_positions_are_resized_and_at_home_are_themselves(decoder, build) -> None:
    """For a clip of another length or size, places of the plane keep their positions, and places in between get interpolated
    ones."""
    model = build(
        size=(4, 12, 16),  # 2 x 3 x 4 tubes
        encoder=VisionTransformer.Config(width=24, depth=1, heads=2, class_token=False, positions="flat_sine_cosine"),
        decoder=decoder.Config(width=16, depth=1, heads=2, positions="flat_sine_cosine"),
    )
    proj = model.encoder.patch_embed.proj
    proj.weight.data.zero_(), proj.bias.data.zero_()

    def places(grid: tuple[int, int, int]) -> Tensor:
        tokens = math.prod(grid)
        return model.encoder.embed(torch.zeros(1, tokens, 96), torch.arange(tokens)[None], grid)[0]

    home = flat_sine_cosine(24, 24).float()
    assert torch.equal(places((2, 3, 4)), home)
    long = places((4, 3, 4)).view(4, 12, 24)
    assert torch.allclose(long[0], home[:12])
    assert torch.allclose(long[1], 0.75 * home[:12] + 0.25 * home[12:], atol=1e-6)
    assert places((2, 5, 8)).shape == (80, 24)
    away = torch.randn(2, 3, 8, 12, 16)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), (4, 3, 4))
    moved = model(away, mask=mask).prediction
    model.decoder.home = (4, 3, 2)  # this changes something only because the decoder's positions are resized from its home grid
    assert not torch.equal(model(away, mask=mask).prediction, moved)


@pytest.mark.parametrize("kind", ["qv", "none"])
def test_biases_of_attention(kind: str) -> None:
    encoder = VisionTransformer.Config(width=24, depth=2, heads=2, qkv_bias=kind)
    whole = VisionTransformer.Config(width=24, depth=2, heads=2)
    built = {"token": (4, 4), "channels": 3, "grid": (3, 4)}
    ours, timms = (VisionTransformer(config, required=RequiredFeatures(), **built).double() for config in (encoder, whole))
    with torch.no_grad():
        for block in ours.blocks:
            if kind == "qv":
                block.attn.qkv.q_bias.normal_(), block.attn.qkv.v_bias.normal_()
    state = ours.state_dict()
    for index, block in enumerate(ours.blocks):
        qkv = block.attn.qkv
        key = torch.randn(24, dtype=torch.float64)  # has no effect
        sides = (qkv.q_bias, qkv.v_bias) if isinstance(qkv, QueryValueLinear) else (torch.zeros(24), torch.zeros(24))
        state[f"blocks.{index}.attn.qkv.bias"] = torch.cat([sides[0], key, sides[1]])
        state.pop(f"blocks.{index}.attn.qkv.q_bias", None), state.pop(f"blocks.{index}.attn.qkv.v_bias", None)
    timms.load_state_dict(state)
    patches = torch.randn(2, 12, 48, dtype=torch.float64)
    assert (ours(patches, (3, 4), None).last - timms(patches, (3, 4), None).last).abs().max() <= 1e-12


def test_half_precision(disturb) -> None:
    sizes = replace(TINY, encoder=(24, 1, 2), decoder=(16, 1, 2))
    model = disturb(videomae(sizes))
    clips, mask = draw(sizes, model, torch.float32)
    expected = model(clips, mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(clips, mask=mask)
    assert half.prediction.dtype == torch.bfloat16
    assert half.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)


@pytest.mark.slow  # the compiler takes seconds to import
def test_one_graph_holds_all_of_it(disturb) -> None:
    sizes = replace(TINY, encoder=(24, 1, 2), decoder=(16, 1, 2))
    model = disturb(videomae(sizes))
    clips, mask = draw(sizes, model, torch.float32)
    expected = model(clips, mask=mask)
    graphs = torch.compile(model, backend="aot_eager", fullgraph=True)  # eager kernels: only the graph is tested
    assert graphs(clips, mask=mask).loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
