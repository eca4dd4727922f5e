"""Name the classes of images or videos with a fine-tuned model: a file, a folder, a list, or any other source.

    mmm predict runs/finetune-1 photograph.jpg
    mmm predict runs/finetune-1 holiday_pictures --top 3 --out predictions.csv
    mmm predict runs/finetune-1 film.mp4 --eval_clips 5 --eval_crops 3 --out predictions.json

A video's probabilities are the mean over its clips and crops.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmm
from mmm.classifier import Classifier
from mmm.core.checks import CheckedConfig, Count, Positive
from mmm.data import Clips, ClipsConfig, DataConfig, Images, ImagesConfig, open_data
from mmm.data.loading.loader import eval_batches
from mmm.data.sources.resolve import find_source
from mmm.data.transforms.crop import normalise
from mmm.evaluate.features.table import inference
from mmm.evaluate.loaded_model import choose_device
from mmm.evaluate.metrics import mean_of_views

logger = logging.getLogger(__name__)

POSITIONAL = "inputs"
PRINTED = 50  # rows that are printed; all of them are written


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Name the classes of images or videos."""

    inputs: tuple[str, ...] = ()
    """The model, then one or more sources: image or video files, folders, lists of files, parquet files, names on the hub."""

    top: Positive = 5
    """Classes that are named, likeliest first."""

    out: str | None = None
    """File for all rows: .csv or .json. None: they are printed only."""

    image_size: Positive | None = None
    """Side of the images or frames that the model gets, in pixels. None: the model's own."""

    eval_clips: Positive = 1
    """Clips of a video whose probabilities are averaged."""

    eval_crops: Positive = 1
    """Crops of a clip whose probabilities are averaged."""

    workers: Count = 0
    """Processes that read the data."""

    batch_size: Positive = 32
    """Samples that the model gets at once."""

    device: str | None = None
    """Where to compute, for instance cpu or cuda:1. None: the accelerator that is there, else the CPU."""

    def validate(self) -> None:
        if self.out is not None and Path(self.out).suffix not in (".csv", ".json"):
            raise ValueError(f"--out {self.out} is neither a .csv nor a .json file; name one of these")


def run(config: Config) -> dict[str, Any]:
    """Predicts, prints the first rows, and writes all of them where a file is named.

    Raises:
        ValueError: the model has no head, or no source is named.
    """
    if len(config.inputs) < 2:
        raise ValueError(
            f"{len(config.inputs)} inputs are named; give a model and a source: mmm predict runs/finetune-1 photograph.jpg"
        )
    path, *sources = config.inputs
    model = mmm.load(path)
    if not isinstance(model, Classifier):
        raise ValueError(
            f"{path} holds no head, so it names no classes; fine-tune it first (recipes/image_finetune.py --model {path}), "
            "or look at its features (mmm extract, mmm retrieve)"
        )
    model = model.to(choose_device(config.device))
    rows = [row for source in sources for row in predict_source(model, source, config)]
    _show(rows)
    if config.out is not None:
        _write(rows, Path(config.out))
        print(f"predictions: {config.out}")
    return {"predictions": rows}


def predict_source(model: Classifier, source: str, config: Config) -> list[dict[str, Any]]:
    """Returns one row per input of a source: `name` and `classes`, the likeliest with their probabilities, or `problem`.

    Raises:
        ValueError: the source cannot be opened, or has several splits of which one must be named.
    """
    data = _data(model, source, config)
    splits = find_source(data).splits
    if len(splits) > 1:
        one = f"{source}/{next(iter(splits))}"
        raise ValueError(f"{source} has the splits {', '.join(splits)}; name the folder or file of one, for instance {one}")
    part = open_data(data, "train")
    logger.info("%s: %s %s", source, f"{len(part):,}", data.medium.noun)
    return list(_rows(model, part, config))


def _rows(model: Classifier, part: Images | Clips, config: Config) -> Iterator[dict[str, Any]]:
    """Yields the rows of a part, batch by batch."""
    device, views = next(model.parameters()).device, part.config.views
    for batch in eval_batches(part, part.config, batch_size=config.batch_size):
        for problem in batch.problems:
            yield {"name": problem.name, "problem": problem.reason}
        if len(batch):
            with inference(model):
                logits = model(normalise(batch.pixels.to(device), part.config.mean, part.config.std))
            chances = mean_of_views(logits, views)  # (b V, K) -> (b, K)
            names = [part.name(int(index)) for index in batch.index[::views]]
            for name, classes in zip(names, model.named(chances, top=config.top), strict=True):
                yield {"name": name, "classes": classes}


def _data(model: Classifier, source: str, config: Config) -> DataConfig:
    """Returns how samples of this source are read for the model."""
    data = model.data
    if data is None:
        raise ValueError("this model does not know the size and normalisation of its samples")
    *frames, height, width = data.size
    size: Any = (height, width) if config.image_size is None else config.image_size
    common: Any = {
        "source": source,
        "image_size": size,
        "channels": data.channels,
        "mean": data.mean,
        "std": data.std,
        "workers": config.workers,
        "holdout": 0.0,
        "max_bad": 1.0,
    }
    if not frames:
        return ImagesConfig(**common, cache=False)
    common |= {"frames": frames[0], "fps": data.fps, "eval_clips": config.eval_clips, "eval_crops": config.eval_crops}
    common |= {name: value for name in ("stride", "sampling") if (value := getattr(data, name)) is not None}
    return ClipsConfig(**common)


def _show(rows: list[dict[str, Any]]) -> None:
    """Prints one line per input."""
    for row in rows[:PRINTED]:
        words = row.get("problem") or "  ".join(f"{name} {chance:.1%}" for name, chance in row["classes"].items())
        print(f"{row['name']}: {words if 'classes' in row else 'cannot be read: ' + words}")
    if len(rows) > PRINTED:
        print(f"... and {len(rows) - PRINTED:,} more")
    bad = sum("problem" in row for row in rows)
    if bad:
        print(f"{bad:,} of {len(rows):,} inputs could not be read")


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return
    count = max((len(row.get("classes", ())) for row in rows), default=0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "problem", *(f"{word}{n}" for n in range(1, count + 1) for word in ("class", "probability"))])
        for row in rows:
            pairs = [cell for pair in row.get("classes", {}).items() for cell in pair]
            writer.writerow([row["name"], row.get("problem", ""), *pairs])
