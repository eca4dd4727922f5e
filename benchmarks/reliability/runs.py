"""Small trainings on real image files and videos, with gradient accumulation, drop path and averaged weights, for the other tests.

A disturbed run must equal an undisturbed one in every byte of the tensors in the last checkpoint, in the state stored with them,
and in every line of metrics, except for values of time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import Patch, start, start_function
from mmm.data import ClipsConfig, DataConfig, ImagesConfig
from mmm.data.sources.builtin_videos import DIRECTIONS, write_motion_video
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.maskers import TubeMasker
from mmm.tokenizers import Patches, Tubes
from mmm.train.config import TrainConfig
from tasks import pretrain

IMAGES, VIDEOS = 52, 24  # numbers of files; an epoch has few steps, so that runs span several epochs
STEPS, SAVE_EVERY = 40, 4  # updates of a run; updates between two checkpoints
VARIANTS = [(medium, processes, workers) for medium in ("image", "video") for processes in (1, 2) for workers in (0, 2)]


@dataclass(frozen=True)
class Variant:
    """A training and its number of processes."""

    name: str
    config: pretrain.Config
    processes: int


def make_data(work: Path) -> None:
    """Writes the files that all runs read, in a forked process, because a video encoder starts threads."""

    def write() -> None:
        for number in range(IMAGES):
            path = work / "images" / f"class_{number % 4}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make_image(number)).save(path)
        for number in range(VIDEOS):
            kind = list(DIRECTIONS)[number % len(DIRECTIONS)]
            write_motion_video(work / "videos" / kind / f"{number:03d}.mp4", "train", number)

    writing = start_function(write, work / "data.log")
    if any(writing.wait()):
        raise RuntimeError(f"the data could not be written: {writing.output()}")


def make_image(number: int, side: int = 24) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns a smooth image with some noise, which depends only on its number; uint8 (side, side, 3)."""
    rng = np.random.default_rng(number)
    slopes, noise = rng.normal(size=(2, 3)), rng.integers(0, 40, (side, side, 3))
    positions = np.linspace(-1, 1, side)
    smooth = positions[:, None, None] * slopes[0] + positions[None, :, None] * slopes[1]
    return (smooth * 60 + 108 + noise).clip(0, 255).astype(np.uint8)


def make_config(work: Path, medium: str = "image", workers: int = 0, **train: Any) -> pretrain.Config:
    """Returns the config of a run on the files of `make_data`.

    Args:
        train: options of TrainConfig, by name.
    """
    options = {
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "scale_learning_rate": None,
        "ema": 0.9,
        "log_every": 3,
        "save_every": SAVE_EVERY,
        "keep_last": 2,
        "precision": "fp32",
        "threads": 1,
        "timeout": 20.0,
    }
    shared = {"channels": 1, "mean": (0.5,), "std": (0.18,), "image_size": 16, "workers": workers, "holdout": 0.1}
    clips = medium == "video"
    data: DataConfig = (
        ClipsConfig(source=str(work / "videos"), frames=4, stride=2, **shared)  # type: ignore[arg-type]
        if clips
        else ImagesConfig(source=str(work / "images"), **shared)  # type: ignore[arg-type]
    )
    return pretrain.Config(
        data=data,
        tokenizer=Tubes.Config(size=8, frames=2) if clips else Patches.Config(size=4),
        **({"masker": TubeMasker.Config(ratio=0.5)} if clips else {}),
        encoder=VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.2),
        decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
        train=TrainConfig(**options | train),
        evaluate=EvaluatorSet.of(MaskedLoss.Config(samples=4)),
    )


def variants(work: Path, **train: Any) -> list[Variant]:
    """Lists the variants: images and videos, one process and two, without data workers and with two."""
    return [
        Variant(f"{medium}_{processes}p_{workers}w", make_config(work, medium, workers, **train), processes)
        for medium, processes, workers in VARIANTS
    ]


def read_result(folder: Path, steps: int) -> dict[str, Any]:
    """Returns the results of a run: the last checkpoint, and the lines of metrics without values of time."""
    last = folder / "checkpoints" / f"step_{steps:08d}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result: dict[str, Any] = {"metrics": [{name: line[name] for name in line if name != "clock"} for line in lines]}
    state = json.loads((last / "state.json").read_text())
    result["state"] = {name: value for name, value in state.items() if name != "written_by"}
    return result | {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}


def run_undisturbed(variant: Variant, folder: Path, patch: Patch | None = None) -> dict[str, Any]:
    """Runs a training to its end without a disturbance, and returns its results."""
    started = start(variant.config, folder, variant.processes, patch)
    if any(codes := started.wait()):
        raise RuntimeError(f"the undisturbed run ended with {codes}: {started.output()}")
    assert variant.config.train.steps is not None
    return read_result(folder, variant.config.train.steps)


def finish_and_compare(variant: Variant, folder: Path, expected: dict[str, Any]) -> list[str]:
    """Continues a run to its end with the same command. Returns an error, or the differences from the undisturbed run."""
    started = start(variant.config, folder, variant.processes)
    if any(codes := started.wait()):
        return [f"{folder.name} ended with {codes}: {started.output()}"]
    return compare(variant, folder, expected)


def compare(variant: Variant, folder: Path, expected: dict[str, Any]) -> list[str]:
    """Returns the differences between a finished run and the undisturbed one, and its temporary files."""
    assert variant.config.train.steps is not None
    result = read_result(folder, variant.config.train.steps)
    different = sorted(name for name in expected.keys() | result.keys() if result.get(name) != expected.get(name))
    temporary = [path.name for path in (folder / "checkpoints").glob("*.tmp")]
    failures = [f"{folder.name}: {', '.join(different)} differ"] * bool(different)
    return failures + [f"{folder.name}: {temporary} were not deleted"] * bool(temporary)
