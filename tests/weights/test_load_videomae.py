"""Files in VideoMAE's official layout load with VideoMAE's loss, every name in them is checked, and they are written back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import restated_videomae
import torch
from safetensors.torch import save_file
from test_load_mae import assert_same, linear, norm
from torch import Tensor

from mmm import Mask, MaskedModel
from mmm.classifier import Classifier, HeadConfig
from mmm.core.types import RequiredFeatures
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import TubeMasker
from mmm.pools import MeanPool
from mmm.tokenizers import Tubes
from mmm.weights.build import build as build_parts
from mmm.weights.build import with_head
from mmm.weights.formats.base import find_input
from mmm.weights.formats.videomae import DECODER_HEADS, to_videomae
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load

Weights = dict[str, Tensor]
HEADS, SIDE, FRAMES = 2, 8, 4  # clips of 2 x 2 x 2 tubes of 2 frames and 4 x 4 pixels


def blocks(name: str, width: int, depth: int) -> Weights:
    made: Weights = {}
    for i in range(depth):
        at = f"{name}.{i}"
        made |= {f"{at}.attn.q_bias": 0.1 * torch.randn(width), f"{at}.attn.v_bias": 0.1 * torch.randn(width)}
        made |= {f"{at}.attn.qkv.weight": 0.2 * torch.randn(3 * width, width)} | linear(f"{at}.attn.proj", width, width)
        made |= norm(f"{at}.norm1", width) | norm(f"{at}.norm2", width)
        made |= linear(f"{at}.mlp.fc1", width, 4 * width) | linear(f"{at}.mlp.fc2", 4 * width, width)
    return made


def encoder_file(channels: int = 3) -> Weights:
    """Returns the encoder's weights under the names of fine-tuning, made from the published list."""
    made = {"patch_embed.proj.weight": 0.2 * torch.randn(16, channels, 2, 4, 4), "patch_embed.proj.bias": torch.randn(16)}
    return made | blocks("blocks", 16, 2) | norm("norm", 16)


def full_file(channels: int = 3) -> Weights:
    """Returns what pretraining's `checkpoint.pth` holds under `model`."""
    made = {f"encoder.{name}": value for name, value in encoder_file(channels).items()}
    made |= {"mask_token": torch.randn(1, 1, 8), "encoder_to_decoder.weight": 0.2 * torch.randn(8, 16)}
    return made | blocks("decoder.blocks", 8, 1) | norm("decoder.norm", 8) | linear("decoder.head", 8, channels * 32)


def classifier_file(pooled: bool) -> Weights:
    made = encoder_file() | linear("head", 16, 10)
    if pooled:
        made = {name: value for name, value in made.items() if not name.startswith("norm.")} | norm("fc_norm", 16)
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes weights as VideoMAE's scripts do: under `model`, or under `module` after training with
    DeepSpeed."""

    def to_file(weights: Weights, name: str = "checkpoint.pth", wrapping: str = "model") -> Path:
        torch.save({wrapping: weights, "epoch": 799, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, tmp_path / name)
        return tmp_path / name

    return to_file


def load_small(path: Path, **arguments: object) -> MaskedModel:
    return load(path, **({"heads": HEADS, "decoder_heads": HEADS, "image_size": SIDE, "frames": FRAMES} | arguments))  # type: ignore


def draw(channels: int = 3) -> tuple[Tensor, Mask, list[list[int]]]:
    """Returns clips, a tube mask, and the same mask as a 0/1 map."""
    frame = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    hidden = frame.repeat(1, 2)
    clips = torch.randn(2, channels, FRAMES, SIDE, SIDE)
    index = hidden.argsort(dim=1, stable=True)
    return clips, Mask(index[:, :4], index[:, 4:]), hidden.tolist()


@pytest.mark.parametrize("norm_pix", [None, True, False])
@pytest.mark.parametrize("wrapping", ["model", "module"])
def test_loss_is_the_official_one(write: Callable[..., Path], norm_pix: bool | None, wrapping: str) -> None:
    weights, (clips, mask, hidden) = full_file(), draw()
    model = load_small(write(weights, wrapping=wrapping), norm_pix=norm_pix).double()
    exact = {name: value.double() for name, value in weights.items()}
    expected = restated_videomae.loss(clips.double(), exact, hidden, 2, 4, HEADS, HEADS, norm_pix is not False)
    assert model(clips.double(), mask).loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert model.masker.config == TubeMasker.Config()


def test_round_trip_is_bit_for_bit(write: Callable[..., Path], tmp_path: Path) -> None:
    weights = full_file()
    model = load_small(write(weights))
    assert_same(to_videomae(model), weights)
    assert_same(load_small(write(to_videomae(model))).state_dict(), model.state_dict())
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == ["encoder.pos_embed", "decoder.pos_embed"]
    assert torch.equal(model.encoder.pos_embed[0], restated_videomae.table(8, 16).float())  # type: ignore
    save_file(weights, tmp_path / "videomae.safetensors")
    assert_same(to_videomae(load_small(tmp_path / "videomae.safetensors")), weights)


def test_encoder_alone(write: Callable[..., Path]) -> None:
    weights = encoder_file()
    model = load_small(write(weights), decoder_heads=None)
    assert model.decoder is None
    assert_same(to_videomae(model), weights)
    prefixed = write({f"encoder.{name}": value for name, value in weights.items()})
    assert_same(load_small(prefixed, decoder_heads=None).state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="holds no decoder"):
        load_small(write(weights))


def test_a_fine_tuned_model_keeps_its_head(write: Callable[..., Path]) -> None:
    weights, clips = classifier_file(pooled=True), draw()[0]
    model = load_small(write(weights), decoder_heads=None)
    assert isinstance(model, Classifier)
    assert_same(to_videomae(model), weights)
    norm = {"weight": weights["fc_norm.weight"], "bias": weights["fc_norm.bias"]}
    pooled = torch.nn.functional.layer_norm(model.encode(clips).mean(1), (16,), **norm, eps=1e-6)
    torch.testing.assert_close(model(clips), pooled @ weights["head.weight"].T + weights["head.bias"])


def test_a_head_that_reads_the_first_token_is_left_out(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    weights = classifier_file(pooled=False)
    model = load_small(write(weights), decoder_heads=None)
    assert isinstance(model, MaskedModel)
    assert set(weights) - set(to_videomae(model)) == {"head.weight", "head.bias"}
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "head.weight, head.bias" in warning
    assert model.encode(draw()[0]).last.shape == (2, 8, 16)


def test_heads_and_clips_come_from_the_published_tables(write: Callable[..., Path]) -> None:
    assert DECODER_HEADS == {192: 3, 384: 6, 512: 8, 640: 8}
    model = load(write(encoder_file()), heads=1, image_size=(8, 12))
    assert model.encoder.home == (8, 2, 3)  # type: ignore
    assert load(write(encoder_file()), heads=1).encoder.home == (8, 56, 56)  # type: ignore


def published(encoder: tuple[int, int], decoder: tuple[int, int] | None, normed: bool = True) -> MaskedModel:
    """Returns a model of a released size, on the meta device."""
    flat = {"positions": "flat_sine_cosine", "qkv_bias": "qv"}
    config = VisionTransformer.Config(width=encoder[0], depth=encoder[1], heads=encoder[0] // 64, class_token=False, **flat)  # type: ignore
    inner = None
    if decoder is not None:
        heads = DECODER_HEADS[decoder[0]]
        inner = SelfAttentionDecoder.Config(width=decoder[0], depth=decoder[1], heads=heads, embed_bias=False, **flat)  # type: ignore
    data = find_input((16, 224, 224), 3)
    return build_parts(config, tokenizer=Tubes.Config(), data=data, required=RequiredFeatures(last=normed), decoder=inner)


@pytest.mark.parametrize(
    ("encoder", "decoder", "names", "numbers"),
    [
        ((384, 12), (192, 4), 218, 24_029_376),
        ((768, 12), (384, 4), 218, 94_210_944),
        ((1024, 24), (512, 12), 478, 342_996_992),
        ((1280, 32), (640, 12), 582, 692_487_296),
    ],
    ids=["small", "base", "large", "huge"],
)
def test_published_sizes(encoder: tuple[int, int], decoder: tuple[int, int], names: int, numbers: int) -> None:
    weights = to_videomae(published(encoder, decoder))
    assert (len(weights), sum(value.numel() for value in weights.values())) == (names, numbers)


def test_published_classifier_has_its_number_of_weights() -> None:
    """ViT-B for 400 classes has the published number of weights."""
    encoder = published((768, 12), None, normed=False)
    weights = to_videomae(with_head(encoder, classes=400, pool=MeanPool.Config(), head=HeadConfig(norm="layer")))
    assert (len(weights), sum(value.numel() for value in weights.values())) == (162, 86_534_800)


def test_log_says_what_was_read(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmm"):
        load_small(write(full_file()))
    facts = ("all 49 weights used", "width 16 and 2 blocks", "width 8 and 1 blocks", "2 heads", "2 x 2 x 2 tubes")
    assert all(fact in caplog.text for fact in facts), caplog.text


@pytest.mark.parametrize(("weights", "heads"), [(full_file(), HEADS), (encoder_file(), None)], ids=["full", "encoder"])
def test_each_missing_name_is_named(write: Callable[..., Path], weights: Weights, heads: int | None) -> None:
    for name in weights:
        with pytest.raises(ValueError, match=rf"lacks {name.replace('.', '[.]')}($|,|;| )"):
            load_small(write({other: value for other, value in weights.items() if other != name}), decoder_heads=heads)


def test_each_misshapen_name_is_named(write: Callable[..., Path]) -> None:
    weights = full_file()
    for name, value in weights.items():
        with pytest.raises(ValueError, match=name.replace(".", "[.]")):
            load_small(write(weights | {name: torch.cat([value, value[:1]])}))


@pytest.mark.parametrize(
    "name", ["extra", "head.weight", "fc_norm.weight", "decoder.pos_embed", "encoder.blocks.0.attn.qkv.bias", "encoder.cls_token"]
)
def test_extra_names_are_named(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=f"has {name}, which the model does not have"):
        load_small(write(full_file() | {name: torch.zeros(3)}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": None}, "width of 16, .* give heads="),
        ({"decoder_heads": None}, "width of 8, .* give decoder_heads="),
        ({"frames": 3}, "frames=3 .* do not fit .* multiples of its tubes' 2 frames and 4 pixels"),
        ({"image_size": (8, 9)}, r"image_size=\(8, 9\) do not fit"),
        ({"image_size": 0}, "do not fit"),
        ({"fusion_blocks": (1,)}, r"fusion_blocks=\(1,\) was given, but .* takes decoder_heads"),
    ],
)
def test_arguments_are_checked(write: Callable[..., Path], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_small(write(full_file()), **arguments)


def test_export_refuses_what_has_no_place(build: Callable[..., MaskedModel]) -> None:
    with pytest.raises(ValueError, match=r"encoder\.positions must be flat_sine_cosine"):
        to_videomae(build(size=(4, 8, 8)))
    flat = VisionTransformer.Config(width=24, depth=1, heads=2, positions="flat_sine_cosine", qkv_bias="qv")
    decoder = SelfAttentionDecoder.Config(width=16, depth=1, heads=2, positions="flat_sine_cosine", qkv_bias="qv", embed_bias=False)
    with pytest.raises(ValueError, match=r"cannot hold encoder\.cls_token"):
        to_videomae(build(size=(4, 8, 8), encoder=flat, decoder=decoder))


def test_a_model_starts_from_such_a_file(write: Callable[..., Path], build: Callable[..., MaskedModel]) -> None:
    """With `--init` the model keeps its own position tables, which must be VideoMAE's."""
    weights = encoder_file()
    choices = {"width": 16, "depth": 2, "heads": 2, "class_token": False, "qkv_bias": "qv"}
    model = build(size=(FRAMES, SIDE, SIDE), encoder=VisionTransformer.Config(**choices, positions="flat_sine_cosine"))
    initialise_from(model, write(weights))
    alone = MaskedModel(model.tokenizer, model.masker, model.encoder, None, model.target)
    assert_same(to_videomae(alone), weights)
    with pytest.raises(ValueError, match=r"set encoder\.positions to flat_sine_cosine"):
        initialise_from(build(size=(FRAMES, SIDE, SIDE), encoder=VisionTransformer.Config(**choices)), write(weights))
