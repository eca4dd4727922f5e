"""The kernels for bf16 on a CPU equal torch's own within rounding and keep less memory; elsewhere torch's own run, bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import reset_accelerate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmm import MaskedModel
from mmm.contract import SIZES, small_config, small_model
from mmm.core.rng import sample_keys
from mmm.decoders import CrossAttentionDecoder
from mmm.encoders import encoders
from mmm.layers import cpu_bf16 as kernels
from mmm.layers.transformer import QueryValueLinear
from mmm.system import malloc as allocator
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.loop import nan_if_nonfinite
from mmm.train.optimizer import make_optimizer
from mmm.train.state import Training


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def near(found: Tensor, expected: Tensor, share: float = 0.01) -> None:
    """Asserts that two tensors are equal within the rounding of bf16, by the norm of the whole difference."""
    assert (found.float() - expected.float()).norm() <= share * expected.float().norm()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("wide", "out"), [(48, 16), (16, 48), (32, 32)])
def test_a_linear_layer(wide: int, out: int, biased: bool) -> None:
    layer, x = kernels.CPUBF16Linear(wide, out, bias=biased), torch.randn(3, 50, wide, requires_grad=True)
    into, weights = torch.randn(3, 50, out), [x, *layer.parameters()]
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias), weights, into)
    with autocast():
        y = layer(x)
    assert y.dtype == torch.bfloat16
    near(y, F.linear(x, layer.weight, layer.bias))
    for found, right in zip(torch.autograd.grad(y, weights, into.bfloat16()), expected, strict=True):
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        near(found, right)


def test_a_linear_layer_of_what_needs_no_gradient() -> None:
    layer = kernels.CPUBF16Linear(8, 8)
    with autocast():
        layer(torch.randn(4, 8)).float().sum().backward()
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [4.0] * 8


def test_a_frozen_weight_costs_no_product() -> None:
    layer, x = kernels.CPUBF16Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    with autocast(), Shapes() as shapes:
        layer(x).float().sum().backward()
    assert layer.weight.grad is None
    products = [name for name, _ in shapes.seen if "mm" in name or "linear" in name]
    assert len(products) == 2, products  # forward, and the gradient of x


def test_one_vector_is_a_linear_layer_s_input_too() -> None:
    layer, x = kernels.CPUBF16Linear(8, 4), torch.randn(8, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    with autocast():
        y = layer(x)
    assert y.shape == (4,)
    for found, right in zip(torch.autograd.grad(y.sum(), [x, *layer.parameters()]), expected, strict=True):
        near(found, right)


@pytest.mark.parametrize("layer", [kernels.CPUBF16Linear(8, 8), kernels.CPUBF16Attention(2)], ids=["linear", "attention"])
def test_second_derivatives_are_refused(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 8, requires_grad=True)
    with autocast():
        y = layer(x) if isinstance(layer, nn.Linear) else layer(x, x, x)
    (first,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_models_are_built_of_torch_s_layers_and_then_take_these(build: Callable[..., MaskedModel]) -> None:
    model = build(decoder=CrossAttentionDecoder.Config(width=16, depth=2, heads=2, fusion="linear"))
    kinds = {type(module) for module in model.modules()}
    assert set(kernels.FASTER) - {QueryValueLinear} <= kinds
    kernels.use_cpu_bf16_kernels(model)
    kinds = {type(module) for module in model.modules()}
    assert kinds & set(kernels.FASTER) == set()
    assert {kernels.CPUBF16Linear, kernels.CPUBF16LayerNorm, kernels.CPUBF16Attention, kernels.CPUBF16Embedding} <= kinds


def test_no_copy_of_the_weights_is_kept() -> None:
    layer, kept = kernels.CPUBF16Linear(40, 24), []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        layer(torch.randn(7, 40, requires_grad=True))
    assert [tuple(one.shape) for one in kept if one.dtype == torch.bfloat16] == [(7, 40)]
    assert [one.data_ptr() for one in kept if one.dtype == torch.float32] == [layer.weight.data_ptr()]


@pytest.mark.parametrize("queries", [5, 33])
@pytest.mark.parametrize(("longest", "block"), [(16, 1), (2048, 1), (2048, 3 * 33 * 33 * 2), (2048, 2**21)])
def test_attention(monkeypatch: pytest.MonkeyPatch, queries: int, longest: int, block: int) -> None:
    """Attention is computed by flash attention, head by head, for a few heads at a time with a remainder, and for all heads at
    once."""
    monkeypatch.setattr(kernels, "LONGEST", longest)
    monkeypatch.setattr(kernels, "BLOCK", block)
    parts = [torch.randn(2, count, 32, requires_grad=True) for count in (queries, 33, 33)]
    into = torch.randn(2, queries, 32)
    heads = [one.unflatten(2, (4, 8)).transpose(1, 2) for one in parts]
    right = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    expected = torch.autograd.grad(right, parts, into)
    assert torch.equal(kernels.CPUBF16Attention(4)(*parts), right)
    low = [one.detach().bfloat16().requires_grad_() for one in parts]
    with autocast():
        found = kernels.CPUBF16Attention(4)(*low)
    near(found, right)
    for one, other in zip(torch.autograd.grad(found, low, into.bfloat16()), expected, strict=True):
        near(one, other, share=0.02)


def test_attention_keeps_little() -> None:
    """Only bf16 probabilities, one block at a time, and the inputs that they are computed from are kept."""
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    parts = [torch.randn(2, 600, 32, requires_grad=True) for _ in range(3)]
    with autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        kernels.CPUBF16Attention(4)(*parts)
    assert [tuple(one.shape) for one in kept] == [(8, 600, 8)] * 3 + [(2, 600, 600)] * 4
    assert {one.dtype for one in kept} == {torch.bfloat16}


def test_a_norm() -> None:
    norm, x = kernels.CPUBF16LayerNorm(64), 3 + 10 * torch.randn(5, 64)
    x.requires_grad_()
    with autocast():
        y = norm(x)
    assert y.dtype == torch.bfloat16
    near(y, F.layer_norm(x, (64,)))
    y.float().sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == x.grad.dtype == torch.float32
    assert torch.equal(norm(x), F.layer_norm(x, (64,)))


def test_a_model_learns_the_same_in_bf16(build: Callable[..., MaskedModel]) -> None:
    model = build()
    x = torch.randn(4, 3, 16, 16)
    mask = model.draw_masks(x)
    weights = [w for w in model.parameters() if w.requires_grad]
    losses, gradients = [], []
    for enabled in (False, True):
        with autocast(enabled):
            loss = model(x, mask=mask).loss
        losses.append(loss.item())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    near(gradients[1], gradients[0], share=0.05)


class Shapes(TorchDispatchMode):
    """Records every operation and the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
        self.seen.append((str(func), tuple(tuple(one.shape) for one in given)))
        return func(*args, **(kwargs or {}))


def one_step(model: MaskedModel, x: Tensor, step: int) -> Tensor:
    """Runs a step's work on the device: mask, forward, backward and gradient norm."""
    keys = sample_keys(0, step, torch.arange(len(x), device=x.device))
    loss = model(x, mask=model.masker(keys, model.tokenizer.grid(x))).loss
    nan_if_nonfinite(loss).backward()
    return nn.utils.get_total_norm([w.grad for w in model.parameters() if w.grad is not None]).isfinite()


def test_every_step_has_the_same_shapes(build: Callable[..., MaskedModel]) -> None:
    model, found = build(), []
    for step in range(3):
        with Shapes() as shapes:
            one_step(model, torch.randn(2, 3, 16, 16), step)
        found.append(shapes.seen)
        model.zero_grad(set_to_none=True)
    assert len(found[0]) > 100
    assert found[0] == found[1] == found[2]


def test_a_step_never_waits_for_the_device(build: Callable[..., MaskedModel]) -> None:
    """Reading a value on the host is an error on the meta device."""
    x = torch.empty(2, 3, 16, 16, device="meta")
    assert one_step(build().to("meta"), x, 0).device.type == "meta"
    with pytest.raises(RuntimeError):
        x.sum().item()


FAULTS = """
import ctypes, resource, runpy, sys

if not runpy.run_path(sys.argv[1])["keep_memory"]():
    sys.exit(77)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def take():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [libc.malloc(2**24) for _ in range(8)]
    for block in held:
        ctypes.memset(block, 1, 2**24)
    for block in held:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


take()  # until the heap is large enough
print(take())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    """The second allocation of 128 MiB has 32,768 pages; it is made in a separate process, where nothing else lies at the end of
    the heap."""
    script = [sys.executable, "-c", FAULTS, allocator.__file__]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("not glibc")
    assert int(done.stdout) < 1000, done.stderr


@pytest.mark.slow
def test_compile_is_regional_and_computes_the_same(build: Callable[..., MaskedModel]) -> None:
    reset_accelerate()
    config = TrainConfig(steps=1, batch_size=2, learning_rate=1e-3, precision="bf16", compile=True)
    model, x = build(size=(16, 16)), torch.randn(2, 3, 16, 16)
    mask, names = model.draw_masks(x), list(model.state_dict())
    with autocast():
        expected = model(x, mask=mask).loss
    training = Training.prepare(start(config), model, make_optimizer(model, config), identity={})
    assert [type(one).__name__ for one in training.model.encoder.blocks] == ["OptimizedModule"] * 2
    assert training.model(x, mask=mask).loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert list(training.unwrapped.state_dict()) == names
    reset_accelerate()


def test_an_encoder_that_cannot_be_compiled_is_refused() -> None:
    """Hiera's maxima are computed twice, so the compiled gradient of its positions differed by 7 % (torch 2.14)."""
    reset_accelerate()
    config = TrainConfig(steps=1, batch_size=2, learning_rate=1e-3, precision="fp32", compile=True)
    model = small_model(SIZES["images"], {"encoder": small_config("encoder", "hiera")})
    with pytest.raises(ValueError, match=r"train\.compile cannot train this model: torch's compiler"):
        Training.prepare(start(config), model, make_optimizer(model, config), identity={})
    reset_accelerate()


TODAY = {"rotary": "axial", "positions": "none", "activation": "swiglu", "norm": "rms", "qk_norm": True, "registers": 4}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiling takes a minute on an idle machine
@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in encoders.parts if name != "hiera"] + [("vit", TODAY)])
def test_every_encoder_computes_the_same_compiled(name: str, options: dict[str, Any]) -> None:
    """Compares forward and backward with `--train.compile` on a CPU."""
    reset_accelerate()
    config = TrainConfig(steps=1, batch_size=2, learning_rate=1e-3, precision="fp32", compile=True)
    model = small_model(SIZES["images"], {"encoder": replace(small_config("encoder", name), **options)})
    assert model.data is not None
    x = torch.randn(2, 3, *model.data.size)
    mask, plain = model.draw_masks(x), copy.deepcopy(model)
    expected = plain(x, mask=mask).loss
    expected.backward()
    training = Training.prepare(start(config), model, make_optimizer(model, config), identity={})
    found = training.model(x, mask=mask).loss
    found.backward()
    assert any(type(module).__name__ == "OptimizedModule" for module in training.model.modules())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad for name, weight in training.unwrapped.named_parameters()}
    for weight, gradient in ((name, weight.grad) for name, weight in plain.named_parameters()):
        if gradient is not None:
            assert torch.allclose(gradients[weight], gradient, rtol=1e-3, atol=1e-5), weight
    reset_accelerate()
