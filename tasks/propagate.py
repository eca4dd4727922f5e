"""Propagate the mask of a video's first frame to all others by an encoder's features, without training (J & F on DAVIS).

mmm propagate runs/pretrain-1 --source builtin:scenes
mmm propagate mae_pretrain_vit_base.pth --source DAVIS --side 480
mmm propagate runs/pretrain-1 --source film.mp4 --mask first.png --out film_masks
mmm propagate runs/pretrain-1/config.yaml --source builtin:scenes                        random weights, to compare
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmm.core.checks import CheckedConfig, Positive
from mmm.data.annotated.clips import MaskedClip, masked_clips
from mmm.data.transforms.crop import normalise
from mmm.data.transforms.resize import resize
from mmm.evaluate.dense.pictures import draw_beside, paint_classes
from mmm.evaluate.dense.propagation import PropagationConfig, mean_scores, propagate_mask, score_clip
from mmm.evaluate.loaded_model import LoadedModelConfig, choose_device, load_model
from mmm.evaluate.progress import progress
from mmm.model import MaskedModel
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "model"
SHOWN = 5  # number of frames of a clip in a picture
DRAWN = 3  # number of clips that are drawn


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Propagate masks through videos."""

    model: str | None = None
    """A run folder, a checkpoint or a file of weights in one, or published weights. The config.yaml of a run selects its model with
    random weights. Frames are encoded one by one."""
    source: str = "builtin:scenes"
    """builtin:scenes (rendered); the folder of DAVIS; or, together with `mask`, a video as a file or a folder of frames."""
    mask: str | None = None
    """PNG with the objects of a video's first frame, 0 for the background."""
    side: Positive | None = None
    """Shorter side of the frames in pixels; both sides are then cut to whole patches. None: that of the model's data."""
    clips: Positive | None = 20
    """Largest number of clips. None: all."""
    propagation: PropagationConfig = PropagationConfig()
    out: str | None = None
    """Folder of masks (PNG), pictures and scores. None: a folder named by step and source, in the run's folder or in the working
    directory."""
    device: str | None = None
    """Device, for instance cpu or cuda:1. None: the accelerator of this machine, else the CPU."""


def run(config: Config) -> dict[str, Any]:
    """Propagates the masks of all clips, writes them, and prints the scores if the masks of all frames are known."""
    loaded = load_model(LoadedModelConfig(model=config.model, source=config.source, device=config.device))
    model = loaded.model.to(choose_device(config.device))
    data = model.data
    assert data is not None
    name = loaded.output("propagation", {"source": config.source}, suffix="").name
    out = (loaded.run or Path()) / name if config.out is None else Path(config.out)
    scores: dict[str, dict[str, float]] = {}
    number = 0
    clips = masked_clips(config.source, config.mask, data.channels, config.clips)
    for clip in progress(clips, config.clips or 0, "clips"):
        x = prepare(clip, model, config.side or min(data.size[-2:]))
        found = propagate_mask(model, x, clip.first, clip.first.shape, config.propagation)
        save(out / clip.name.replace(" ", "_"), found)
        if clip.masks is not None:
            scores[clip.name] = score_clip(found, clip.masks)
        if number < DRAWN:
            draw(out, clip, found, loaded.name)
        number += 1
    if not number:
        raise ValueError(f"--source {config.source}: none of its clips can be read; see the warnings above")
    result: dict[str, Any] = {"model": loaded.name, "source": config.source, "clips": number}
    if scores:
        result |= mean_scores(list(scores.values())) | {"of_clips": scores}
        print(f"J & F {result['j_and_f']:.1%} (J {result['j']:.1%}, F {result['f']:.1%}) of {number} clips, {loaded.name}")
    write_json(out / "propagation.json", result)
    print(f"masks: {out}")
    return result


def prepare(clip: MaskedClip, model: MaskedModel, side: int) -> Tensor:
    """Resizes the frames of a clip to whole patches and normalises them, (T, C, h, w) on the model's device."""
    data, token = model.data, model.tokenizer.size[-2:]
    assert data is not None
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    factor = side / min(frames.shape[-2:])
    height, width = (
        max(1, int(length * factor + 1e-6) // patch) * patch for length, patch in zip(frames.shape[-2:], token, strict=True)
    )
    resized = resize(frames, (height, width), "bicubic")
    return normalise(resized.to(next(model.parameters()).device), data.mean, data.std)


def save(folder: Path, masks: Any) -> None:
    """Writes a mask for each frame: 0 for the background, then the objects of the first frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        Image.fromarray(np.asarray(mask)).save(folder / f"{number:05d}.png")


def draw(out: Path, clip: MaskedClip, found: Any, name: str) -> Path:
    """Draws some frames of a clip with the propagated masks, and with the true masks if they are known."""
    count = min(SHOWN, len(found))
    frames = [round(number * (len(found) - 1) / max(1, count - 1)) for number in range(count)]
    columns = {"propagated": [torch.from_numpy(found[frame].astype(np.int64)) for frame in frames]}
    if clip.masks is not None:
        columns = {"truth": [torch.from_numpy(clip.masks[frame].astype(np.int64)) for frame in frames]} | columns
    title = f"{clip.name}, from its first frame: {name}"
    path = out / f"{clip.name.replace(' ', '_')}.png"
    paint = partial(paint_classes, classes=int(clip.first.max()) + 1)
    return draw_beside([clip.frames[frame] for frame in frames], columns, path, paint, title=title)
