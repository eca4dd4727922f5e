"""Protocol of a measured accuracy: the conditions that two numbers must share to be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmm.config.diff import differences, flatten
from mmm.data import Clips, DataConfig, Images

# choices of the data that change the pixels that the encoder gets; samples are compared by their fingerprints
SAMPLES = ("crop_scale", "crop_ratio", "flip", "lighting", "repeats", "frames", "stride", "fps", "sampling", "crop", "crop_sides")


@dataclass(frozen=True)
class SplitProtocol:
    """Samples that were used.

    Attributes:
        where: split, and which part of it.
        fingerprint: of the data, as `Dataset.fingerprint`.
        samples: with a label.
        per_class: labels of each class, in the classes' order.
    """

    where: str
    fingerprint: str
    samples: int
    per_class: tuple[int, ...]

    @classmethod
    def of(cls, part: Images | Clips, classes: int) -> SplitProtocol:
        """Describes a part whose samples all have labels."""
        labels = part.labels()
        assert labels is not None
        return cls(part.where, part.fingerprint, len(part), tuple(labels.bincount(minlength=classes).tolist()))


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """All that is needed to repeat a measurement.

    Attributes:
        task: for instance linear_probe.
        source: of the data, as it was named.
        train: samples that were trained on.
        validation: those that chose among settings; None where there was nothing to choose.
        test: those that were scored.
        size: of a sample, pixels (and frames).
        mean, std: of the normalisation.
        sampling: how training samples were cut.
        views: samples of a test input, whose softmax is averaged.
        clips, crops: how the views come about.
        pool, head, schedule: how what was trained was made and trained; by name and value.
        precision: of the encoder.
        model: path of the pretrained model, as it was given.
        step: updates that its weights had seen, where a run says so.
        weights: 16 hexadecimal digits of the encoder's weights.
        mmm, commit: the version and the commit of the code.
    """

    task: str
    source: str
    train: SplitProtocol
    validation: SplitProtocol | None
    test: SplitProtocol
    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampling: Mapping[str, Any]
    views: int
    clips: int
    crops: int
    pool: Mapping[str, Any]
    head: Mapping[str, Any]
    schedule: Mapping[str, Any]
    precision: str
    model: str
    step: int | None
    weights: str
    mmm: str
    commit: str | None

    def plain(self) -> dict[str, Any]:
        """Returns plain values, as JSON holds them."""
        return json.loads(json.dumps(asdict(self)))


def read_protocol(result: str | Path, method: str) -> dict[str, Any]:
    """Reads the protocol of one method from a `result.json`.

    Raises:
        ValueError: where the file has none.
    """
    found = json.loads(Path(result).read_text(encoding="utf-8"))
    if "protocol" not in found.get(method, {}):
        raise ValueError(f"{result} holds no protocol of {method}; it has {', '.join(found)}")
    return dict(found[method]["protocol"])


def protocol_differences(one: EvaluationProtocol | Mapping[str, Any], other: EvaluationProtocol | Mapping[str, Any]) -> list[str]:
    """Lists the conditions that two measurements do not share, such as "views was 1, is 15"; empty where they can be compared.

    Protocols may be given as they are in memory or as JSON holds them.
    """
    plain = [protocol.plain() if isinstance(protocol, EvaluationProtocol) else protocol for protocol in (one, other)]
    return differences(flatten(plain[0]), flatten(plain[1]))


def sampling_of(data: DataConfig) -> dict[str, Any]:
    """The choices of the data that say how training samples are cut."""
    known = {field.name for field in fields(data)}
    return {name: getattr(data, name) for name in SAMPLES if name in known}


def weights_fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits that change with any weight or its name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> memoryview:
    import torch

    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
