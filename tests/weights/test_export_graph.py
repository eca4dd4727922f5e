"""Encoders and classifiers as graphs: torch.export and ONNX with a dynamic batch, at the home size and at another one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_extract import ask
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mmm
from mmm import MaskedModel
from mmm.classifier import Classifier
from mmm.dense.detector import Detector, MaskRCNN
from mmm.dense.heads import LinearHead
from mmm.dense.segmenter import Segmenter
from mmm.encoders import VisionTransformer
from mmm.pools import AttentivePool, MeanPool
from mmm.weights.export import write_files
from mmm.weights.formats import FORMATS
from mmm.weights.formats.onnx import Graph

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


def test_export_to_onnx(build: Callable[..., MaskedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lines of the card run the file; other models are written by Python."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, [_, classifier] = subjects(build, IMAGES)
    classifier.save_pretrained(tmp_path / "classifier")
    with caplog.at_level(logging.INFO, "mmm"):
        ask(["export", str(tmp_path / "classifier"), "--to", "onnx", "--out", str(tmp_path / "given")])
    assert "opset 18, input pixels (batch, 3, 12, 16), output logits; in onnxruntime it differs" in caplog.text
    assert {path.name for path in (tmp_path / "given").iterdir()} == {"README.md", "model.onnx", "preprocessor_config.json"}
    with pytest.raises(ValueError, match="is an ONNX graph, which can be exported, but not loaded"):
        mmm.load(tmp_path / "given")
    segmenter = Segmenter.build(model.tokenizer, model.encoder, LinearHead.Config(), classes=4, data=model.data).train()
    expected = [(classifier, (3, 5), "logits"), (segmenter, (3, 4, *IMAGES), "scores"), (build(CLIPS), (3, 9, 24), "tokens")]
    for number, (one, shape, name) in enumerate(expected):
        folder, x = tmp_path / str(number), torch.randn(3, 3, *(IMAGES if number < 2 else CLIPS))
        folder.mkdir()
        code, names = [*write_files(one, "onnx", folder), *FORMATS["onnx"].usage(one)], {"x": x.numpy()}
        exec("\n".join(code), names)
        assert segmenter.training
        assert names[name].shape == shape
        torch.testing.assert_close(torch.from_numpy(names[name]), Graph(one).eval()(x).detach(), atol=1e-5, rtol=1e-5)
        segmenter.train()
    assert "session.run(None, {'pixels': x})" in (tmp_path / "given" / "README.md").read_text()


def test_what_onnx_cannot_do_is_said(build: Callable[..., MaskedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build((16, 16))
    config = MaskRCNN.Config(window=2, channels=8, hidden=8, convolutions=1)
    with pytest.raises(ValueError, match="the number of its objects differs between images; use --to folder"):
        write_files(Detector.build(model.tokenizer, model.encoder, config, classes=2, data=model.data), "onnx", tmp_path)
    monkeypatch.setattr("mmm.weights.formats.onnx.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx onnxscript"):
        write_files(build(), "onnx", tmp_path)
