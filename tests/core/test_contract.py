"""Rules that every registered part keeps, for images and clips: one test body for all parts.

A new part is tested here without a new test, if it can be built from its defaults, and made small by fields called width, depth and
heads. Two methods, SimMIM and I-JEPA, are built at the end without any change of the model's forward.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from torch import Tensor, nn
from torch.nn import functional as F

from mmm import Input, Mask, MaskedModel
from mmm.contract import CHECKS, KINDS, SIZES, check_part, draw, small_config, small_model
from mmm.core.registry import REGISTRIES, PartConfig
from mmm.core.rng import Stream, integers, sample_keys, stream
from mmm.core.tokens import Grid
from mmm.core.types import Features
from mmm.decoders import ConvolutionDecoder, CrossAttentionDecoder, LinearDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import MaskerConfig, RandomMasker, maskers
from mmm.maskers.base import Masker
from mmm.targets import LatentTarget, PixelTarget, Target, TargetConfig, TokenTargets, targets
from mmm.tokenizers import Patches, Tubes
from mmm.weights.formats import FORMATS
from tasks.__main__ import main
from tasks.check import describe

PARTS = [(kind, name) for kind in KINDS for name in REGISTRIES[kind].parts]
ONLY = {"patches": "images", "tubes": "clips", "swin": "images", "timm": "images", "frame": "clips", "causal": "clips"}
CASES = [
    pytest.param(kind, name, medium, id=f"{kind}-{name}-{medium}")
    for kind, name in PARTS
    for medium in SIZES
    if ONLY.get(name, medium) == medium
]
Build = Callable[..., MaskedModel]


def model_of(kind: str, name: str, medium: str) -> MaskedModel:
    config = small_config(kind, name)
    config = replace(config, noise=0.0) if isinstance(config, ConvolutionDecoder.Config) else config  # noise differs per forward
    return small_model(SIZES[medium], {kind: config})


def test_every_kind_of_part_is_registered() -> None:
    # pools are parts of classifiers (test_classifier.py), and evaluators are not part of a model
    assert {kind for kind, _ in PARTS} == set(KINDS) == set(REGISTRIES) - {"pool", "evaluator", "dense_head", "detector"}


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=map("-".join, PARTS))
def test_defaults_build_at_full_size(kind: str, name: str) -> None:
    part = REGISTRIES[kind][name]
    config = part.Config()
    assert (config.kind, config.name) == (kind, name)
    assert part.__doc__
    size = (16, 224, 224) if ONLY.get(name) == "clips" else (224, 224)
    defaults = {"encoder": VisionTransformer.Config(), "decoder": SelfAttentionDecoder.Config(), kind: config}
    patches = Patches.Config(size=getattr(config, "token", None) or 16)
    defaults["tokenizer"] = config if kind == "tokenizer" else Tubes.Config() if len(size) == 3 else patches
    if name == "hiera":  # Hiera's mask units have 2 x 2 tokens
        defaults["masker"] = RandomMasker.Config(unit=2)
    with torch.device("meta"):
        model = small_model(size, defaults)
    assert getattr(model, kind).config is config


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("kind", "name", "medium"), CASES)
def test_every_part_keeps_the_contract(kind: str, name: str, medium: str, check: str) -> None:
    model = model_of(kind, name, medium)
    CHECKS[check](model, *draw(model))


VARIANTS: dict[str, dict[str, PartConfig]] = {  # options that change what is built or read
    "learned positions, no class token": {
        "encoder": VisionTransformer.Config(width=24, depth=2, heads=2, positions="learned", class_token=False)
    },
    "a ViT of today": {
        "encoder": VisionTransformer.Config(
            width=24,
            depth=2,
            heads=2,
            rotary="axial",
            norm="rms",
            activation="swiglu",
            bias=False,
            qkv_bias="none",
            qk_norm=True,
            layer_scale=0.5,
        )
    },
    "registers around the tokens, as CAPI's": {
        "encoder": VisionTransformer.Config(
            width=24,
            depth=2,
            heads=2,
            class_token=False,
            registers=8,
            positions="none",
            rotary="capi",
            norm="rms",
            last_norm_weight=False,
            register_places="around",
        )
    },
    "several class tokens, registers, learned decoder positions": {
        "encoder": VisionTransformer.Config(width=24, depth=2, heads=2, class_tokens=3, registers=2, positions="learned"),
        "decoder": SelfAttentionDecoder.Config(width=16, depth=2, heads=2, positions="learned"),
    },
    "self-attention with blanks": {"masker": RandomMasker.Config(blank=True)},
    "self-attention, fused": {"decoder": SelfAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear")},
    "cross-attention, fused": {
        "decoder": CrossAttentionDecoder.Config(width=16, depth=3, heads=2, fusion="linear"),
        "masker": RandomMasker.Config(predict=0.25),
    },
    "cross-attention, self too": {"decoder": CrossAttentionDecoder.Config(width=16, depth=2, heads=2, self_attention=True)},
    "data2vec's target": {
        "target": LatentTarget.Config(blocks=(1, 2), block_output="mlp", block_norm="instance", loss="scaled_mse", class_weight=0.5)
    },
    "levels side by side": {"target": LatentTarget.Config(blocks=(1, 2), join=True, block_norm="layer", loss="l1")},
    "low frequencies": {"target": PixelTarget.Config(low_pass=0.2, standardise="none")},
    "videomae's target": {"target": PixelTarget.Config(standardise="channel", epsilon_inside=False, pixels="unit")},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("medium", SIZES)
def test_every_option_keeps_the_contract(variant: str, medium: str) -> None:
    if "around" in variant and medium == "clips":
        with pytest.raises(ValueError, match=r"encoder\.register_places around"):
            small_model(SIZES[medium], VARIANTS[variant])
        return
    model = small_model(SIZES[medium], VARIANTS[variant])
    for check in CHECKS.values():
        check(model, *draw(model))


# --- faulty parts are found -----------------------------------------------------------------------------------------------------

WRONG = '''
"""Parts with one fault each."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from mmm.encoders import VisionTransformer, encoders
from mmm.maskers import Masker, MaskerConfig, maskers
from mmm.core.rng import permutation


def register(name, **methods):
    config = dataclass(frozen=True, kw_only=True)(type("Config", (MaskerConfig,), {"__annotations__": {}}))
    maskers.register(name)(type(name, (Masker,), {"Config": config, "__module__": __name__, **methods}))


def units(grid):
    return math.prod(grid)


register("generator", order=lambda self, keys, grid, seen: torch.rand(len(keys), units(grid)).argsort(1))
register("twice", order=lambda self, keys, grid, seen: torch.zeros(len(keys), units(grid), dtype=torch.int64))
register("batch", order=lambda self, keys, grid, seen: permutation(keys.sum() + keys * 0, units(grid)))
register("cpu", order=lambda self, keys, grid, seen: permutation(keys, units(grid)) + torch.zeros(units(grid), dtype=torch.int64))


@encoders.register("leaky")
class Leaky(VisionTransformer):
    """Sees the mean of all patches."""

    @dataclass(frozen=True, kw_only=True)
    class Config(VisionTransformer.Config):
        pass

    def forward(self, patches, grid, mask, blocks=None):
        return super().forward(patches - patches.mean(1, keepdim=True), grid, mask, blocks)


@encoders.register("idle")
class Idle(VisionTransformer):
    """Holds a weight that it does not use."""

    @dataclass(frozen=True, kw_only=True)
    class Config(VisionTransformer.Config):
        pass

    def __init__(self, config, **context):
        super().__init__(config, **context)
        self.unused = nn.Linear(2, 2)
'''
WRONG_TYPES = """
from mmm import Mask
from mmm.core.types import RequiredFeatures
from mmm.decoders import Decoder, DecoderConfig, decoders
from mmm.evaluate.evaluator import Evaluator, EvaluatorConfig, evaluators
from mmm.weights.formats import Format, register


@decoders.register("signature")
class Signature(Decoder):
    @dataclass(frozen=True, kw_only=True)
    class Config(DecoderConfig):
        width: int = 8

        def required_features(self, shape):
            return RequiredFeatures()

    def __init__(self, config, *, encoder, grid, outputs):
        super().__init__()
        self.config, self.linear = config, nn.Linear(encoder.width, sum(outputs))

    def forward(self, features):
        return self.linear(features.last)


@maskers.register("weights")
class Weights(Masker):
    @dataclass(frozen=True, kw_only=True)
    class Config(MaskerConfig):
        pass

    def __call__(self, keys, grid, *, step=0, steps=1, scores=None):
        index = torch.arange(math.prod(grid)).expand(len(keys), -1)
        visible, predict = index.split([4, math.prod(grid) - 4], dim=1)
        return Mask(visible, predict, weight=torch.full(predict.shape, 1 / len(keys)))


@evaluators.register("number")
class Number(Evaluator):
    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig):
        pass

    def run(self, model, context):
        return 3.0


@register("greedy")
class Greedy(Format):
    title = "everything"

    def detect(self, stored):
        return True
"""
FAULTS = {  # for each part, the check that fails and a piece of its message
    "masker generator": ("masks depend on each sample's key alone", "torch's generator"),
    "masker twice": ("the order of units is a permutation", "a permutation of the units"),
    "masker batch": ("masks depend on each sample's key alone", "depends on the other samples"),
    "masker cpu": ("masks lie on the keys' device", "mixes tensors of the CPU"),
    "encoder leaky": ("hidden pixels change nothing", "hidden pixels change the encoder's features"),
    "encoder idle": ("every weight has a gradient", "unused.weight gets no gradient"),
    "decoder signature": ("types of what the parts return", "Signature.forward() takes 2 positional arguments but 4 were given"),
    "masker weights": ("masks depend on each sample's key alone", "mask.weight of a sample depends on the other samples"),
    "evaluator number": ("it runs", "run returns float, and not a dict"),
    "format greedy": ("it does not detect a folder of mmm's", "detect returns True for weights of another format"),
}


@pytest.fixture
def wrong(tmp_path: Path) -> Iterator[Path]:
    """Writes a user's file, and unregisters its parts after the test."""
    (tmp_path / "wrong.py").write_text(WRONG + WRONG_TYPES)
    yield tmp_path / "wrong.py"
    for part in FAULTS:
        kind, name = part.split()
        (FORMATS if kind == "format" else REGISTRIES[kind].parts).pop(name, None)


def test_mmm_check_finds_what_is_wrong_with_a_user_s_parts(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["check", str(wrong)])
    assert exit_code.value.code == 1
    printed = capsys.readouterr().out
    for part, (check, fault) in FAULTS.items():
        after = printed.partition(f"{part}, images: ")[2].partition(" checks passed\n")[2]
        lines = list(takewhile(lambda line: line.startswith("  "), after.splitlines()))
        assert any(line.startswith(f"  {check}: ") and fault in line for line in lines), (part, lines)


def test_mmm_check_names_what_it_did_not_check(capsys: pytest.CaptureFixture[str]) -> None:
    found = check_part("tokenizer", "patches")
    assert {one.medium for one in found if one.skipped} == {"clips"}
    first, second = describe(found).splitlines()
    assert first == "tokenizer patches, images: 10 of 10 checks passed"
    assert second.startswith("tokenizer patches, clips: not checked: a sample of 3 axes")


def test_mmm_check_accepts_the_page_s_masker_and_refuses_a_file_without_parts(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs" / "adding_a_part.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "page.py").write_text(code[1])
    (tmp_path / "nothing.py").write_text("")
    try:
        assert main(["check", str(tmp_path / "page.py")]) == 0
    finally:
        maskers.parts.pop("checkerboard", None)
    with pytest.raises(SystemExit) as exit_code:
        main(["check", str(tmp_path / "nothing.py")])
    assert exit_code.value.code == 2


@pytest.mark.parametrize("flags", ["--encoder.name leaky", "--masker.name generator"])
def test_a_run_with_a_wrong_part_ends_before_it_starts(flags: str, wrong: Path, run_recipe, capsys, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run_recipe("image_mae", "--use", str(wrong), *flags.split(), "--folder", str(tmp_path / "run"))
    assert "mmm check FILE" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# The parts of the plain model are compiled together, once per modality, and the others one by one.
PLAIN = {"vit", "self_attention", "pixels"}
COMPILED = [pytest.param("encoder", "vit", medium, id=f"plain-{medium}") for medium in SIZES] + [
    pytest.param(kind, name, "images", id=name)
    for kind, name in PARTS
    if kind in ("encoder", "decoder", "target") and name not in PLAIN
]


@pytest.mark.parametrize(("kind", "name", "medium"), COMPILED)
def test_the_forward_is_one_graph(kind: str, name: str, medium: str) -> None:
    """The forward with a given mask compiles without graph breaks: it needs no hashing, no sort and no synchronisation."""
    model = model_of(kind, name, medium)
    x, mask = draw(model, samples=2)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager" if name in PLAIN else "eager", fullgraph=True)
    assert compiled(x, mask=mask).loss.item() == pytest.approx(model(x, mask=mask).loss.item(), rel=1e-6)


# --- SimMIM as a choice of parts --------------------------------------------------------------------------------------------


def test_simmim_is_a_choice_of_parts(build: Build) -> None:
    """SimMIM (Xie et al., CVPR 2022) restated: mask tokens in all hidden places, every token encoded, one linear layer,
    |difference| summed over the hidden pixels and divided by their number."""
    model = build(
        (16, 24),
        masker=RandomMasker.Config(ratio=0.6, unit=2, blank=True),
        decoder=LinearDecoder.Config(),
        target=PixelTarget.Config(standardise="none", loss="l1"),
    ).double()
    x = torch.randn(3, 3, 16, 24, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(3)), (4, 6))
    hidden = torch.zeros(3, 24, dtype=torch.float64).scatter(1, mask.predict, 1.0)
    assert (hidden.sum(1) == 4 * round(0.6 * 6)).all()  # 2 x 3 units of 4 tokens

    encoder, head = model.encoder, model.decoder.head
    tokens = F.conv2d(x, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    tokens = tokens * (1 - hidden)[..., None] + encoder.mask_token * hidden[..., None]
    tokens = torch.cat([encoder.cls_token.expand(3, -1, -1), tokens], dim=1) + encoder.pos_embed
    for block in encoder.blocks:
        tokens = block(tokens)
    values = F.linear(encoder.norm(tokens)[:, 1:], head.weight, head.bias)  # (B, N, P)
    picture = torch.zeros_like(x)
    for token in range(24):
        top, left = token // 6 * 4, token % 6 * 4
        picture[:, :, top : top + 4, left : left + 4] = values[:, token].view(3, 4, 4, 3).permute(0, 3, 1, 2)
    where = hidden.view(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = ((picture - x).abs() * where).sum() / where.sum() / 3
    assert model(x, mask=mask).loss.item() == pytest.approx(expected.item(), rel=1e-12)


# --- a short I-JEPA: several predicted groups per mask, and a teacher ---------------------------------------------------------


@pytest.fixture
def _ijepa() -> Iterator[None]:
    """Registers a masker and a target for one test: a short form of I-JEPA (Assran et al., CVPR 2023)."""

    @maskers.register("sketch_blocks")
    class Blocks(Masker):
        """Draws four target blocks of one size, and as many context tokens as the sample with the fewest free tokens has."""

        @dataclass(frozen=True, kw_only=True)
        class Config(MaskerConfig):
            pass

        def forward(self, keys: Tensor, grid: Grid, *, step: int = 0, steps: int = 1) -> Mask:
            tall, wide = 2 + step % 2, 3  # the size depends on the step, so that all samples of a batch share it
            draws = stream(keys, Stream.MASK)
            top = integers(draws, grid[0] - tall + 1, 4)  # (B, 4)
            left = integers(draws + 1, grid[1] - wide + 1, 4)
            box = (torch.arange(tall)[:, None] * grid[1] + torch.arange(wide)).flatten()
            predict = (top * grid[1] + left)[..., None] + box  # (B, 4, Q)
            free = torch.ones(len(keys), math.prod(grid)).scatter(1, predict.flatten(1), 0.0)
            fewest = int(free.sum(1).min())
            visible = free.argsort(dim=1, descending=True, stable=True)[:, :fewest]
            return Mask(visible, predict.flatten(0, 1))

    @targets.register("sketch_teacher")
    class Teacher(Target):
        """The target: features of all tokens, from an exponential moving average of the encoder."""

        @dataclass(frozen=True, kw_only=True)
        class Config(TargetConfig):
            decay: float = 0.9

        def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: nn.Module) -> None:
            super().__init__()
            self.config, self.width = config, encoder.shape.width
            self.teacher = copy.deepcopy(encoder).requires_grad_(False)

        @torch.no_grad()
        def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
            tokens = self.teacher(patches, grid, None).tokens
            return TokenTargets(F.layer_norm(tokens, tokens.shape[-1:]))

        def loss(self, prediction: Tensor, expected: Tensor, mask: Mask, features: Features) -> Tensor:
            return F.smooth_l1_loss(prediction, expected)

        @torch.no_grad()
        def update(self, model: MaskedModel, step: int, steps: int, made: Tensor) -> None:
            for slow, fast in zip(self.teacher.parameters(), model.encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.decay)

    yield
    del maskers.parts["sketch_blocks"], targets.parts["sketch_teacher"]


@pytest.mark.usefixtures("_ijepa")
def test_ijepa_needs_no_change_of_the_forward(build: Build) -> None:
    model = build(
        (24, 32),
        masker=maskers["sketch_blocks"].Config(),
        target=targets["sketch_teacher"].Config(),
        encoder=VisionTransformer.Config(width=24, depth=2, heads=2, class_token=False),
    )
    model.target.teacher.load_state_dict(model.encoder.state_dict())  # the fixture adds noise after the copy
    x = torch.randn(3, 3, 24, 32)
    for step in (0, 1):
        mask = model.masker(sample_keys(0, 0, torch.arange(3)), (6, 8), step=step)
        assert mask.predict.shape == (12, (2 + step) * 3)
        output = model(x, mask=mask)
        assert output.prediction.shape == output.target.shape == (12, (2 + step) * 3, 24)
        for row in range(12):  # each group is predicted alone, from the context of its sample
            sample = slice(row // 4, row // 4 + 1)
            alone = model(x[sample], mask=Mask(mask.visible[sample], mask.predict[row : row + 1]))
            assert (alone.prediction[0] - output.prediction[row]).abs().max() < 1e-5
            assert (alone.target[0] - output.target[row]).abs().max() < 1e-5

    output.loss.backward()
    assert all(w.grad is not None for w in model.parameters() if w.requires_grad)
    assert all(w.grad is None for w in model.target.parameters())
    trained = [w for w in model.parameters() if w.requires_grad]
    before = [w.clone() for w in model.target.teacher.parameters()]
    torch.optim.SGD(trained, lr=0.1).step()
    model.target.update(model, 1, 10, torch.tensor(True))
    moved = zip(before, model.target.teacher.parameters(), model.encoder.parameters(), strict=True)
    for old, slow, fast in moved:
        assert torch.allclose(slow, 0.9 * old + 0.1 * fast, atol=1e-6)
    assert any(name.startswith("target.teacher.") for name in model.state_dict())  # a resumed run needs the teacher


# --- options that do not fit are refused by the flag's name, before anything is trained ---------------------------------------

IMAGE = torch.randn(2, 3, 12, 16)
SEEN, WANTED = torch.arange(3).repeat(2, 1), torch.arange(3, 12).repeat(2, 1)
SHALLOW = VisionTransformer.Config(width=24, depth=2, heads=2)
HALF_READ = CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear", fusion_blocks=(1,))
MISTAKES: dict[str, tuple[Callable[[Build], object], str]] = {
    "patch of 0": (lambda build: Patches.Config(size=0), r"tokenizer\.size 0"),
    "tube of 0 frames": (lambda build: Tubes.Config(frames=0), r"tokenizer\.frames 0"),
    "unit of 0": (lambda build: RandomMasker.Config(unit=0), r"masker\.unit 0"),
    "no blocks": (lambda build: VisionTransformer.Config(depth=0), r"encoder\.depth 0"),
    "no heads": (lambda build: VisionTransformer.Config(heads=0), r"encoder\.heads 0"),
    "too many heads": (lambda build: build(encoder=replace(SHALLOW, heads=5)), r"encoder\.heads 5"),
    "an odd width": (lambda build: build(encoder=replace(SHALLOW, width=25, heads=5)), r"encoder\.width 25"),
    "drop path over 1": (lambda build: VisionTransformer.Config(drop_path=1.5), r"encoder\.drop_path 1\.5"),
    "learned positions computed anew": (
        lambda build: VisionTransformer.Config(positions="learned", resize_positions="recompute"),
        r"encoder\.resize_positions recompute",
    ),
    "a deviation of 0": (lambda build: Input(size=(4, 4), std=(0.2, 0.0, 0.2)), r"data\.std"),
    "blocks that nobody reads": (lambda build: build(decoder=HALF_READ), r"decoder\.fusion_blocks"),
    "linear without blanks": (lambda build: build(decoder=LinearDecoder.Config()), r"masker\.blank"),
    "the variance of one pixel": (
        lambda build: build(tokenizer=Patches.Config(size=1), target=PixelTarget.Config(standardise="channel")),
        r"target\.standardise",
    ),
    "a clip among patches": (lambda build: build()(torch.randn(2, 3, 4, 12, 16)), r"3 axes \(4, 12, 16\)"),
    "no samples": (lambda build: build()(IMAGE[:0]), "no sample"),
    "a 0/1 mask": (lambda build: Mask(torch.rand(2, 12) > 0.5, torch.rand(2, 12) > 0.5), r"indices.*bool"),
    "nothing to predict": (lambda build: build()(IMAGE, Mask(SEEN, WANTED[:, :0])), r"mask\.predict"),
    "predicting what was not encoded": (
        lambda build: build(masker=RandomMasker.Config(blank=True), decoder=LinearDecoder.Config())(
            IMAGE, Mask(SEEN, WANTED, blank=WANTED[:, :4])
        ),
        "blank",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_words(mistake: str, build: Build) -> None:
    make, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        make(build)


@pytest.mark.parametrize(("name", "medium"), [case.values[1:] for case in CASES if case.values[0] == "encoder"])
def test_an_encoder_in_bf16_is_itself_within_rounding(name: str, medium: str) -> None:
    model = model_of("encoder", name, medium).eval()
    x, mask = draw(model)
    with torch.no_grad():
        expected = [model.double().encode(x.double(), mask=one).last for one in (None, mask)]
        with torch.autocast("cpu", torch.bfloat16):
            found = [model.float().encode(x, mask=one).last for one in (None, mask)]
    for half, whole in zip(found, expected, strict=True):
        assert (half.double() - whole).norm() < 0.03 * whole.norm()  # one unit in the last place of bf16 is 0.4 %
