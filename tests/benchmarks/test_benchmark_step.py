"""The benchmark of steps counts a method's operations, and its published step uses torch's own kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, reset_accelerate
from torch.utils.flop_counter import FlopCounterMode

from mmm import MaskedModel
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import Hiera, VisionTransformer
from mmm.maskers import RandomMasker
from mmm.tokenizers import Patches


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "python"), (["--save", "--out", "/tmp/x"], "python --save"), (["--videos", "/data/clips"], "python --videos clips")],
)
def test_the_command_is_said_without_places(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    from benchmarks.measure import machine

    monkeypatch.setattr("sys.argv", ["benchmarks/train/step.py", *words])
    first, *rest = machine(torch.device("cpu"))["command"].split()
    flags = rest[2:] if rest[0] == "-m" else rest[1:]
    assert " ".join([first, *flags]) == said


@pytest.mark.parametrize(
    "decoder",
    [
        SelfAttentionDecoder.Config(width=16, depth=2, heads=2),
        CrossAttentionDecoder.Config(width=16, depth=3, heads=2),
        CrossAttentionDecoder.Config(width=16, depth=3, heads=2, fusion="linear"),
    ],
)
def test_model_flops_are_those_of_torch_s_counter(decoder: object, build: Callable[..., MaskedModel]) -> None:
    from benchmarks.train.flops import step_flops
    from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels

    model, x = build(size=(16, 16), decoder=decoder), torch.randn(2, 3, 16, 16)
    use_cpu_bf16_kernels(model)
    mask = model.draw_masks(x)
    with FlopCounterMode(display=False) as counted, torch.autocast("cpu", torch.bfloat16):  # attention as matrix products
        model(x, mask=mask).loss.backward()
    ours = 2 * step_flops(model, mask.visible.shape[1], mask.predict.shape[1])
    assert counted.get_total_flops() == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize("name", ["gated", "hiera"])
def test_model_flops_of_other_encoders_are_those_of_torch_s_counter(name: str, build: Callable[..., MaskedModel]) -> None:
    from benchmarks.train.flops import step_flops

    side, fusion = (16, "stages") if name == "hiera" else (4, "none")
    gated = VisionTransformer.Config(width=24, depth=2, heads=2, activation="swiglu", mlp_ratio=2.0)
    encoder = Hiera.Config(width=8, heads=1, stages=(1, 2, 1, 1)) if name == "hiera" else gated
    decoder = SelfAttentionDecoder.Config(width=16, depth=2, heads=2, fusion=fusion)
    masker = RandomMasker.Config(ratio=0.5, unit=2)
    model = build(size=(4 * side, 4 * side), tokenizer=Patches.Config(size=side), encoder=encoder, decoder=decoder, masker=masker)
    x = torch.randn(2, 3, 4 * side, 4 * side)
    mask = model.draw_masks(x)
    with FlopCounterMode(display=False) as counted, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(x, mask=mask).loss.backward()
    ours = 2 * step_flops(model, mask.visible.shape[1], mask.predict.shape[1])
    assert counted.get_total_flops() == pytest.approx(ours, rel=1e-9)


def test_the_published_step_takes_torch_s_own_kernels(build: Callable[..., MaskedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.train.published import PublishedMAE
    from mmm.layers import cpu_bf16 as kernels

    def refuse(*given: object) -> None:
        raise AssertionError("a kernel of ours")

    model, x = build(size=(16, 16)), torch.randn(2, 3, 16, 16)
    kernels.use_cpu_bf16_kernels(model)
    published = PublishedMAE(model, visible=4)
    monkeypatch.setattr(kernels, "is_cpu_bf16", refuse)
    with torch.autocast("cpu", torch.bfloat16):
        published(x).backward()
    assert all(w.grad is not None for w in model.parameters() if w.requires_grad)


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    from benchmarks.train.step import main

    reset_accelerate()
    sizes = ["--size", "small", "--image", "64", "--frames", "4", "--batch", "1", "--clips", "1"]
    found = main([*sizes, "--repeats", "2", "--warmup", "0", "--save", "--out", str(tmp_path)])
    reset_accelerate()
    (file,) = tmp_path.glob("*-step.json")
    assert json.loads(file.read_text())["found"].keys() == found["found"].keys()
    for name, one in found["found"].items():
        assert one["share_of_limit"] < 1, name
        assert one["step_bytes"] > 0
    assert {"mae", "crossmae_75", "crossmae_25", "videomae"} == {name.split(",")[0] for name in found["found"]}
    assert str(tmp_path) not in file.read_text()
