"""ONNX, for onnxruntime and other runtimes: the graph of a model with its weights. It is only written.

The batch is dynamic; the size of a sample is that of the model. The input `pixels` is float32 (B, C, H, W) or (B, C, T, H, W),
normalised. The output is `logits` (B, K) of a classifier, `scores` (B, K, H, W) of the classes of a segmenter, or `tokens`
(B, R + N, D) of a masked model, encoded without a mask, with the R prefix tokens first.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from mmm.classifier import Classifier
from mmm.core.modes import evaluating
from mmm.dense.detector import Detector
from mmm.dense.segmenter import Segmenter
from mmm.model import MaskedModel
from mmm.weights.formats.base import NAMES, Format, Model, Stored, data_of, register, shape_of

logger = logging.getLogger(__name__)

FILE, INPUT, OPSET = "model.onnx", "pixels", 18
PACKAGES = ("onnx", "onnxscript")  # needed by torch.onnx.export
TOLERANCE = 1e-2  # largest difference of the written graph from the model, as a share of the largest output


class Graph(nn.Module):
    """A model with one input and one output tensor."""

    def __init__(self, model: MaskedModel | Classifier | Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, scores or tokens of normalised pixels; see above."""
        if isinstance(self.model, MaskedModel):
            return self.model.encode(x).last
        return self.model(x) if isinstance(self.model, Classifier) else self.model.full_size(x)


@register("onnx")
class Onnx(Format):
    """Folders with model.onnx, which torch.onnx writes."""

    title = "an ONNX graph"
    dense = True

    def detect(self, stored: Stored) -> bool:
        """Returns whether there is an ONNX file and no file of weights."""
        here = [stored.path] if stored.path.is_file() else [stored.path / name for name in (FILE, *NAMES)]
        return [path.suffix for path in here if path.is_file()] == [".onnx"]

    def write(self, model: Model, folder: Path) -> list[str]:
        if isinstance(model, Detector):
            raise ValueError(
                "--to onnx does not support a detector, because the number of its objects differs between images; use --to folder"
            )
        if any(find_spec(name) is None for name in PACKAGES):
            raise ValueError(f"--to onnx needs the packages {' and '.join(PACKAGES)}: pip install {' '.join(PACKAGES)}")
        data, device = data_of(model), next(model.parameters()).device
        x = torch.randn(3, data.channels, *data.size, generator=torch.Generator().manual_seed(0)).to(device)
        with evaluating(graph := Graph(model)):
            self._export(graph, x, folder / FILE)
            error = _compare(graph, x, folder / FILE)
        shape = ", ".join(map(str, x.shape[1:]))
        logger.info("%s: opset %d, input %s (batch, %s), output %s; %s", FILE, OPSET, INPUT, shape, output_of(model), error)
        return ["import onnxruntime", f"session = onnxruntime.InferenceSession({str(folder / FILE)!r})"]

    def _export(self, graph: Graph, x: Tensor, file: Path) -> None:
        try:
            torch.onnx.export(
                graph,
                (x[:2],),
                file,
                input_names=[INPUT],
                output_names=[output_of(graph.model)],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,  # above 2 GB, weights are in a second file nevertheless
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"--to onnx: torch cannot export this model: {str(error).strip().splitlines()[0]}") from error

    def usage(self, model: Model) -> list[str]:
        name, shape = output_of(model), shape_of(model)
        return [f"[{name}] = session.run(None, {{{INPUT!r}: x}})  # x: normalised pixels, float32 {shape} as a NumPy array"]


def output_of(model: Model) -> str:
    """Returns the name of the output of a model's graph."""
    return "logits" if isinstance(model, Classifier) else "scores" if isinstance(model, Segmenter) else "tokens"


@torch.no_grad()
def _compare(graph: Graph, x: Tensor, file: Path) -> str:
    """Runs a written file, and returns its largest difference from the model as text.

    Raises:
        ValueError: the outputs differ.
    """
    if find_spec("onnxruntime") is None:
        return "not compared with the model, because onnxruntime is not installed"
    import onnxruntime

    expected = graph(x).cpu()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {INPUT: x.cpu().numpy()})
    error, largest = (torch.from_numpy(found) - expected).abs().max().item(), expected.abs().max().item()
    if not error <= TOLERANCE * largest:
        raise ValueError(f"--to onnx: the written graph differs from the model by {error:.2g}, for outputs up to {largest:.2g}")
    return f"in onnxruntime it differs from the model by at most {error:.1g}, for outputs up to {largest:.2g}"
