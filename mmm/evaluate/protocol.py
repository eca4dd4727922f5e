"""Protocol of a measured accuracy: the conditions that two numbers must share to be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmm.data import Clips, ClipsConfig, DataConfig, Images
from mmm.data.datasets.labelled import LabelledSplits
from mmm.train.run.environment import describe_environment

if TYPE_CHECKING:
    from accelerate import Accelerator

# options of the data that change the pixels that the encoder gets; samples are compared by their fingerprints
SAMPLES = ("crop_scale", "crop_ratio", "flip", "lighting", "repeats", "frames", "stride", "fps", "sampling", "crop", "crop_sides")


def evaluation_protocol(
    accelerator: Accelerator,
    data: DataConfig,
    splits: LabelledSplits,
    *,
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns everything that is needed to repeat a measurement, as plain JSON values.

    Args:
        accelerator: accelerator of the processes that measure.
        data: options of reading the samples.
        splits: samples for training, for the choice of settings, and for the scores.
        conditions: further values, by name: `task`; `pool`, `head` and `schedule`, how the classifier was made and trained;
            `precision` of the encoder; `model`, the path of the pretrained model; `step`, the updates of its weights;
            `weights`, the fingerprint of the encoder. They replace values of the same name.

    Returns:
        The conditions, with the `source`, size, normalisation, sampling and views of the data; each split with its fingerprint
        and its labels per class; and the version (`mmm`) and the `commit` of the code.
    """
    clips, crops = (data.eval_clips, data.eval_crops) if isinstance(data, ClipsConfig) else (1, 1)
    code = describe_environment(accelerator)
    found = {
        "source": str(data.source),
        **{name: _split(getattr(splits, name), splits.classes) for name in ("train", "validation", "test")},
        "size": data.size,
        "mean": data.mean,
        "std": data.std,
        "sampling": sampling_of(data),
        "views": data.views,
        "clips": clips,
        "crops": crops,
        "mmm": code["mmm"],
        "commit": code["commit"],
    }
    return json.loads(json.dumps(found | dict(conditions)))


def _split(part: Images | Clips | None, classes: int) -> dict[str, Any] | None:
    """Describes a part whose samples all have labels. None: there is no such part."""
    if part is None:
        return None
    labels = part.labels()
    assert labels is not None
    counts = labels.bincount(minlength=classes).tolist()
    return {"where": part.where, "fingerprint": part.fingerprint, "samples": len(part), "per_class": counts}


def sampling_of(data: DataConfig) -> dict[str, Any]:
    """Returns the options of the data for cropping training samples."""
    names = {field.name for field in fields(data)}
    return {name: getattr(data, name) for name in SAMPLES if name in names}


def weights_fingerprint(module: nn.Module) -> str:
    """Returns 16 hexadecimal digits that change with any weight or its name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]
