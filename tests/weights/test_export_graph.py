"""Encoders and classifiers as graphs: torch.export and ONNX with a dynamic batch, at the home size and at another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmm import MaskedModel
from mmm.classifier import Classifier
from mmm.encoders import VisionTransformer
from mmm.pools import AttentivePool, MeanPool

SLOW = pytest.mark.slow
IMAGES, CLIPS = (12, 16), (4, 8, 8)
SIZES = [  # the home size, and the size of the input
    pytest.param(IMAGES, IMAGES, marks=SLOW),
    pytest.param(IMAGES, (16, 16)),
    pytest.param(CLIPS, CLIPS, marks=SLOW),
    pytest.param(CLIPS, (6, 12, 8)),
]


class Encode(nn.Module):
    """A module that returns the tokens of a model's encoder."""

    def __init__(self, model: MaskedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode(x).last


def subjects(build: Callable[..., MaskedModel], home: tuple[int, ...]) -> tuple[MaskedModel, list[nn.Module]]:
    """Returns a model of one block, its encoder, and a classifier: with an attentive pool for images, with a mean pool for
    clips."""
    model = build(home, encoder=VisionTransformer.Config(width=24, depth=1, heads=2))
    pool = AttentivePool.Config(heads=2) if len(home) == 2 else MeanPool.Config()
    return model, [Encode(model).eval(), Classifier.of(model, classes=5, pool=pool).eval()]


@pytest.mark.parametrize(("home", "size"), SIZES)
def test_torch_export_takes_any_batch_and_leaves_the_model_whole(build: Callable[..., MaskedModel], home, size) -> None:
    model, modules = subjects(build, home)
    for module in modules:
        exported = torch.export.export(
            module, (torch.randn(2, 3, *size),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        ).module()
        for batch in (2, 5):
            x = torch.randn(batch, 3, *size)
            torch.testing.assert_close(exported(x), module(x))
    x = torch.randn(2, 3, *size)
    model.train()(x).loss.backward()
    assert {type(weight.grad) for weight in model.parameters() if weight.grad is not None} == {Tensor}


def test_fake_tensors_of_a_dry_run_do_not_outlive_it(build: Callable[..., MaskedModel]) -> None:
    model, x = build(), torch.randn(1, 3, 8, 20)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(value) for name, value in model.state_dict().items()}
        torch.func.functional_call(Encode(model), {f"model.{name}": value for name, value in fake.items()}, mode.from_tensor(x))
    assert type(model.encode(x).last) is Tensor


@pytest.mark.parametrize(("home", "size"), [(IMAGES, (16, 16)), *(pytest.param(*sizes.values, marks=SLOW) for sizes in SIZES)])
def test_onnx_runs_any_batch(build: Callable[..., MaskedModel], tmp_path: Path, home, size) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    _, [_, module] = subjects(build, home)  # the classifier's graph contains the encoder's
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        module, (torch.randn(2, 3, *size),), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 3, *size)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(x).detach(), atol=1e-5, rtol=1e-5)
