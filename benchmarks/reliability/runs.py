"""Small trainings on real image files and videos, with gradient accumulation, drop path and averaged weights, for the other tests.

A disturbed run is compared with an undisturbed one: every byte of the tensors in the last checkpoint, the state beside them, and
every line of metrics except for values of time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reliability.harness import Sabotage, call, start
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

IMAGES, FILMS = 52, 24  # numbers of files; an epoch has few steps, so that runs span several epochs
STEPS, EVERY = 40, 4  # updates of a run, and updates between two checkpoints
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
            Image.fromarray(picture(number)).save(path)
        for number in range(FILMS):
            kind = list(DIRECTIONS)[number % len(DIRECTIONS)]
            write_motion_video(work / "films" / kind / f"{number:03d}.mp4", "train", number)

    made = call(write, work / "data.log")
    if any(made.wait()):
        raise RuntimeError(f"no data: {made.said()}")


def picture(number: int, side: int = 24) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns a smooth picture with some noise, which depends only on its number; uint8 (side, side, 3)."""
    draw = np.random.default_rng(number)
    slopes, noise = draw.normal(size=(2, 3)), draw.integers(0, 40, (side, side, 3))
    across = np.linspace(-1, 1, side)
    smooth = across[:, None, None] * slopes[0] + across[None, :, None] * slopes[1]
    return (smooth * 60 + 108 + noise).clip(0, 255).astype(np.uint8)


def config_of(work: Path, medium: str = "image", workers: int = 0, **train: Any) -> pretrain.Config:
    """Returns the config of a run on the files of `make_data`.

    Args:
        train: options of TrainConfig, by name.
    """
    chosen = {
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "scale_learning_rate": None,
        "ema": 0.9,
        "log_every": 3,
        "save_every": EVERY,
        "keep_last": 2,
        "precision": "fp32",
        "threads": 1,
        "timeout": 20.0,
    }
    look = {"channels": 1, "mean": (0.5,), "std": (0.18,), "image_size": 16, "workers": workers, "holdout": 0.1}
    clips = medium == "video"
    data: DataConfig = (
        ClipsConfig(source=str(work / "films"), frames=4, stride=2, **look)  # type: ignore[arg-type]
        if clips
        else ImagesConfig(source=str(work / "images"), **look)  # type: ignore[arg-type]
    )
    return pretrain.Config(
        data=data,
        tokenizer=Tubes.Config(size=8, frames=2) if clips else Patches.Config(size=4),
        **({"masker": TubeMasker.Config(ratio=0.5)} if clips else {}),
        encoder=VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.2),
        decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
        train=TrainConfig(**chosen | train),
        evaluate=EvaluatorSet.of(MaskedLoss.Config(samples=4)),
    )


def variants(work: Path, **train: Any) -> list[Variant]:
    """Lists the variants: images and videos, one process and two, without data workers and with two."""
    return [
        Variant(f"{medium}_{processes}p_{workers}w", config_of(work, medium, workers, **train), processes)
        for medium, processes, workers in VARIANTS
    ]


def result(folder: Path, steps: int) -> dict[str, Any]:
    """Returns the results of a run: the last checkpoint, and the lines of metrics without values of time."""
    last = folder / "checkpoints" / f"step_{steps:08d}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"metrics": [{name: line[name] for name in line if name != "clock"} for line in lines]}
    state = json.loads((last / "state.json").read_text())
    found["state"] = {name: value for name, value in state.items() if name != "written_by"}
    return found | {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}


def whole(variant: Variant, folder: Path) -> dict[str, Any]:
    """Runs the undisturbed training, and returns its result."""
    run = start(variant.config, folder, variant.processes)
    if any(codes := run.wait()):
        raise RuntimeError(f"the undisturbed run ended with {codes}: {run.said()}")
    assert variant.config.train.steps is not None
    return result(folder, variant.config.train.steps)


def finish(variant: Variant, folder: Path, expected: dict[str, Any], sabotage: Sabotage | None = None) -> list[str]:
    """Continues a run to its end with the same command. Returns the errors, if any."""
    run = start(variant.config, folder, variant.processes, sabotage)
    if any(codes := run.wait()):
        return [f"{folder.name} ended with {codes}: {run.said()}"]
    return differs(folder, expected, variant)


def differs(folder: Path, expected: dict[str, Any], variant: Variant) -> list[str]:
    """Returns the differences between a finished run and the undisturbed one, and its leftover files."""
    assert variant.config.train.steps is not None
    found = result(folder, variant.config.train.steps)
    wrong = [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    remains = [path.name for path in (folder / "checkpoints").glob("*.tmp")]
    return [f"{folder.name}: {', '.join(sorted(wrong))} differ"] * bool(wrong) + [f"{folder.name}: {remains} left"] * bool(remains)


def quicker(config: pretrain.Config, **train: Any) -> pretrain.Config:
    """Returns the config with other options of the training."""
    return replace(config, train=replace(config.train, **train))
