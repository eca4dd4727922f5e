"""Files in VideoMAE's official layout: they load to VideoMAE's loss, every name is accounted for, and they are written back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import restated_videomae
import torch
from safetensors.torch import save_file
from test_load_mae import assert_same, linear, norm
from torch import Tensor

from mmm import Mask, MaskedModel
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import TubeMasker
from mmm.weights.formats.shapes import Stack
from mmm.weights.formats.videomae import DECODER_HEADS, to_videomae
from mmm.weights.formats.videomae_layout import VideoLayout, read_layout
from mmm.weights.load import initialise_from, load

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
    """The encoder's weights, by the names that fine-tuning gives them, written from the published list."""
    made = {"patch_embed.proj.weight": 0.2 * torch.randn(16, channels, 2, 4, 4), "patch_embed.proj.bias": torch.randn(16)}
    return made | blocks("blocks", 16, 2) | norm("norm", 16)


def full_file(channels: int = 3) -> Weights:
    """What `checkpoint.pth` of pretraining holds under `model`."""
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
    """Writes weights as VideoMAE's scripts do: under `model`, or, where DeepSpeed trained, under `module`."""

    def to_file(weights: Weights, name: str = "checkpoint.pth", wrapping: str = "model") -> Path:
        torch.save({wrapping: weights, "epoch": 799, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, tmp_path / name)
        return tmp_path / name

    return to_file


def load_small(path: Path, **arguments: object) -> MaskedModel:
    return load(path, **({"heads": HEADS, "decoder_heads": HEADS, "image_size": SIDE, "frames": FRAMES} | arguments))  # type: ignore


def draw(channels: int = 3) -> tuple[Tensor, Mask, list[list[int]]]:
    """Clips, a tube mask, and the same as a 0/1 map."""
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


@pytest.mark.parametrize("pooled", [True, False])
def test_fine_tuned_gives_the_encoder(write: Callable[..., Path], caplog: pytest.LogCaptureFixture, pooled: bool) -> None:
    weights = classifier_file(pooled)
    model = load_small(write(weights), decoder_heads=None)
    left = set(weights) - set(to_videomae(model))
    assert left == {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if pooled else set())
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(name in warning for name in left)
    assert ("without a norm" in warning) == pooled
    assert model.encode(draw()[0]).last.shape == (2, 8, 16)


def test_heads_and_clips_come_from_the_published_tables(write: Callable[..., Path]) -> None:
    assert DECODER_HEADS == {192: 3, 384: 6, 512: 8, 640: 8}
    model = load(write(encoder_file()), heads=1, image_size=(8, 12))
    assert model.encoder.home == (8, 2, 3)  # type: ignore
    assert load(write(encoder_file()), heads=1).encoder.home == (8, 56, 56)  # type: ignore


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
    stacks = [Stack(width, depth, 4 * width) for width, depth in (encoder, decoder)]
    layout = VideoLayout(stacks[0], stacks[1], "qv", (2, 16), 3, normed=True, prefix="encoder.")
    assert (len(layout.shapes), sum(math.prod(shape) for shape in layout.shapes.values())) == (names, numbers)
    meta = {name: torch.empty(shape, device="meta") for name, shape in layout.shapes.items()}
    assert read_layout(meta, "meta") == layout


def test_published_classifier_has_its_number_of_weights() -> None:
    """ViT-B for 400 classes."""
    layout = VideoLayout(Stack(768, 12, 3072), None, "qv", (2, 16), 3, normed=False, prefix="")
    numbers = sum(math.prod(shape) for shape in layout.shapes.values()) + 2 * 768 + 400 * 769
    assert (len(layout.shapes) + 4, numbers) == (162, 86_534_800)


def test_log_says_what_was_read(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmm"):
        load_small(write(full_file()))
    facts = ("all 49 weights used", "width 16 and 2 blocks", "width 8 and 1 blocks", "2 heads", "2 x 2 x 2 tubes")
    assert all(fact in caplog.text for fact in facts), caplog.text


@pytest.mark.parametrize("weights", [full_file(), encoder_file()], ids=["full", "encoder"])
def test_each_missing_name_is_named(write: Callable[..., Path], weights: Weights) -> None:
    for name in weights:
        with pytest.raises(ValueError, match=rf"lacks {name.replace('.', '[.]')}($|,|;| )"):
            load_small(write({other: value for other, value in weights.items() if other != name}), decoder_heads=None)


def test_each_misshapen_name_is_named(write: Callable[..., Path]) -> None:
    weights = full_file()
    for name, value in weights.items():
        with pytest.raises(ValueError, match=name.replace(".", "[.]")):
            load_small(write(weights | {name: torch.cat([value, value[:1]])}))


@pytest.mark.parametrize(
    "name", ["extra", "head.weight", "fc_norm.weight", "decoder.pos_embed", "encoder.blocks.0.attn.qkv.bias", "encoder.cls_token"]
)
def test_extra_names_are_named(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=f"has {name}, for which there is no place"):
        load_small(write(full_file() | {name: torch.zeros(3)}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": None}, "width of 16, .* give heads="),
        ({"decoder_heads": None}, "width of 8, .* give decoder_heads="),
        ({"frames": 3}, "frames=3 .* do not fit .* multiples of its tubes' 2 frames and 4 pixels"),
        ({"image_size": (8, 9)}, r"image_size=\(8, 9\) do not fit"),
        ({"image_size": 0}, "do not fit"),
        ({"fusion_blocks": (1,)}, "not in CrossMAE's layout"),
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
    with pytest.raises(ValueError, match=r"no place for encoder\.cls_token"):
        to_videomae(build(size=(4, 8, 8), encoder=flat, decoder=decoder))


def test_a_model_starts_from_such_a_file(write: Callable[..., Path], build: Callable[..., MaskedModel]) -> None:
    """`--init`: its own tables stay, if they are VideoMAE's."""
    weights = encoder_file()
    choices = {"width": 16, "depth": 2, "heads": 2, "class_token": False, "qkv_bias": "qv"}
    model = build(size=(FRAMES, SIDE, SIDE), encoder=VisionTransformer.Config(**choices, positions="flat_sine_cosine"))
    initialise_from(model, write(weights))
    alone = MaskedModel(model.tokenizer, model.masker, model.encoder, None, model.target)
    assert_same(to_videomae(alone), weights)
    with pytest.raises(ValueError, match=r"set encoder\.positions to flat_sine_cosine"):
        initialise_from(build(size=(FRAMES, SIDE, SIDE), encoder=VisionTransformer.Config(**choices)), write(weights))
