"""Segmenters and detectors in folders of mmm: their entries of config.yaml, and their construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmm.config.serialize import from_dict, to_dict
from mmm.core.types import Input
from mmm.dense.detector import Detector, DetectorConfig
from mmm.dense.heads import DenseHeadConfig
from mmm.dense.segmenter import Segmenter
from mmm.encoders import Encoder
from mmm.tokenizers import GridTokenizer


@dataclass(frozen=True, kw_only=True)
class DetectorParts:
    """The parts of a detector in addition to its tokenizer and encoder; see `Detector`."""

    detector: DetectorConfig
    classes: int


@dataclass(frozen=True, kw_only=True)
class SegmenterParts:
    """The parts of a segmenter in addition to its tokenizer and encoder; see `Segmenter`."""

    head: DenseHeadConfig
    classes: int
    relative_bias: bool = False
    frozen: bool = False


DenseParts = SegmenterParts | DetectorParts


def is_dense(tree: Any) -> bool:
    """True if a config describes a model with an output for each pixel or object."""
    if not isinstance(tree, Mapping):
        return False
    return "detector" in tree or (isinstance(tree.get("head"), Mapping) and "name" in tree["head"])  # a registered head


def read_dense(tree: Mapping[str, Any]) -> DenseParts:
    """Reads the parts of a segmenter or detector from the config of a run or of a saved model.

    Raises:
        ValueError: a part is not known, or the model is a depth probe.
    """
    if "bins" in tree:
        raise ValueError("this is a depth probe, whose head is not loaded; give the model that it probes")
    data = tree.get("data")
    classes = tree.get("classes", data.get("classes") if isinstance(data, Mapping) else None)
    if "detector" in tree:
        return from_dict(DetectorParts, {"detector": tree["detector"], "classes": classes})
    found = {name: tree[name] for name in ("head", "relative_bias", "frozen") if name in tree}
    return from_dict(SegmenterParts, found | {"classes": classes})


def dense_tree(model: Segmenter | Detector) -> dict[str, Any]:
    """Returns the entries of config.yaml for a model, in addition to its data, tokenizer and encoder."""
    if isinstance(model, Detector):
        return {"detector": to_dict(model.config), "classes": model.classes}
    head: Any = model.head
    tree = {"head": to_dict(head.config), "classes": model.classes}
    return tree | {"relative_bias": model.relative_bias, "frozen": model.frozen}


def build_stored(
    parts: DenseParts, tokenizer: GridTokenizer, encoder: Encoder, data: Input, labels: tuple[str, ...] | None
) -> Segmenter | Detector:
    """Builds a model whose weights will be overwritten."""
    if isinstance(parts, DetectorParts):
        return Detector.build(tokenizer, encoder, parts.detector, classes=parts.classes, data=data, labels=labels)
    return Segmenter.build(
        tokenizer,
        encoder,
        parts.head,
        classes=parts.classes,
        frozen=parts.frozen,
        relative_bias=parts.relative_bias,
        data=data,
        labels=labels,
    )
